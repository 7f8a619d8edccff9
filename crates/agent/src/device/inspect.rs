//! What an image says about itself: format, size, backing file, features. Nothing it names is opened.
//!
//! The header is whatever the last guest, host or attacker left there, so it is read as hostile: every offset and length
//! is bounded before use, and what the specification forbids is an error. Sections named here are those of qemu's
//! `docs/interop/qcow2.rst`.

mod features;
mod header;

use std::fmt;
use std::fs::File;
use std::path::Path;

pub use features::Feature;

use super::{DeviceError, Problem, Result, file};

/// A format this program reads by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// The bytes of the disk, as they are.
    Raw,
    /// qcow2, version 2 or 3.
    Qcow2,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// The backing file of an image, as its header states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// As written: relative to the image, absolute, or a protocol (`nbd:…`, `json:…`).
    pub name: String,
    /// The format, where one is stated. One that is not must never be guessed: a guest can write a qcow2 header into a
    /// raw disk and so name any file of the host.
    pub format: Option<String>,
}

/// What an image says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// By the magic bytes. A raw disk may contain anything, also a qcow2 header: what libvirt declares goes before this.
    pub format: ImageFormat,
    /// The size of the disk as a guest sees it.
    pub virtual_size: u64,
    /// The unit of allocation; 0 for raw.
    pub cluster_size: u64,
    /// What lies under this image.
    pub backing: Option<Backing>,
    /// The file that holds its data, as its header states it, where that is another one.
    pub data_file: Option<String>,
    /// How many internal snapshots it has.
    pub snapshots: u32,
    /// Not closed properly; reference counts may be wrong, the data is not.
    pub dirty: bool,
    /// Marked as corrupt by who wrote it last.
    pub corrupt: bool,
    /// Everything else that a reader, or who replaces this image by another one, has to know.
    pub features: Vec<Feature>,
}

/// Looks at an image.
///
/// # Errors
/// Where it cannot be read, or has the qcow2 magic bytes and an impossible header.
pub fn inspect(path: &Path) -> Result<ImageInfo> {
    let (file, size) = file::open_source(path)?;
    inspect_open(path, &file, size)
}

/// Looks at an image that is open, so that nobody can exchange it between the look and the use.
pub(super) fn inspect_open(path: &Path, file: &File, size: u64) -> Result<ImageInfo> {
    let read = |buf: &mut [u8]| {
        file::read_or_zero(file, buf, 0).map_err(|error| DeviceError::io(path, "read the image's header", error).at(0))
    };
    let mut head = [0; header::FIXED_LEN];
    read(&mut head)?;
    if !header::has_magic(&head) {
        return Ok(ImageInfo {
            format: ImageFormat::Raw,
            virtual_size: size,
            cluster_size: 0,
            backing: None,
            data_file: None,
            snapshots: 0,
            dirty: false,
            corrupt: false,
            features: Vec::new(),
        });
    }
    // Extensions and the name of the backing file have to lie in the first cluster, 2 MiB at most.
    let first_cluster = header::cluster_size(&head).map_err(|problem| DeviceError::new(path, problem))?;
    let mut cluster = vec![0; first_cluster];
    read(&mut cluster)?;
    header::parse(&cluster).map_err(|problem| DeviceError::new(path, problem))
}

impl ImageInfo {
    /// Whether our own reader can read it, else why not.
    pub(super) fn readable(&self) -> Result<(), Problem> {
        if self.corrupt {
            return Err(Problem::Corrupt("its header has the corrupt bit set".into()));
        }
        // The dirty bit only means stale reference counts, which a reader does not need; but imago refuses it, and to
        // hide it from imago would be a lie that the next version might punish.
        let dirty = self.dirty.then(|| "the dirty bit (not closed properly)".to_owned());
        let feature = self.features.iter().find(|feature| feature.hinders_reading()).map(ToString::to_string);
        match feature.or(dirty) {
            Some(feature) => Err(Problem::Unsupported { feature }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
