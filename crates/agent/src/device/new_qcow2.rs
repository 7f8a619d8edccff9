//! Writing new qcow2 images, by several processes at once and without locks.
//!
//! A lane agent writes its own segments of a disk, next to other lane agents that write theirs into the same file. An
//! ordinary qcow2 writer cannot do that, because it allocates L2 tables and clusters from reference counts in memory.
//! Here nothing is shared but the file:
//!
//! ```text
//! header │ L1 table │ room for every L2 table │ chunk │ chunk │ chunk │ …      finish() adds: refcount blocks │ table
//! 64 KiB │ 8 B each │ 64 KiB each, sparse     │ 16 MiB of data clusters each
//! ```
//!
//! - The L2 table `i` has its place before it is needed: nobody allocates it. A table without entries is a hole, which
//!   costs nothing; the file only looks larger, by 1/8192 of the disk. Its L1 entry is written by whoever needs it first;
//!   all write the same eight bytes.
//! - Data clusters come from chunks; each chunk belongs to one process. An allocator hands chunks out
//!   ([`ChunkAllocator`]), once in 16 MiB.
//! - An L2 entry belongs to whoever writes its block, and only one at a time writes a block.
//! - There are no reference counts before [`finish`], which one process runs when all others are done: then each used
//!   cluster has exactly one reference. Until then the header names a refcount table of no clusters, and qemu refuses
//!   to open the image ("does not contain a reference count table"): no guest can start on half a disk. Readers that do
//!   not need reference counts, as ours, see all that is written. The dirty bit would say the same, but imago refuses it.
//!
//! An image may be an *overlay*: where nothing was written it shows its backing file, so zeros that hide what that file has
//! need an entry that says so (the zero flag). Such an entry has no cluster, and no reference is counted for it.
//!
//! Within one write the order is data, L1 entry, L2 entries. So a process that is killed leaves clusters that nothing
//! refers to, but never an entry whose table is out of sight, nor one that refers to what was not written. A power cut
//! may leave anything of what was not synced: [`recover`] makes the structures sound again, and what the content is, the
//! verification of a resumed copy finds out.

mod chunks;
mod finish;
mod header;
mod image;
mod layout;
mod parts;
mod recover;
mod refcounts;
mod writer;
mod written;

use std::path::Path;

pub use chunks::{AtomicChunks, CHUNK, ChunkAllocator};
pub use finish::finish;
pub use parts::PartWriter;
pub use recover::recover;
pub use writer::Qcow2Writer;
pub use written::{Written, shows};

use self::image::Image;
use super::{NamedImage, Result};

/// Makes a new image, which must not exist yet, with a disk of zeros.
///
/// # Errors
/// Where the size is not a multiple of 512 (a qcow2 disk cannot have another, qemu would cut it) or too large for
/// qemu, or the file exists or cannot be made.
pub fn create(path: &Path, virtual_size: u64) -> Result<()> {
    Image::create(path, virtual_size, None).map(drop)
}

/// Makes a new image, which must not exist yet, over another one: until something is written to it, it shows that one,
/// and zeros beyond its end. The backing file is named, not opened.
///
/// # Errors
/// As [`create`], and where the backing file's path is not absolute or longer than 1023 bytes.
pub fn create_overlay(path: &Path, virtual_size: u64, backing: &NamedImage) -> Result<()> {
    Image::create(path, virtual_size, Some(backing)).map(drop)
}

#[cfg(test)]
mod tests;
