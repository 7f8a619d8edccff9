//! What a disk looks like from outside: extents, blocks, their digests, and the manifest that keeps them.
//!
//! Nothing here reads or writes; the agent's devices and pipelines do, with these rules.

pub mod compare;
pub mod digest;
pub mod extents;
pub mod groups;
pub mod manifest;

use serde::{Deserialize, Serialize};

pub use digest::{Digest, DigestKey, KeyId, is_zero};
pub use extents::{Extent, ExtentKind, Segment, segments};
pub use groups::{Comparison, GROUP, ListKey, Run};
pub use manifest::{Geometry, Header, ManifestError, Root, RootHasher};

/// The default block size: the unit of comparison, and also a qcow2 cluster, so that a block is never half allocated.
pub const BLOCK: u64 = BLOCK_LEN as u64;

/// The same as a length in memory.
pub const BLOCK_LEN: usize = 65536;

/// The number of a block of a disk; not an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    /// The block that holds the byte at `offset`.
    #[must_use]
    pub const fn of(offset: u64, block_size: u32) -> Self {
        // `as` because a widening `From` is not const.
        Self(offset / block_size as u64)
    }

    /// Where the block starts, in bytes.
    #[must_use]
    pub const fn offset(self, block_size: u32) -> u64 {
        self.0.saturating_mul(block_size as u64)
    }
}
