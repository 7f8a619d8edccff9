//! Digests of blocks: how the two ends compare content without sending it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What [`DigestKey::id`] is derived under; BLAKE3 asks for a context that no other program uses.
const KEY_ID_CONTEXT: &str = "kvm-clone 2025 digest key id v1";

/// The digest of one block: the first 16 bytes of BLAKE3, keyed. 128 bits are enough because the key is secret to the
/// two ends: who writes a guest's disk cannot search for collisions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// The mark of a block that is all zeros; never the digest of data.
    pub const ZERO: Self = Self([0; 16]);

    /// Whether it marks a block of zeros.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// The digest of something that is not all zeros, from its hash.
    pub(super) fn of_data(hash: &[u8; 32]) -> Self {
        let digest = Self(first_16(hash));
        // One in 2^128, but "never" is what the others rely on.
        if digest.is_zero() { Self([1; 16]) } else { digest }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Names a key without telling it: two manifests compare only under one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyId(pub [u8; 16]);

/// The random key of a lineage.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestKey([u8; 32]);

impl DigestKey {
    /// A key from 32 random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key, to store it with the lineage.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key's public name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        KeyId(first_16(&blake3::derive_key(KEY_ID_CONTEXT, &self.0)))
    }

    /// The digest of a block.
    #[must_use]
    pub fn block(&self, data: &[u8]) -> Digest {
        if is_zero(data) {
            return Digest::ZERO;
        }
        Digest::of_data(blake3::keyed_hash(&self.0, data).as_bytes())
    }
}

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(redacted)")
    }
}

fn first_16(bytes: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&bytes[..16]);
    out
}

/// Whether all bytes are zero. In pieces, so that data is mostly recognised by its first piece, each piece without a
/// branch, so that the compiler uses vector instructions.
#[must_use]
pub fn is_zero(data: &[u8]) -> bool {
    data.chunks(512).all(|piece| piece.iter().fold(0, |seen, byte| seen | byte) == 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeros_have_the_mark_whatever_their_length() {
        let key = DigestKey::new([7; 32]);
        for len in [0, 1, 511, 512, 513, 65536] {
            assert_eq!(key.block(&vec![0; len]), Digest::ZERO);
        }
    }

    #[test]
    fn the_digest_is_the_start_of_keyed_blake3() {
        let (key, data) = ([3; 32], b"some block");
        assert_eq!(DigestKey::new(key).block(data).0, blake3::keyed_hash(&key, data).as_bytes()[..16]);
    }

    #[test]
    fn keys_are_not_printed() {
        assert_eq!(format!("{:?}", DigestKey::new([0x41; 32])), "DigestKey(redacted)");
        assert_ne!(DigestKey::new([1; 32]).id(), DigestKey::new([2; 32]).id());
    }

    proptest! {
        #[test]
        fn one_byte_anywhere_is_seen(len in 1usize..3000, at in any::<prop::sample::Index>(), value in 1u8..) {
            let mut data = vec![0; len];
            data[at.index(len)] = value;
            prop_assert!(!is_zero(&data));
            prop_assert!(!DigestKey::new([9; 32]).block(&data).is_zero());
        }
    }
}
