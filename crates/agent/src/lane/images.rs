//! Images as commands name them, opened.

use std::path::Path;
use std::sync::Arc;

use kvm_clone_core::blocks::{BLOCK, BlockSize};
use kvm_clone_core::inventory::ImageFormat as Format;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Code, Error, Result};

use crate::device::{
    ChunkAllocator, DeviceError, ImageFormat, NamedImage, NbdReader, PartWriter, Problem, Qcow2Reader, Qcow2Writer,
    RawReader, RawWriter, ReadDevice, WriteDevice,
};

/// Opens an image read-only, with the backing files that the spec names and no others.
pub(crate) fn open_reader(image: &ImageSpec) -> Result<Box<dyn ReadDevice>> {
    if let Some(export) = &image.export {
        return Ok(Box::new(NbdReader::open(Path::new(&export.socket), &export.name)?));
    }
    let path = Path::new(&image.path);
    match known(&image.format, &image.path)? {
        ImageFormat::Raw if image.no_link => {
            refuse_link(path)?;
            Ok(Box::new(RawReader::open_without_link(path)?))
        }
        ImageFormat::Raw => Ok(Box::new(RawReader::open(path)?)),
        ImageFormat::Qcow2 => {
            let named = image
                .backing
                .iter()
                .map(|(path, format)| Ok(NamedImage { path: path.into(), format: known(format, path)? }))
                .collect::<Result<Vec<_>>>()?;
            Ok(Box::new(Qcow2Reader::open(path, &named)?))
        }
    }
}

/// Refuses a symbolic link in words. Who opens the file forbids links once more: one may appear in between.
pub(crate) fn refuse_link(path: &Path) -> Result<()> {
    if !std::fs::symlink_metadata(path).is_ok_and(|facts| facts.is_symlink()) {
        return Ok(());
    }
    let path = path.display();
    Err(Error::unsupported(format!("{path} is a symbolic link, which is not followed there"))
        .with("path", path)
        .help("Put the file itself in its place: whoever may write to its directory could have us read any file"))
}

/// Opens a staging image of ours for writing blocks of this size. Of those that are smaller than its clusters, a new cluster is
/// filled up with what the image shows there.
pub(crate) fn open_writer(
    image: &ImageSpec,
    chunks: Arc<dyn ChunkAllocator>,
    block: BlockSize,
) -> Result<Box<dyn WriteDevice>> {
    let path = Path::new(&image.path);
    match known(&image.format, &image.path)? {
        ImageFormat::Raw => Ok(Box::new(RawWriter::open(path)?)),
        ImageFormat::Qcow2 if block.bytes() < BLOCK => {
            let below = below(image).map(|below| open_reader(&below)).transpose()?;
            Ok(Box::new(PartWriter::new(Qcow2Writer::open(path, chunks)?, below)))
        }
        ImageFormat::Qcow2 => Ok(Box::new(Qcow2Writer::open(path, chunks)?)),
    }
}

/// The image under an overlay, with those behind it.
fn below(image: &ImageSpec) -> Option<ImageSpec> {
    let ((path, format), behind) = image.backing.split_first()?;
    let below = ImageSpec::new(path, format.clone());
    Some(ImageSpec { backing: behind.to_vec(), data_files: image.data_files.clone(), ..below })
}

/// The format, if it is one that we read and write ourselves.
pub(crate) fn known(format: &Format, path: &str) -> Result<ImageFormat> {
    match format {
        Format::Raw => Ok(ImageFormat::Raw),
        Format::Qcow2 => Ok(ImageFormat::Qcow2),
        Format::Other(name) => Err(Error::unsupported(format!("images of format {name} cannot be copied yet"))
            .with("path", path)
            .help(format!("Convert it first: qemu-img convert -O qcow2 {path} NEW"))),
    }
}

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        let code = match &error.problem {
            Problem::NoSpace(_) => Code::InsufficientResources,
            Problem::Corrupt(_) => Code::Verification,
            Problem::Unsupported { .. } | Problem::NotADisk | Problem::TooLarge(_) => Code::Unsupported,
            Problem::NotNamed { .. } => Code::Conflict,
            Problem::Media(_) | Problem::Io { .. } | Problem::BadRequest { .. } => Code::Transfer,
        };
        let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
        let mut out = Self::new(code, format!("{error}{cause}")).with("path", error.path.display());
        if let Some(offset) = error.offset {
            out = out.with("offset", offset);
        }
        match &error.problem {
            Problem::NoSpace(_) => out.help("Free space at the target, or choose another pool with --pool"),
            Problem::TooLarge(_) => {
                out.help("Copy it as qcow2 (--disk-format qcow2), or into a pool on another file system (--pool)")
            }
            Problem::Media(_) => out.help("The storage reports errors: look at the host's kernel log"),
            Problem::Corrupt(_) => out.help("Look at the image: qemu-img check"),
            Problem::Unsupported { .. } => out.help("Convert the image first: qemu-img convert -O qcow2 OLD NEW"),
            Problem::NotNamed { .. } => out.help("The image's backing file changed; run the command again"),
            _ => out,
        }
    }
}
