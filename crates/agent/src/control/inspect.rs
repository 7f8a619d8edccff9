//! Looking at the source's images: what they are, what lies behind them, where their data is.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use kvm_clone_core::blocks::{ExtentKind, extents};
use kvm_clone_core::inventory::{ImageFacts, ImageFormat as Format};
use kvm_clone_core::wire::control::Reply;
use kvm_clone_core::wire::facts::Identity;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Error, Result};

use super::check::{self, Foreign};
use super::progress::Progress;
use super::sight::seen;
use super::storage;
use crate::device::inspect::{Backing, Feature};
use crate::device::{ImageFormat, ImageInfo, inspect};
use crate::lane::{open_reader, refuse_link};
use crate::place::io_error;

/// More files than this behind one image are a mistake, or a loop.
const CHAIN_LIMIT: usize = 200;
/// So much of what will be copied first is read while the lanes are still being opened.
const READ_AHEAD: u64 = 128 << 20;
/// Segments looked at for one answer, so that no answer grows with the disk.
const SEGMENTS_AT_ONCE: usize = 16 * 1024;

/// The image and every file behind it, top first. Only headers are read; nothing is opened for its contents.
pub(super) fn chain(image: &ImageSpec) -> Result<Vec<(ImageFacts, Identity)>> {
    let mut found = Vec::new();
    let mut path = PathBuf::from(&image.path);
    if image.no_link {
        refuse_link(&path)?;
    }
    let mut format = image.format.clone();
    loop {
        let header = look(&path, &format)?;
        let facts = std::fs::metadata(&path).map_err(|error| io_error("looking at", &path, &error))?;
        let next = match &header {
            Seen::Qcow2(info) => info.backing.clone(),
            Seen::Raw | Seen::Foreign(_) => None,
        };
        let mut about = image_facts(&path, &format, &header, &facts)?;
        if image.no_link && found.is_empty() {
            about.path = in_real_directory(&path);
        }
        let seen = seen(&path).map_err(|error| io_error("looking at", &path, &error))?;
        found.push((about, seen));
        let Some(backing) = next else { return Ok(found) };
        if found.len() > CHAIN_LIMIT {
            return Err(Error::unsupported(format!("more than {CHAIN_LIMIT} images stand behind {}", image.path)));
        }
        (path, format) = behind(&path, &backing)?;
    }
}

/// The path with every link resolved but one of the file's own, which is refused when it is opened.
fn in_real_directory(path: &Path) -> String {
    let dir = path.parent().and_then(|dir| std::fs::canonicalize(dir).ok());
    let real = dir.zip(path.file_name()).map(|(dir, name)| dir.join(name));
    real.unwrap_or_else(|| path.to_owned()).display().to_string()
}

/// What an image says of itself.
enum Seen {
    /// A raw disk may hold anything, a qcow2 header of the guest's making too: it says nothing about itself.
    Raw,
    Qcow2(ImageInfo),
    Foreign(Foreign),
}

fn look(path: &Path, format: &Format) -> Result<Seen> {
    let missing = |error: Error| {
        // What cannot be reached for want of rights is not missing.
        if !std::fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return error;
        }
        Error::conflict(format!("the image {} is missing", path.display())).with("path", path.display())
    };
    match format {
        Format::Other(name) => {
            std::fs::File::open(path).map_err(|error| missing(io_error("opening", path, &error)))?;
            foreign(path, name).map(Seen::Foreign)
        }
        Format::Raw => {
            std::fs::File::open(path).map_err(|error| missing(io_error("opening", path, &error)))?;
            Ok(Seen::Raw)
        }
        Format::Qcow2 => {
            let info = inspect(path).map_err(|error| missing(error.into()))?;
            if info.format == ImageFormat::Qcow2 {
                return Ok(Seen::Qcow2(info));
            }
            Err(Error::verification(format!("{} should be a qcow2 image and is none", path.display()))
                .with("path", path.display())
                .help("Correct the driver type of the disk in the machine's definition"))
        }
    }
}

/// Formats that qemu reads and we do not, as libvirt and qemu call them.
const FOREIGN: [&str; 5] = ["vmdk", "vdi", "vhdx", "vpc", "qed"];

fn foreign(path: &Path, format: &str) -> Result<Foreign> {
    let refused = |why: String| Foreign { virtual_size: 0, refused: Some(why) };
    if !FOREIGN.contains(&format) {
        return Ok(refused(format!("the format {format:?}, which is none that we know")));
    }
    if crate::program::find("qemu-img").is_none() {
        return Ok(refused(format!("the format {format}, and its host has no qemu-img to look at it")));
    }
    check::look(path, format)
}

