//! Raw disks: files, and block devices as sources.

use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use kvm_clone_core::blocks::Extent;

use super::file::{self, DataMap};
use super::uncached::Uncached;
use super::{DeviceError, ReadDevice, Result, WriteDevice, check_range};

/// A raw file or block device that is read.
#[derive(Debug)]
pub struct RawReader {
    file: File,
    path: PathBuf,
    size: u64,
    map: DataMap,
    /// A block device is read through this where it can be.
    uncached: Option<Uncached>,
}

impl RawReader {
    /// Opens a disk read-only.
    ///
    /// # Errors
    /// Where it cannot be opened, or is no disk.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(path, file::open_source(path)?)
    }

    /// Opens a file that must be no symbolic link.
    ///
    /// # Errors
    /// As [`Self::open`], and where it is one.
    pub fn open_without_link(path: &Path) -> Result<Self> {
        Self::of(path, file::open_source_without_link(path)?)
    }

    fn of(path: &Path, (file, size): (File, u64)) -> Result<Self> {
        let is_device = file.metadata().is_ok_and(|facts| facts.file_type().is_block_device());
        let uncached = if is_device { Uncached::open(path) } else { None };
        Ok(Self { file, path: path.to_owned(), size, map: DataMap::default(), uncached })
    }
}

impl ReadDevice for RawReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        check_range(&self.path, self.size, offset, len)?;
        self.map
            .extents(&self.file, offset, len)
            .map_err(|error| DeviceError::io(&self.path, "find its holes", error).at(offset))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.path, self.size, offset, buf.len() as u64)?;
        // Not `read_or_zero`: a raw disk that ends before its size shrank while we read it, which is an error.
        let read = match &self.uncached {
            Some(device) => device.read_exact_at(buf, offset),
            None => self.file.read_exact_at(buf, offset),
        };
        read.map_err(|error| DeviceError::io(&self.path, "read", error).at(offset))
    }

    fn read_ahead(&self, offset: u64, len: u64) {
        if self.uncached.is_none() {
            file::read_ahead(&self.file, offset, len.min(self.size.saturating_sub(offset)));
        }
    }

    fn drop_cache(&self, offset: u64, len: u64) {
        file::forget(&self.file, offset, len);
    }
}

/// A new raw image that is written.
#[derive(Debug)]
pub struct RawWriter {
    file: File,
    path: PathBuf,
    size: u64,
}

impl RawWriter {
    /// Makes a new sparse file of the given size, which must not exist yet.
    ///
    /// # Errors
    /// Where the file exists, or cannot be made or grown to that size.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        let file = file::create_new(path)?;
        file.set_len(size).map_err(|error| DeviceError::io(path, "give it its size", error))?;
        Ok(Self { file, path: path.to_owned(), size })
    }

    /// Opens an image that [`RawWriter::create`] made, here or in another process.
    ///
    /// # Errors
    /// Where it cannot be opened for writing, or is no disk.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, size) = file::open_staging(path)?;
        Ok(Self { file, path: path.to_owned(), size })
    }
}

impl WriteDevice for RawWriter {
    fn size(&self) -> u64 {
        self.size
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(&self.path, self.size, offset, data.len() as u64)?;
        self.file.write_all_at(data, offset).map_err(|error| DeviceError::io(&self.path, "write", error).at(offset))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        check_range(&self.path, self.size, offset, len)?;
        file::zero_range(&self.file, offset, len)
            .map_err(|error| DeviceError::io(&self.path, "write zeros", error).at(offset))
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        file::start_write_back(&self.file, offset, len);
    }

    fn write_back(&self, offset: u64, len: u64) -> Result<()> {
        file::write_back(&self.file, offset, len)
            .map_err(|error| DeviceError::io(&self.path, "write it out", error).at(offset))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| DeviceError::io(&self.path, "make it durable", error))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use kvm_clone_core::blocks::{ExtentKind, extents};
    use proptest::prelude::*;

