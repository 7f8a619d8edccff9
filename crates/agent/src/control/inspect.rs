//! Looking at the source's images: what they are, what lies behind them, where their data is.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use kvm_clone_core::inventory::{FileId, ImageFacts, ImageFormat as Format};
use kvm_clone_core::wire::control::{Identity, Reply};
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Error, Result};

use crate::device::inspect::Backing;
use crate::device::{ImageFormat, ImageInfo, inspect};
use crate::lane::open_reader;
use crate::place::io_error;

/// More files than this behind one image are a mistake, or a loop.
const CHAIN_LIMIT: usize = 200;
/// Segments looked at for one answer, so that no answer grows with the disk.
const SEGMENTS_AT_ONCE: usize = 16 * 1024;

/// The image and every file behind it, top first. Only headers are read; nothing is opened for its contents.
pub(super) fn chain(image: &ImageSpec) -> Result<Vec<(ImageFacts, Identity)>> {
    let mut found = Vec::new();
    let mut path = PathBuf::from(&image.path);
    let mut format = image.format.clone();
    loop {
        let info = look(&path, &format)?;
        let facts = std::fs::metadata(&path).map_err(|error| io_error("looking at", &path, &error))?;
        let next = info.as_ref().and_then(|info| info.backing.clone());
        found.push((image_facts(&path, &format, info.as_ref(), &facts), identity(&facts)));
        let Some(backing) = next else { return Ok(found) };
        if found.len() > CHAIN_LIMIT {
            return Err(Error::unsupported(format!("more than {CHAIN_LIMIT} images stand behind {}", image.path)));
        }
        (path, format) = behind(&path, &backing)?;
    }
}

/// What the image says of itself; nothing for formats that we do not read.
fn look(path: &Path, format: &Format) -> Result<Option<ImageInfo>> {
    let missing = |error: Error| {
        if path.exists() { error } else { Error::conflict(format!("the image {} is missing", path.display())) }
    };
    match format {
        Format::Other(_) => Ok(None),
        // A raw disk may hold anything, a qcow2 header of the guest's making too: it says nothing about itself.
        Format::Raw => {
            std::fs::File::open(path).map_err(|error| missing(io_error("opening", path, &error)))?;
            Ok(None)
        }
        Format::Qcow2 => {
            let info = inspect(path).map_err(|error| missing(error.into()))?;
            if info.format == ImageFormat::Qcow2 {
                return Ok(Some(info));
            }
            Err(Error::verification(format!("{} should be a qcow2 image and is none", path.display()))
                .with("path", path.display())
                .help("Correct the driver type of the disk in the machine's definition"))
        }
    }
}

fn image_facts(path: &Path, format: &Format, info: Option<&ImageInfo>, facts: &Metadata) -> ImageFacts {
    let kind = facts.file_type();
    let device_size = || crate::device::RawReader::open(path).map_or(0, |d| crate::device::ReadDevice::size(&d));
    let size = if kind.is_block_device() { device_size() } else { facts.len() };
    let mut unsupported: Vec<String> = Vec::new();
    if let Some(info) = info {
        unsupported.extend(info.features.iter().filter(|f| f.hinders_reading()).map(ToString::to_string));
        if info.corrupt {
            unsupported.push("it is marked as corrupt (qemu-img check -r all repairs it)".to_owned());
        }
        if info.dirty {
            unsupported
                .push("it was not closed cleanly (start and stop the machine, or qemu-img check -r all)".to_owned());
        }
    }
    ImageFacts {
        path: std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).display().to_string(),
        format: format.clone(),
        virtual_size: info.map_or(size, |info| info.virtual_size),
        allocated: if kind.is_block_device() { size } else { facts.blocks() * 512 },
        file: FileId { device: facts.dev(), inode: facts.ino(), length: facts.len() },
        snapshots: info.map_or(0, |info| info.snapshots),
        unsupported,
        regular_file: kind.is_file(),
        pool: None,
    }
}

pub(super) fn identity(facts: &Metadata) -> Identity {
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Identity {
        size: facts.len(),
        inode: (facts.dev(), facts.ino()),
        modified: nanos(facts.mtime(), facts.mtime_nsec()),
        changed: nanos(facts.ctime(), facts.ctime_nsec()),
    }
}

/// The file behind an image. A format that the image does not name is not guessed: a guest that can write a raw disk
/// could make it look like anything.
fn behind(image: &Path, backing: &Backing) -> Result<(PathBuf, Format)> {
    let refuse = |why: &str| {
        Error::unsupported(format!("the file behind {} {why}", image.display()))
            .with("path", image.display())
            .with("backing", &backing.name)
    };
    let format = match backing.format.as_deref() {
        Some("raw") => Format::Raw,
        Some("qcow2") => Format::Qcow2,
        Some(other) => Format::Other(other.to_owned()),
        None => {
            return Err(refuse("has no format named in the image")
                .help("Name it: qemu-img rebase -u -b BACKING -F FORMAT IMAGE"));
        }
    };
    let path = Path::new(&backing.name);
    if path.is_absolute() {
        return Ok((path.to_owned(), format));
    }
    if backing.name.contains(':') {
        return Err(refuse("is not a plain file"));
    }
    let dir = std::fs::canonicalize(image).ok().and_then(|image| image.parent().map(Path::to_owned));
    Ok((dir.unwrap_or_default().join(path), format))
}

/// How many bytes of each segment may hold data; segments without any are left out.
pub(super) fn segments(image: &ImageSpec, segment_len: u64, from: u64) -> Result<Reply> {
    let device = open_reader(image)?;
    if segment_len == 0 {
        return Err(Error::internal("segments of no length"));
    }
    let count = device.size().div_ceil(segment_len);
    let mut found = Vec::new();
    for (looked, index) in (from..count).enumerate() {
        if looked == SEGMENTS_AT_ONCE {
            return Ok(Reply::Segments { segments: found, next: Some(index) });
        }
        let offset = index * segment_len;
        let extents = device.extents(offset, segment_len.min(device.size() - offset))?;
        let data = kvm_clone_core::blocks::extents::data_len(&extents);
        if data > 0 {
            found.push((index, data));
        }
    }
    Ok(Reply::Segments { segments: found, next: None })
}
