//! What a disk looks like from outside: extents, blocks, their digests, and the manifest that keeps them.
//!
//! Nothing here reads or writes; the agent's devices and pipelines do, with these rules.

mod block_size;
pub mod compare;
pub mod digest;
pub mod extents;
pub mod groups;
pub mod manifest;

use serde::{Deserialize, Serialize};

pub use block_size::BlockSize;
pub use digest::{Digest, DigestKey, KeyId, is_zero};
pub use extents::{Extent, ExtentKind, Segment, segments};
pub use groups::{Comparison, ListKey, Run};
pub use manifest::{Geometry, Header, ManifestError, Root, RootHasher};

/// The default block size, and also a qcow2 cluster, so that a block of that size is never half allocated.
pub const BLOCK: u64 = BLOCK_LEN as u64;

/// The same as a length in memory.
pub const BLOCK_LEN: usize = 65536;

/// The number of a block of a disk; not an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    /// The block that holds the byte at `offset`.
    #[must_use]
    pub const fn of(offset: u64, block: BlockSize) -> Self {
        Self(offset / block.bytes())
    }

    /// Where the block starts, in bytes.
    #[must_use]
    pub const fn offset(self, block: BlockSize) -> u64 {
        self.0.saturating_mul(block.bytes())
    }
}
