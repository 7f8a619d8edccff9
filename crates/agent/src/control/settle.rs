//! Images that were carried as the files that they are, snapshots and all: the last that happens to them.

use std::path::Path;

use kvm_clone_core::wire::control::NewImage;
use kvm_clone_core::wire::facts::FinishedImage;
use kvm_clone_core::{Error, Result};

use super::progress::Progress;
use super::session::Session;
use super::{check, image, marker};
use crate::device::inspect::Feature;
use crate::device::{ImageFormat, inspect};

/// qemu-img(1), "check": well, and with clusters that are lost but belong to nobody, which the source has as well.
const WELL: [i32; 2] = [0, 3];

/// Removes what other programs keep in the image for the source's sake, has qemu check it, and hands it over.
pub(super) fn settle(session: &Session, new: &NewImage, progress: &Progress) -> Result<FinishedImage> {
    let path = &new.image.path;
    if !marker::get(&session.place, new.operation)?.staging.contains(path) {
        return Err(Error::internal(format!("the marker does not name {path}")));
    }
    stands_alone(path)?;
    for bitmap in check::bitmaps(path)? {
        remove_bitmap(session, path, &bitmap.name, progress).map_err(|error| {
            error.help("Remove it from the source's image (qemu-img bitmap --remove), and copy it again")
        })?;
    }
    image::check(session, path, &WELL, progress)?;
    image::complete(session, new, progress)
}

/// Removes a bitmap from a qcow2 image.
pub(super) fn remove_bitmap(session: &Session, path: &str, name: &str, progress: &Progress) -> Result<()> {
    let arguments = ["bitmap", "--remove", "-f", "qcow2", "--", path, name];
    let outcome = image::qemu_img(session, &arguments, progress)?;
    if outcome.status.success() {
        return Ok(());
    }
    Err(Error::transfer(format!("bitmap {name:?} cannot be removed from {path}"))
        .with("path", path)
        .with("qemu_img", outcome.output.trim()))
}

/// Before qemu opens it: the file names no other one. The plan has seen to that at the source, whose word is not enough.
fn stands_alone(path: &str) -> Result<()> {
    let info = inspect(Path::new(path)).map_err(Error::from)?;
    let alone = info.format == ImageFormat::Qcow2
        && info.backing.is_none()
        && info.data_file.is_none()
        && !info.features.contains(&Feature::ExternalDataFile);
    if alone {
        return Ok(());
    }
    Err(Error::verification(format!("{path} is not the image that was planned: it names other files"))
        .with("path", path)
        .help("The source's image changed, or somebody meddles: look at it with qemu-img info"))
}