    use super::super::Problem;
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_new_image_is_private_sparse_and_really_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let disk = RawWriter::create(&path, 1 << 40).unwrap();
        disk.write_zeroes(0, 1 << 40).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.blocks(), metadata.permissions().mode() & 0o777), (1 << 40, 0, 0o600));
        RawWriter::create(&path, 1).unwrap_err();
        let link = dir.path().join("link");
        symlink(dir.path().join("elsewhere"), &link).unwrap();
        RawWriter::create(&link, 1).unwrap_err();
        symlink(&path, dir.path().join("good")).unwrap();
        RawWriter::open(&dir.path().join("good")).unwrap_err();
    }

    #[test]
    fn pipes_and_directories_are_no_disks() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for path in [&pipe, dir.path()] {
            let error = RawReader::open(path).unwrap_err();
            assert!(matches!(error.problem, Problem::NotADisk), "{error}");
        }
    }

    #[test]
    fn requests_beyond_the_end_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let disk = RawWriter::create(&path, 1000).unwrap();
        let source = RawReader::open(&path).unwrap();
        for (offset, len) in [(999u64, 2usize), (1001, 0), (u64::MAX, 2)] {
            let requests = [
                disk.write_at(&vec![1; len], offset),
                disk.write_zeroes(offset, len as u64),
                source.read_at(&mut vec![0; len], offset),
                source.extents(offset, len as u64).map(drop),
            ];
            for answer in requests {
                assert!(matches!(answer.unwrap_err().problem, Problem::BadRequest { size: 1000, .. }));
            }
        }
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let file = File::options().write(true).open("/dev/full").unwrap();
        let full = RawWriter { file, path: "/dev/full".into(), size: 10 };
        let error = full.write_at(b"x", 3).unwrap_err();
        assert!(matches!(error.problem, Problem::NoSpace(_)));
        assert_eq!(error.to_string(), "/dev/full at offset 3: no space is left");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
        #[test]
        fn what_is_written_is_read(
            writes in prop::collection::vec((0..4 * MIB, 1..MIB, prop::option::of(1u8..)), 0..12),
            size in 1..4 * MIB,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk");
            let disk = RawWriter::create(&path, size).unwrap();
            let mut model = vec![0; usize::try_from(size).unwrap()];
            for (offset, len, value) in writes {
                let offset = offset.min(size - 1);
                let len = len.min(size - offset);
                match value {
                    Some(value) => disk.write_at(&vec![value; usize::try_from(len).unwrap()], offset).unwrap(),
                    None => disk.write_zeroes(offset, len).unwrap(),
                }
                disk.start_writeback(offset, len);
                model[usize::try_from(offset).unwrap()..][..usize::try_from(len).unwrap()].fill(value.unwrap_or(0));
            }
            disk.sync().unwrap();
            let source = RawReader::open(&path).unwrap();
            let list = source.extents(0, size).unwrap();
            prop_assert_eq!(list.iter().map(|e| e.len).sum::<u64>(), size);
            prop_assert_eq!(&extents::normalise(&list), &list);
            for hole in list.iter().filter(|e| e.kind == ExtentKind::Zero) {
                let bytes = &model[usize::try_from(hole.offset).unwrap()..usize::try_from(hole.end()).unwrap()];
                prop_assert!(bytes.iter().all(|byte| *byte == 0));
            }
            // Asked piece by piece, from the end, the holes are the same.
            let mut pieces = Vec::new();
            for offset in (0..size.div_ceil(100_000)).rev().map(|piece| piece * 100_000) {
                pieces.extend(source.extents(offset, 100_000.min(size - offset)).unwrap());
            }
            prop_assert_eq!(extents::normalise(&pieces), list);
            let mut got = vec![9; model.len()];
            source.read_at(&mut got, 0).unwrap();
            prop_assert_eq!(got, model);
        }
    }
}
