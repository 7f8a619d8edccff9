//! Manifests of points that stand: whether one counts, and one taken over for a disk that did not change.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use kvm_clone_core::blocks::Header;
use kvm_clone_core::wire::replica::{ManifestQuery, ManifestState};
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use super::marker::{self, sync_dir};
use super::progress::Progress;
use crate::manifest::Manifest;
use crate::place::{Place, io_error, remove_if_there};

/// Reads a manifest to its end: what it is worth. Ends early where programs are told to stop.
pub(super) fn state(query: &ManifestQuery, progress: &Progress) -> Result<ManifestState> {
    let path = Path::new(&query.path);
    if !path.try_exists().map_err(|error| io_error("looking at", path, &error))? {
        return Ok(ManifestState::Absent);
    }
    let manifest = match Manifest::open(path)? {
        Ok(manifest) => manifest,
        Err(why) => return Ok(ManifestState::Unusable { why }),
    };
    let header = manifest.header();
    if header.operation != query.operation.into_bytes() {
        return Ok(ManifestState::Unusable { why: "it belongs to another point".to_owned() });
    }
    let proved = manifest.prove(&mut |bytes| {
        progress.add(bytes);
        progress.go_on("the reading of the manifest")
    })?;
    let (disk_size, block) = (manifest.disk_size(), manifest.block());
    let (key, root) = (header.key.clone(), manifest.root());
    Ok(match proved {
        Ok(data_blocks) => ManifestState::Whole { disk_size, block, key, root, data_blocks },
        Err(why) => ManifestState::Unusable { why },
    })
}

/// Makes a manifest from a complete one: the same digests under another operation's id, durably.
pub(super) fn adopt(place: &Place, operation: Uuid, from: &str, to: &str) -> Result<()> {
    if from == to || !marker::get(place, operation)?.manifests.iter().any(|file| file == to) {
        return Err(Error::internal(format!("the marker does not name {to}")));
    }
    let (from, to) = (Path::new(from), Path::new(to));
    let unusable = |why: &str| {
        Error::verification(format!("the manifest {} cannot be taken over: {why}", from.display()))
            .with("path", from.display())
            .help("Run the command again: what it held is found out by reading")
    };
    let old = Manifest::open(from)?.map_err(|why| unusable(&why))?;
    let failed = |error| io_error("making the manifest", to, &error);
    remove_if_there(to).map_err(failed)?;
    let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(failed)?;
    new.set_len(old.file_len()).map_err(failed)?;
    old.for_each_piece(|offset, bytes| new.write_all_at(bytes, offset).map_err(failed))?;
    // The header last: it says that all of it is there.
    new.sync_all().map_err(failed)?;
    new.write_all_at(&Header { operation: operation.into_bytes(), ..old.header().clone() }.encode(), 0)
        .map_err(failed)?;
    new.sync_all().map_err(failed)?;
    sync_dir(to.parent().unwrap_or(Path::new("/"))).map_err(failed)
}

#[cfg(test)]
mod tests;
