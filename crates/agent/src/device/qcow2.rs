//! Reading qcow2 images: imago says where a guest's bytes lie, we read them there.

mod chain;
mod layer;

use std::io;
use std::path::{Path, PathBuf};

use imago::{FormatAccess, Mapping};
use kvm_clone_core::blocks::{Extent, extents};

pub use chain::NamedImage;

use self::layer::Layer;
use super::{DeviceError, ReadDevice, Result, check_range, file};

/// A qcow2 image with its backing chain, read-only. Threads share it: imago's tables are behind locks, and the data is
/// read with positioned reads.
///
/// It shows the image as it was when opened: tables once read are kept, so whoever wants to see what others wrote since
/// opens it again.
pub struct Qcow2Reader {
    access: FormatAccess<Layer>,
    path: PathBuf,
    size: u64,
}

impl Qcow2Reader {
    /// Opens an image. Of the backing files that it and its backing files name, only those in `allowed` are opened, in
    /// the format given there.
    ///
    /// # Errors
    /// [`NotNamed`](super::Problem::NotNamed) for a backing file that is not allowed,
    /// [`Unsupported`](super::Problem::Unsupported) where another reader has to be used,
    /// [`Corrupt`](super::Problem::Corrupt) for a contradictory image.
    pub fn open(path: &Path, allowed: &[NamedImage]) -> Result<Self> {
        let access = chain::open(path, allowed)?;
        let size = access.size();
        Ok(Self { access, path: path.to_owned(), size })
    }

    /// An error of imago's. What did not come from the system is its opinion about the image.
    fn failed(&self, offset: u64, error: io::Error) -> DeviceError {
        layer::classify(&self.path, "read", error).at(offset)
    }

    /// Where `offset` is mapped to, and for how many bytes, which are at least one and at most `len`.
    fn mapping(&self, offset: u64, len: u64) -> Result<(Mapping<'_, Layer>, u64)> {
        match self.access.get_mapping(offset, len) {
            Ok((_, 0)) => Err(DeviceError::corrupt(&self.path, "it ends before its size").at(offset)),
            Ok((mapping, mapped)) => Ok((mapping, mapped.min(len))),
            Err(error) => Err(self.failed(offset, error)),
        }
    }

    /// Reads what one mapping covers.
    fn read_mapped(&self, mapping: Mapping<'_, Layer>, buf: &mut [u8], offset: u64) -> Result<()> {
        let result = match mapping {
            // Where the file ends inside a cluster, the rest is zeros; qemu reads it the same way.
            Mapping::Raw { storage, offset, .. } => file::read_or_zero(storage.file(), buf, offset),
            Mapping::Zero { .. } => {
                buf.fill(0);
                Ok(())
            }
            // Compressed: its image, which may lie deeper in the chain, has to unpack it.
            Mapping::Special { layer, offset, .. } => layer.read(buf, offset),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a mapping of an unknown kind")),
        };
        result.map_err(|error| self.failed(offset, error))
    }
}

impl Qcow2Reader {
    /// The places in files where a range of the disk is stored as it is.
    fn for_each_stored(&self, offset: u64, len: u64, act: impl Fn(&std::fs::File, u64, u64)) {
        let end = offset.saturating_add(len).min(self.size);
        let mut at = offset;
        while at < end {
            let Ok((mapping, mapped)) = self.mapping(at, end - at) else { return };
            if let Mapping::Raw { storage, offset: host, .. } = mapping {
                act(storage.file(), host, mapped);
            }
            at += mapped;
        }
    }
}

impl ReadDevice for Qcow2Reader {
    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        check_range(&self.path, self.size, offset, len)?;
        let end = offset + len;
        let (mut list, mut at) = (Vec::new(), offset);
        while at < end {
            let (mapping, mapped) = self.mapping(at, end - at)?;
            match mapping {
                Mapping::Zero { .. } => extents::push(&mut list, Extent::zero(at, mapped)),
                // An allocated cluster may still be a hole of the file: images with preallocated metadata are nearly
                // nothing else, and so may be a raw backing file.
                Mapping::Raw { storage, offset: host, .. } => {
                    let inside = storage.extents(host, mapped).map_err(|error| self.failed(at, error))?;
                    for extent in inside {
                        extents::push(&mut list, Extent { offset: at + (extent.offset - host), ..extent });
                    }
                }
                _ => extents::push(&mut list, Extent::data(at, mapped)),
            }
            at += mapped;
        }
        Ok(list)
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(&self.path, self.size, offset, buf.len() as u64)?;
        while !buf.is_empty() {
            let (mapping, mapped) = self.mapping(offset, buf.len() as u64)?;
            // At most the length of the buffer, so it fits.
            let here = usize::try_from(mapped).map_or(buf.len(), |mapped| mapped.min(buf.len()));
            let (now, later) = buf.split_at_mut(here);
            self.read_mapped(mapping, now, offset)?;
            offset += here as u64;
            buf = later;
        }
        Ok(())
    }

    fn read_ahead(&self, offset: u64, len: u64) {
        self.for_each_stored(offset, len, file::read_ahead);
    }

    fn drop_cache(&self, offset: u64, len: u64) {
        self.for_each_stored(offset, len, file::forget);
    }
}

impl std::fmt::Debug for Qcow2Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Reader").field("path", &self.path).field("size", &self.size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
