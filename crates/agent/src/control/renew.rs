//! Files of a replica that no definition names: right after the define that is the commit of a sync, what is staged for them takes
//! their places.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kvm_clone_core::Result;
use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::wire::marker::Marker;
use kvm_clone_core::wire::replica::RenewedFile;
use uuid::Uuid;

use super::emulator::StateLock;
use super::progress::Progress;
use super::session::Session;
use super::{checksum, files, marker};
use crate::place::io_error;

/// Keeps emulators away from what is to be renewed, until it is, or until this agent ends. Directories that the operation itself
/// made hold nothing yet, and are to go without a trace where it is undone.
pub(super) fn hold(session: &Session, operation: Uuid) -> Result<()> {
    let marker = marker::get(&session.place, operation)?;
    let held = locks(session, &marker, |dir| !marker.directories.iter().any(|own| Path::new(own) == dir))?;
    session.hold_states(held);
    Ok(())
}

/// Has the staged files take their places, unless one of those that are there is not what it was: it is somebody's. What was done by an
/// earlier order stays done.
pub(super) fn renew(
    session: &Session,
    operation: Uuid,
    progress: &Progress,
) -> Result<std::result::Result<(), String>> {
    let marker = marker::get(&session.place, operation)?;
    // Until all of it is durable.
    let _held = locks(session, &marker, |_| true)?;
    let left: Vec<&RenewedFile> = marker.renewed.iter().filter(|file| !is_done(file)).collect();
    for file in &left {
        if content(&file.path, progress)?.is_some_and(|now| Some(now) != file.before) {
            return Ok(Err(format!("{} was changed since the sync began", file.path)));
        }
    }
    for file in left {
        take_place(file)?;
    }
    Ok(Ok(()))
}

/// The locks of all states: those that are held already, and the others.
fn locks(session: &Session, marker: &Marker, wanted: impl Fn(&Path) -> bool) -> Result<Vec<StateLock>> {
    let dirs = marker.renewed.iter().filter_map(|file| Path::new(&file.path).parent());
    let dirs: BTreeSet<PathBuf> = dirs.filter(|dir| wanted(dir)).map(Path::to_owned).collect();
    let mut locks = session.held_states();
    locks.retain(|lock| dirs.iter().any(|dir| lock.is_of(dir)));
    for dir in dirs {
        if !locks.iter().any(|lock| lock.is_of(&dir)) {
            locks.push(StateLock::take(&dir)?);
        }
    }
    Ok(locks)
}

fn is_done(file: &RenewedFile) -> bool {
    !Path::new(file.staging.as_ref().unwrap_or(&file.path)).exists()
}

/// SHA-256 of what a file holds; none where there is no such file.
fn content(path: &str, progress: &Progress) -> Result<Option<String>> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(None);
    }
    let image = ImageSpec::new(path, ImageFormat::Raw).without_link();
    checksum::compute(&image, Algorithm::Sha256, progress).map(Some)
}

fn take_place(file: &RenewedFile) -> Result<()> {
    let path = Path::new(&file.path);
    match &file.staging {
        Some(staging) => {
            fs::rename(staging, path).map_err(|error| io_error("renaming", Path::new(staging), &error))?;
            files::sync_parent(Path::new(staging))?;
        }
        None => fs::remove_file(path).map_err(|error| io_error("removing", path, &error))?,
    }
    files::sync_parent(path)
}

#[cfg(test)]
mod tests;