fn image_facts(path: &Path, format: &Format, seen: &Seen, facts: &Metadata) -> Result<ImageFacts> {
    let kind = facts.file_type();
    let device_size = || crate::device::RawReader::open(path).map_or(0, |d| crate::device::ReadDevice::size(&d));
    let size = if kind.is_block_device() { device_size() } else { facts.len() };
    let mut out = ImageFacts {
        path: std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).display().to_string(),
        format: format.clone(),
        virtual_size: size,
        allocated: if kind.is_block_device() { size } else { facts.blocks() * 512 },
        file: storage::file_id(path, facts),
        snapshots: 0,
        bitmaps: false,
        unsupported: Vec::new(),
        by_qemu: Vec::new(),
        data_file: None,
        broken: None,
        regular_file: kind.is_file(),
        device_id: storage::device_id(facts),
        pool: None,
    };
    match seen {
        Seen::Raw => {}
        Seen::Qcow2(info) => add_qcow2(path, info, &mut out)?,
        Seen::Foreign(foreign) => {
            out.virtual_size = foreign.virtual_size;
            out.unsupported.extend(foreign.refused.clone());
            out.by_qemu.push(format!("the format {format}"));
        }
    }
    Ok(out)
}

fn add_qcow2(path: &Path, info: &ImageInfo, out: &mut ImageFacts) -> Result<()> {
    out.virtual_size = info.virtual_size;
    out.snapshots = info.snapshots;
    out.bitmaps = info.features.contains(&Feature::Bitmaps);
    let (by_qemu, by_none): (Vec<Feature>, Vec<Feature>) =
        info.features.iter().filter(|feature| feature.hinders_reading()).partition(|feature| feature.is_read_by_qemu());
    out.by_qemu.extend(by_qemu.iter().map(ToString::to_string));
    out.unsupported.extend(by_none.iter().map(ToString::to_string));
    if info.corrupt {
        out.unsupported.push("a header that is marked as corrupt (qemu-img check -r all repairs it)".to_owned());
    }
    if info.dirty {
        // Its reference counts may be old, which only writers need; our own reader refuses it all the same.
        out.by_qemu.push("reference counts of a machine that was not closed cleanly".to_owned());
    }
    match &info.data_file {
        Some(name) if info.features.contains(&Feature::ExternalDataFile) => {
            let data = PathBuf::from(name);
            if !data.is_absolute() {
                // qemu takes such a name from where it was itself started, which is nobody's to know.
                out.unsupported.push(format!("the data file {name:?}, whose path is not absolute"));
                return Ok(());
            }
            let facts = std::fs::metadata(&data).map_err(|error| {
                Error::conflict(format!(
                    "the data file {} of image {} cannot be looked at: {error}",
                    data.display(),
                    path.display()
                ))
                .with("path", data.display())
            })?;
            out.allocated += facts.blocks() * 512;
            out.data_file = Some(data.display().to_string());
        }
        None if info.features.contains(&Feature::ExternalDataFile) => {
            out.unsupported.push("a data file that it does not name".to_owned());
        }
        _ => {}
    }
    Ok(())
}

/// A file that an image names, by qemu's rules: relative to the image itself.
fn beside(image: &Path, name: &str) -> Result<PathBuf> {
    let file = Path::new(name);
    if file.is_absolute() {
        return Ok(file.to_owned());
    }
    if name.contains(':') {
        let error = Error::unsupported(format!("the file {name:?} beside {} is not a plain file", image.display()));
        return Err(error.with("path", image.display()));
    }
    let dir = std::fs::canonicalize(image).ok().and_then(|image| image.parent().map(Path::to_owned));
    Ok(dir.unwrap_or_default().join(file))
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
    Ok((beside(image, &backing.name)?, format))
}

/// How many bytes of each segment may hold data; segments without any are left out.
pub(super) fn segments(image: &ImageSpec, segment_len: u64, from: u64, progress: &Progress) -> Result<Reply> {
    let device = open_reader(image)?;
    if segment_len == 0 {
        return Err(Error::internal("segments of no length"));
    }
    let count = device.size().div_ceil(segment_len);
    let mut found = Vec::new();
    let mut ahead = if from == 0 { READ_AHEAD } else { 0 };
    for (looked, index) in (from..count).enumerate() {
        if looked == SEGMENTS_AT_ONCE {
            return Ok(Reply::Segments { segments: found, next: Some(index) });
        }
        let offset = index * segment_len;
        let found_here = device.extents(offset, segment_len.min(device.size() - offset))?;
        progress.add(1);
        let data = extents::data_len(&found_here);
        for extent in found_here.iter().filter(|extent| extent.kind == ExtentKind::Data) {
            let len = extent.len.min(ahead);
            device.read_ahead(extent.offset, len);
            ahead -= len;
        }
        if data > 0 {
            found.push((index, data));
        }
    }
    Ok(Reply::Segments { segments: found, next: None })
}
