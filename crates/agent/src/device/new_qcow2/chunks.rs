//! Who may write where: chunks of data clusters, each handed out once.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::{DeviceError, Problem, Result};
use super::image::Image;

/// The length of a chunk: 256 clusters. Small enough that the unused rest of a lane's last chunk does not matter, large
/// enough that asking for one does not.
pub const CHUNK: u64 = 16 << 20;

/// Hands out chunks of an image. All writers of an image, in whatever process, have to be served from one source.
pub trait ChunkAllocator: Send + Sync {
    /// The offset in the file of a chunk of [`CHUNK`] bytes that was never handed out before.
    ///
    /// # Errors
    /// Where there is no further chunk, or the source of chunks is gone.
    fn next_chunk(&self) -> Result<u64>;
}

/// The chunks of one image, in order.
#[derive(Debug)]
pub struct AtomicChunks {
    next: AtomicU64,
    image: std::path::PathBuf,
}

impl AtomicChunks {
    /// The chunks of an image that follow all that was ever written to it. To be made once for an image, after
    /// [`super::create`] or [`super::recover`] and before the first writer.
    ///
    /// # Errors
    /// Where the image cannot be read, or is not one of ours, or is finished.
    pub fn of(path: &Path) -> Result<Self> {
        let image = Image::open(path)?;
        image.expect_unfinished()?;
        let start = image.layout.data_start();
        // A chunk is written from its start, so none that was used lies wholly behind the end of the file.
        let used = image.len()?.saturating_sub(start).next_multiple_of(CHUNK);
        Ok(Self { next: AtomicU64::new(start + used), image: path.to_owned() })
    }
}

impl ChunkAllocator for AtomicChunks {
    fn next_chunk(&self) -> Result<u64> {
        // Host offsets have 56 bits ("Cluster mapping"); the counter stays far from wrapping behind that.
        let next = self.next.fetch_add(CHUNK, Ordering::Relaxed);
        if next >> 55 == 0 {
            return Ok(next);
        }
        self.next.store(1 << 55, Ordering::Relaxed);
        Err(DeviceError::new(&self.image, Problem::NoSpace(std::io::ErrorKind::FileTooLarge.into())))
    }
}
