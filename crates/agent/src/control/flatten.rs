//! Overlays brought into the images under them, by `qemu-img commit`: the images may be other programs' (with snapshots and
//! bitmaps inside, which qemu keeps), and qemu's locks keep a guest from starting meanwhile.
//!
//! The definition names the overlay until it is done. So whatever moment this is interrupted at, the disk reads as the new
//! point: from the overlay, which keeps all that it holds (`-d`), also where it is in the image already.
//!
//! An overlay may stand on the one that is merged: that of a newer point, over that of a kept one that goes. It reads the same
//! from both, so only its header must name the image, for whoever goes by headers.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use kvm_clone_core::inventory::ImageFormat as Format;
use kvm_clone_core::size::whole_sectors;
use kvm_clone_core::wire::facts::Identity;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::wire::replica::{Flatten, Flattened, OverlayFile, Rewritten};
use kvm_clone_core::{Code, Error, Result};

use super::progress::Progress;
use super::session::Session;
use super::sight::seen;
use super::{blockdev, check, durable, image, marker, settle};
use crate::device::inspect::Feature;
use crate::device::{ImageFormat, inspect};
use crate::place::io_error;
use crate::program::Outcome;

/// Brings what the overlay holds into its image, durably.
pub(super) fn flatten(session: &Session, order: &Flatten, progress: &Progress) -> Result<Flattened> {
    let (known, is_last) = marked(session, order)?;
    let (path, image) = (Path::new(&order.overlay.path), Path::new(&known.image));
    let (mut notes, mut overlay, before) = (Vec::new(), None, identity_of(image)?);
    if path.try_exists().map_err(|error| io_error("looking at", path, &error))? {
        expect_ours(path)?;
        // What nobody wrote to since it was merged is not merged again: newer points may be in the image by now.
        let now = identity_of(path)?;
        if !known.flattened.is_some_and(|then| then.is_same_file(&now)) {
            notes = make_way(session, order, &known, progress)?;
            commit(session, &order.overlay, progress)?;
        }
        overlay = Some(identity_of(path)?);
    } else if known.flattened.is_none() {
        return Err(Error::conflict(format!("the overlay {} is missing", path.display()))
            .with("path", path.display())
            .help("It held the newest point of the disk: bring it back, or copy the machine anew with --force"));
    }
    if known.format == Format::Raw && is_last {
        trim(image, order.exact_size)?;
    }
    let files = [&known.image].into_iter().chain(order.overlay.data_files.iter().map(|(_, data)| data));
    for file in files.map(Path::new) {
        let sync = || File::open(file)?.sync_all();
        durable::waiting(file, progress, sync).map_err(|error| io_error("syncing", file, &error))?;
    }
    let above =
        order.above.as_deref().map(|above| stand_on(session, Path::new(above), &known, progress)).transpose()?;
    Ok(Flattened { overlay, image: Rewritten { before, after: identity_of(image)? }, above, notes })
}

/// Has the header of an overlay name the image, whatever it named before; nothing that it holds is touched.
fn stand_on(session: &Session, above: &Path, known: &OverlayFile, progress: &Progress) -> Result<Rewritten> {
    expect_ours(above)?;
    let before = identity_of(above)?;
    let (name, format) = (above.display().to_string(), known.format.to_string());
    let arguments = ["rebase", "-q", "-u", "-f", "qcow2", "-b", &known.image, "-F", &format, "--", &name];
    let outcome = image::qemu_img(session, &arguments, progress)?;
    if !outcome.status.success() {
        return Err(refused(&outcome, &format!("{name} cannot be told that it stands on {} now", known.image), above));
    }
    let sync = || File::open(above)?.sync_all();
    durable::waiting(above, progress, sync).map_err(|error| io_error("syncing", above, &error))?;
    Ok(Rewritten { before, after: identity_of(above)? })
}

