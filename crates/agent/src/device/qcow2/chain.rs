//! Opening an image and what lies under it. Every file is opened once, looked at, and only then given to imago, from
//! the bottom up, with its backing image already in place: imago itself opens nothing.

use std::fs::File;
use std::path::{Path, PathBuf};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use super::super::inspect::{Backing, ImageFormat, inspect_open};
use super::super::{DeviceError, Problem, Result, file};
use super::layer::{Layer, classify};

/// libvirt's own limit for the depth of a chain (`VIR_STORAGE_SOURCE_MAX_DEPTH`); also ends a chain that bites its tail.
const MAX_DEPTH: usize = 200;

/// A file that the plan names, and the format libvirt declares for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedImage {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub format: ImageFormat,
}

/// A file of the chain that may be opened.
struct Found {
    /// As the image above it names it: what it names in turn is relative to that.
    path: PathBuf,
    /// Where that leads: what was compared with the plan is what is opened.
    real: PathBuf,
    format: ImageFormat,
}

/// A file of the chain that is open.
struct Open {
    path: PathBuf,
    file: File,
    size: u64,
    format: ImageFormat,
}

/// Opens an image and its chain.
pub(super) fn open(path: &Path, allowed: &[NamedImage]) -> Result<FormatAccess<Layer>> {
    let mut chain = Vec::new();
    let mut next = Some(Found { real: path.to_owned(), path: path.to_owned(), format: ImageFormat::Qcow2 });
    while let Some(image) = next {
        if chain.len() == MAX_DEPTH {
            return Err(DeviceError::corrupt(path, format!("its backing chain is longer than {MAX_DEPTH} images")));
        }
        let (file, size) = file::open_source(&image.real)?;
        next = match image.format {
            ImageFormat::Raw => None,
            ImageFormat::Qcow2 => backing_of(&image.path, &file, size, allowed)?,
        };
        chain.push(Open { path: image.path, file, size, format: image.format });
    }
    let mut access = None;
    for image in chain.into_iter().rev() {
        access = Some(open_one(image, access)?);
    }
    access.ok_or_else(|| DeviceError::corrupt(path, "it has no layers"))
}

/// Gives one file to imago.
fn open_one(image: Open, backing: Option<FormatAccess<Layer>>) -> Result<FormatAccess<Layer>> {
    let layer = Layer::new(image.file, &image.path, image.size);
    let opened = match image.format {
        ImageFormat::Raw => Raw::open_image(layer, false).map(FormatAccess::new),
        ImageFormat::Qcow2 => Qcow2::<Layer>::builder(layer)
            .backing(backing)
            .data_file(None)
            .open(DenyImplicitOpenGate::default())
            .map(FormatAccess::new),
    };
    opened.map_err(|error| classify(&image.path, "open the image", error))
}

/// Checks an open qcow2 image, and finds its backing file among those that are allowed.
fn backing_of(path: &Path, file: &File, size: u64, allowed: &[NamedImage]) -> Result<Option<Found>> {
    let info = inspect_open(path, file, size)?;
    if info.format != ImageFormat::Qcow2 {
        return Err(DeviceError::corrupt(path, "it has no qcow2 header"));
    }
    info.readable().map_err(|problem| DeviceError::new(path, problem))?;
    info.backing.map(|backing| find(path, &backing, allowed)).transpose()
}

/// The allowed file that an image means, by what both names lead to.
fn find(image: &Path, backing: &Backing, allowed: &[NamedImage]) -> Result<Found> {
    let file = resolve(image, &backing.name)?;
    let not_named = || {
        let format = backing.format.as_ref().map(|format| format!(" ({format})")).unwrap_or_default();
        DeviceError::new(image, Problem::NotNamed { named: format!("{}{format}", file.display()) })
    };
    // To look where a link leads is to open nothing. A file that is not there cannot be one that is allowed and there.
    let real = file.canonicalize().map_err(|_| not_named())?;
    let named = allowed
        .iter()
        .find(|named| named.path.canonicalize().is_ok_and(|path| path == real))
        .filter(|named| backing.format.as_ref().is_none_or(|format| *format == named.format.to_string()))
        .ok_or_else(not_named)?;
    Ok(Found { format: named.format, path: file, real })
}

/// The file that a header's words mean, by qemu's rules (`path_has_protocol`, `path_combine`): a colon before the first
/// slash makes a protocol, of which `file:` alone is a file; what is relative is so to the image's directory.
fn resolve(image: &Path, name: &str) -> Result<PathBuf> {
    let plain = match (name.strip_prefix("file:"), name.split('/').next()) {
        (Some(plain), _) => plain,
        (None, Some(first)) if first.contains(':') => {
            let feature = format!("a backing file that is no file: {name:?}");
            return Err(DeviceError::new(image, Problem::Unsupported { feature }));
        }
        _ => name,
    };
    Ok(image.parent().unwrap_or(Path::new("")).join(plain))
}
