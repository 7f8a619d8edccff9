//! One open file, as imago wants to see it: readable, and nothing else.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, storage};
use kvm_clone_core::blocks::Extent;

use super::super::DeviceError;
use super::super::file::{self, DataMap};

/// A file of a chain. imago's own `File` would do, but keeps its descriptor to itself, behind a lock; this one cannot be
/// written even by mistake, and is never opened by name, so that nothing can be exchanged between check and use.
#[derive(Debug)]
pub(super) struct Layer {
    file: File,
    path: PathBuf,
    size: u64,
    map: DataMap,
    helper: CommonStorageHelper,
}

impl Layer {
    pub(super) fn new(file: File, path: &Path, size: u64) -> Self {
        Self { file, path: path.to_owned(), size, map: DataMap::default(), helper: CommonStorageHelper::default() }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Data and holes of a range of the file.
    pub(super) fn extents(&self, offset: u64, len: u64) -> io::Result<Vec<Extent>> {
        self.map.extents(&self.file, offset, len)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl Storage for Layer {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut buf in bufv.into_inner() {
            file::read_or_zero(&self.file, &mut buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, _: IoVector<'_>, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    unsafe fn pure_write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    unsafe fn pure_write_allocated_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, _: u64, _: storage::PreallocateMode) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// An error that came through imago: the system's where it has a number, else imago's opinion about the image.
pub(super) fn classify(path: &Path, doing: &'static str, error: io::Error) -> DeviceError {
    if error.raw_os_error().is_some() {
        DeviceError::io(path, doing, error)
    } else {
        DeviceError::corrupt(path, error.to_string())
    }
}