/// What the marker says of the overlay; it must name it with its image. Also whether nothing is merged into that image after it:
/// then it gives the image its size.
fn marked(session: &Session, order: &Flatten) -> Result<(OverlayFile, bool)> {
    let marker = marker::get(&session.place, order.operation)?;
    let known = marker.overlays.iter().find(|known| known.path == order.overlay.path);
    let is_last = |known: &OverlayFile| {
        let last = marker.overlays.iter().rfind(|other| other.image == known.image);
        last.is_some_and(|last| last.path == known.path)
    };
    let below = |known: &OverlayFile| {
        let (image, under) = (&[(known.image.clone(), known.format.clone())][..], &known.under[..]);
        order.overlay.backing == [image, under].concat()
    };
    known
        .filter(|known| below(known))
        .filter(|known| (known.exact_size, &known.above) == (order.exact_size, &order.above))
        .map(|known| (known.clone(), is_last(known)))
        .ok_or_else(|| Error::internal(format!("the marker does not name {} and its image", order.overlay.path)))
}

/// Before qemu opens it: it is a file that names no data file. What is under it is told to qemu, whatever it names itself.
fn expect_ours(path: &Path) -> Result<()> {
    let is_file = fs::symlink_metadata(path).is_ok_and(|facts| facts.is_file());
    let info = inspect(path).map_err(Error::from)?;
    let data_file = info.data_file.is_some() || info.features.contains(&Feature::ExternalDataFile);
    if is_file && info.format == ImageFormat::Qcow2 && !data_file {
        return Ok(());
    }
    Err(Error::verification(format!("{} is not the overlay that was made there", path.display()))
        .with("path", path.display())
        .help("Somebody meddles with the directory; look at it with qemu-img info"))
}

/// Takes away what keeps qemu from letting an image grow: bitmaps that were never closed, hence worth nothing.
fn make_way(session: &Session, order: &Flatten, known: &OverlayFile, progress: &Progress) -> Result<Vec<String>> {
    if known.format != Format::Qcow2 {
        return Ok(Vec::new());
    }
    let image = inspect(Path::new(&known.image)).map_err(Error::from)?;
    if image.virtual_size >= order.exact_size {
        return Ok(Vec::new());
    }
    let mut notes = Vec::new();
    for bitmap in check::bitmaps(&known.image)?.into_iter().filter(check::Bitmap::is_lost) {
        settle::remove_bitmap(session, &known.image, &bitmap.name, progress)?;
        let name = bitmap.name;
        notes.push(format!(
            "the bitmap {name:?} in {} was removed, with which the image cannot grow: it was never closed, and of no use",
            known.image
        ));
    }
    Ok(notes)
}

fn commit(session: &Session, overlay: &ImageSpec, progress: &Progress) -> Result<()> {
    let chain = blockdev::writable(overlay);
    let arguments = ["commit", "-q", "-d", "--", &chain];
    let outcome = image::qemu_img(session, &arguments, progress)?;
    if outcome.status.success() {
        return Ok(());
    }
    let path = Path::new(&overlay.path);
    Err(refused(&outcome, &format!("{} cannot be brought into the image under it", overlay.path), path))
}

/// What qemu-img would not do, and why.
fn refused(outcome: &Outcome, what: &str, path: &Path) -> Error {
    let said = outcome.output.trim();
    // qemu says no more than this (its `block/file-posix.c`, `raw_check_lock_bytes`; strerror(3)); LC_ALL is C.
    let (code, help) = if said.contains("Failed to get") {
        (Code::Conflict, "Stop the machine that uses it, and run the command again")
    } else if said.contains("No space left on device") {
        (Code::InsufficientResources, "Free space at the target; the machine's newest point is whole all the same")
    } else {
        (Code::Transfer, "Look at the images: qemu-img check; the machine's newest point is whole all the same")
    };
    Error::new(code, what).with("path", path.display()).with("qemu_img", said).help(help)
}

/// Gives a raw image its exact size, where qemu rounded it up to whole sectors. More than that is never cut.
fn trim(image: &Path, exact_size: u64) -> Result<()> {
    let failed = |error: std::io::Error| io_error("giving its size to", image, &error);
    let file = OpenOptions::new().write(true).open(image).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() || facts.len() == exact_size {
        return Ok(());
    }
    if whole_sectors(facts.len()) != whole_sectors(exact_size) {
        return Err(Error::verification("the flattened image has another size than its source")
            .with("path", image.display())
            .with("size", facts.len())
            .with("expected", exact_size));
    }
    file.set_len(exact_size).map_err(failed)
}

fn identity_of(path: &Path) -> Result<Identity> {
    seen(path).map_err(|error| io_error("looking at", path, &error))
}

#[cfg(test)]
mod tests;
