//! The direct route: a lane from host to host, beside SSH.
//!
//! SSH costs more processor time than everything else of a copy together, and every byte goes through the controller. So
//! a lane may leave SSH for a TCP connection between its two agents, sealed by the Noise protocol (`NNpsk0`) under a
//! random key that both agents get over SSH, for this one lane. Who does not know the key can neither join nor read nor
//! change anything; that SSH vouches for both hosts is what the key is worth.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What both ends of one direct lane know, and nobody else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneKey([u8; 32]);

impl LaneKey {
    /// A key from 32 random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LaneKey(redacted)")
    }
}

/// The cipher of a direct lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cipher {
    /// AES-256-GCM, where the processors of both hosts have AES instructions.
    AesGcm,
    /// ChaCha20-Poly1305, elsewhere.
    ChaChaPoly,
}

/// How a direct lane is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The lane's key.
    pub key: LaneKey,
    /// Its cipher.
    pub cipher: Cipher,
}

/// Where the target's lane agent waits for the source's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meeting {
    /// Addresses of the target's host; none means the host from which the source's SSH connection came.
    pub addresses: Vec<String>,
    /// The port there.
    pub port: u16,
}

/// The way that a lane's bytes take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// Over SSH, through the controller.
    #[default]
    Relay,
    /// From host to host.
    Direct,
}
