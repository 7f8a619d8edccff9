//! The disks of machines: how they are read and written. Everything else of the agent sees only the two traits.
//!
//! - [`raw`]: files and block devices;
//! - [`qcow2`]: reading qcow2 images and their backing chains;
//! - [`new_qcow2`]: writing new qcow2 images, by several processes at once;
//! - [`nbd`]: what a server exports: running machines, and images that only qemu reads;
//! - [`mod@inspect`]: what an image says about itself, before anything is opened.

mod error;
mod file;
pub mod inspect;
pub mod nbd;
pub mod new_qcow2;
pub mod qcow2;
pub mod raw;
mod uncached;
mod write_out;

use kvm_clone_core::blocks::Extent;

pub use error::{DeviceError, Problem, Result};
pub use file::forget_file;
pub use inspect::{ImageFormat, ImageInfo, inspect};
pub use nbd::NbdReader;
pub use new_qcow2::{AtomicChunks, ChunkAllocator, PartWriter, Qcow2Writer};
pub use qcow2::{NamedImage, Qcow2Reader};
pub use raw::{RawReader, RawWriter};
pub(crate) use write_out::PIECE;
pub use write_out::{read_anew, write_out};

/// A disk that is read. Shared by reader threads.
pub trait ReadDevice: Send + Sync {
    /// The size of the disk in bytes.
    fn size(&self) -> u64;

    /// Extents that cover `[offset, offset + len)` exactly, in order.
    ///
    /// # Errors
    /// Where the range is beyond the disk, or the image cannot be read.
    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>>;

    /// Fills `buf` with what is at `offset`.
    ///
    /// # Errors
    /// Where the range is beyond the disk, or cannot be read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Has the host begin to read a range that will be read soon. A hint: it does not wait and cannot fail.
    fn read_ahead(&self, _offset: u64, _len: u64) {}

    /// Lets the host's page cache forget a range that will not be read again. A hint: it cannot fail.
    fn drop_cache(&self, offset: u64, len: u64);
}

/// A disk that is written. Shared by writer threads, and the same disk may be open in several processes; ranges written
/// at the same time must not overlap.
pub trait WriteDevice: Send + Sync {
    /// The size of the disk in bytes.
    fn size(&self) -> u64;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// Where the range is not a possible one, or cannot be written.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()>;

    /// Makes a range read as zeros, allocating nothing where the storage can do so.
    ///
    /// # Errors
    /// Where the range is not a possible one, or cannot be written.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;

    /// Starts writing a range from the page cache to the storage without waiting, so that [`WriteDevice::sync`] has
    /// little left to do. A hint: it cannot fail.
    fn start_writeback(&self, offset: u64, len: u64);

    /// Waits until a range is written from the page cache to the storage, which may still have it in a cache of its own.
    ///
    /// # Errors
    /// As [`WriteDevice::sync`].
    fn write_back(&self, offset: u64, len: u64) -> Result<()>;

    /// Returns when all that was written is durable.
    ///
    /// # Errors
    /// Where the storage reports a failure; what was written since the last success must then count as lost.
    fn sync(&self) -> Result<()>;
}

/// Refuses ranges beyond the end of a disk.
fn check_range(path: &std::path::Path, size: u64, offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(DeviceError::new(path, Problem::BadRequest { len, size }).at(offset)),
    }
}
