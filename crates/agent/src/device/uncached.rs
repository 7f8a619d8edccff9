//! Block devices are read past the page cache: a guest without cache, or another host, may have written to the device, and
//! what our cache holds of it may be old.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::buffer::{ALIGNMENT, Buffer};

/// A block device that is read directly.
#[derive(Debug)]
pub(super) struct Uncached(File);

impl Uncached {
    /// Opens a device; none where it does not take direct reads.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let file = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path).ok()?;
        let device = Self(file);
        let mut probe = [0; 1];
        device.read_exact_at(&mut probe, 0).ok().map(|()| device)
    }

    /// Fills `buf` with what is at `offset`.
    pub(super) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let ahead = usize::try_from(offset % ALIGNMENT as u64).map_err(io::Error::other)?;
        let start = offset - ahead as u64;
        let wanted = ahead + buf.len();
        let length = wanted.next_multiple_of(ALIGNMENT);
        let mut aligned = Buffer::zeroed(length);
        let mut filled = 0;
        // A device's end cuts the last read short, which is not its failure.
        while filled < wanted {
            match self.0.read_at(&mut aligned[filled..], start + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buf.copy_from_slice(&aligned[ahead..wanted]);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_any_place_and_length_are_aligned_for_the_device() {
        // A file of a disk takes direct reads as a device does; a file system in memory may not.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("device");
        let content: Vec<u8> = (0..=250).cycle().take(64 * 1024 + 512).collect();
        std::fs::write(&path, &content).unwrap();
        let Some(device) = Uncached::open(&path) else { return };
        for (offset, length) in [(0, 1), (1, 4096), (4095, 2), (511, 60_000), (65_535, 513), (0, content.len())] {
            let mut got = vec![0; length];
            device.read_exact_at(&mut got, offset as u64).unwrap();
            assert_eq!(got, content[offset..offset + length], "{length} bytes at {offset}");
        }
        device.read_exact_at(&mut [0; 2], content.len() as u64 - 1).unwrap_err();
    }
}
