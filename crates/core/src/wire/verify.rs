//! What control agents are asked about disks that are compared as a whole: digests, and where these cannot decide, the bytes.

use serde::{Deserialize, Serialize};

use super::lane::ImageSpec;
use crate::blocks::{BlockSize, DigestKey};

/// The most groups whose blocks one question may be about: with blocks of 4 KiB the answer has 2 MiB.
pub const GROUPS_ASKED: usize = 512;
/// The most bytes of a disk in one answer.
pub const BYTES_ASKED: u64 = 1 << 20;

/// What has a digest for each of its blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Digested {
    /// A disk, which is read.
    Disk(ImageSpec),
    /// A manifest that is known to be whole, by its path.
    Manifest(String),
}

impl Digested {
    /// The file that is read.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Disk(image) => &image.path,
            Self::Manifest(path) => path,
        }
    }
}

/// Whose digests are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestQuery {
    /// What is looked at.
    pub of: Digested,
    /// The key of the digests; a manifest must have it.
    pub key: DigestKey,
    /// The length of the blocks; those of a manifest must have it.
    pub block: BlockSize,
    /// Bytes of the disk that count, from its beginning: what lies behind them is not looked at. A manifest must be of just
    /// such a disk.
    pub size: u64,
}
