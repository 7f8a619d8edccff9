//! Markers: what an operation makes on this host, written down before it is made.
//!
//! With them anybody who can take the operation's locks can finish or undo it, also without the controller's journal.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kvm_clone_core::wire::marker::Marker;
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use crate::place::{Place, io_error, remove_if_there};

/// No marker of ours is longer.
const SIZE_LIMIT: u64 = 1 << 20;

/// Writes a marker so that it is there, whole, after a power cut. A marker of the same operation is replaced.
pub(super) fn put(place: &Place, marker: &Marker) -> Result<()> {
    let path = path(place, marker.operation);
    let text = serde_json::to_vec_pretty(marker).map_err(|error| Error::internal(error.to_string()))?;
    write_whole(&path, &text).map_err(|error| io_error("writing the marker", &path, &error))
}

/// Writes a file in a directory of our state, so that after a power cut it is there, whole, or not at all.
pub(super) fn write_whole(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The directory itself may be new, and the one it lies in: their names must be as durable as what stands in them.
    path.ancestors().skip(1).take(3).try_for_each(sync_dir)
}

/// Every marker on this host, oldest first. One that cannot be read is an error: it may be all that is known about
/// files of ours.
pub(super) fn all(place: &Place) -> Result<Vec<Marker>> {
    let dir = place.markers();
    let entries = fs::read_dir(&dir).map_err(|error| io_error("listing", &dir, &error))?;
    let mut markers = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"))
    {
        // Another operation may have ended, and removed its marker, since the directory was read.
        match read(&path) {
            Ok(marker) => markers.push(marker),
            Err(_) if !path.exists() => {}
            Err(error) => return Err(error),
        }
    }
    markers.sort_by(|a, b| a.created.cmp(&b.created));
    Ok(markers)
}

/// The marker of one operation.
pub(super) fn get(place: &Place, operation: Uuid) -> Result<Marker> {
    read(&path(place, operation))
}

/// The marker of one operation, if there is one.
pub(super) fn find(place: &Place, operation: Uuid) -> Result<Option<Marker>> {
    match read(&path(place, operation)) {
        Err(_) if !path(place, operation).exists() => Ok(None),
        other => other.map(Some),
    }
}

fn read(path: &Path) -> Result<Marker> {
    let unreadable = |why: String| {
        Error::internal(format!("the marker {} cannot be read: {why}", path.display()))
            .with("path", path.display())
            .help("It lists files that an interrupted operation made; look at them, then remove it")
    };
    let size = fs::metadata(path).map_err(|error| io_error("reading", path, &error))?.len();
    if size > SIZE_LIMIT {
        return Err(unreadable(format!("it has {size} bytes")));
    }
    let text = fs::read(path).map_err(|error| io_error("reading", path, &error))?;
    serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))
}

/// Takes a marker away, durably; one that is not there is fine.
pub(super) fn remove(place: &Place, operation: Uuid) -> Result<()> {
    let path = path(place, operation);
    remove_if_there(&path).map_err(|error| io_error("removing", &path, &error))?;
    sync_dir(&place.markers()).map_err(|error| io_error("syncing", &place.markers(), &error))
}

fn path(place: &Place, operation: Uuid) -> PathBuf {
    place.markers().join(format!("{operation}.json"))
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
