//! Manifests of points that stand: whether one counts, and one taken over for a disk that did not change.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use kvm_clone_core::blocks::manifest::{ENTRY_LEN, HEADER_LEN, entry_offset};
use kvm_clone_core::blocks::{BLOCK, BlockIndex, Digest, ExtentKind, Header, RootHasher};
use kvm_clone_core::wire::replica::{ManifestQuery, ManifestState};
use kvm_clone_core::{Code, Error, Result};
use uuid::Uuid;

use super::marker::{self, sync_dir};
use super::progress::Progress;
use super::session::Session;
use crate::device::{RawReader, ReadDevice};
use crate::place::{Place, io_error};

/// Bytes of entries read at once.
const BATCH: u64 = 1 << 16;

/// Reads a manifest to its end: what it is worth. Ends early where programs are told to stop.
pub(super) fn state(session: &Session, query: &ManifestQuery, progress: &Progress) -> Result<ManifestState> {
    let path = Path::new(&query.path);
    if !path.try_exists().map_err(|error| io_error("looking at", path, &error))? {
        return Ok(ManifestState::Absent);
    }
    let (file, header) = match open(path)? {
        Ok(opened) => opened,
        Err(why) => return Ok(ManifestState::Unusable { why }),
    };
    let unusable = |why: &str| Ok(ManifestState::Unusable { why: why.to_owned() });
    let Some(root) = header.root else { return unusable("it is not complete") };
    if header.operation != query.operation.into_bytes() {
        return unusable("it belongs to another point");
    }
    if u64::from(header.geometry.block_size()) != BLOCK {
        return unusable("its blocks have another size");
    }
    let mut hasher = RootHasher::new(&header.key, header.geometry);
    let mut data_blocks = 0;
    for_each_entry(session, &file, |index, digest| {
        data_blocks += 1;
        progress.add(ENTRY_LEN);
        hasher.push(index, digest).map_err(|error| Error::internal(format!("the manifest's order: {error}")))
    })?;
    if hasher.finish() != root {
        return unusable("its digests are not those that it was completed with");
    }
    Ok(ManifestState::Whole { disk_size: header.geometry.disk_size(), key: header.key, root, data_blocks })
}

/// An open manifest of its right length, or what is wrong with it.
fn open(path: &Path) -> Result<std::result::Result<(RawReader, Header), String>> {
    let file = RawReader::open_without_link(path)?;
    let mut head = vec![0; HEADER_LEN];
    if file.size() < HEADER_LEN as u64 {
        return Ok(Err("it is too short".to_owned()));
    }
    file.read_at(&mut head, 0)?;
    Ok(match Header::decode(&head) {
        Ok(header) if header.geometry.file_len() == file.size() => Ok((file, header)),
        Ok(_) => Err("it has another length than its disk asks for".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

/// The entries of blocks that hold data, in order.
fn for_each_entry(
    session: &Session,
    file: &RawReader,
    mut act: impl FnMut(BlockIndex, Digest) -> Result<()>,
) -> Result<()> {
    for_each_piece(file, |offset, bytes| {
        if session.is_stopping() {
            return Err(Error::new(Code::Cancelled, "the reading of the manifest was stopped"));
        }
        let first = (offset - HEADER_LEN as u64) / ENTRY_LEN;
        let digests =
            (first..).zip(bytes.as_chunks::<16>().0).map(|(index, entry)| (BlockIndex(index), Digest(*entry)));
        digests.filter(|(_, digest)| !digest.is_zero()).try_for_each(|(index, digest)| act(index, digest))
    })
}

/// The entries' bytes, holes left out: where they lie in the file, and what they are.
fn for_each_piece(file: &RawReader, mut act: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let start = entry_offset(BlockIndex(0));
    let mut buffer = vec![0; usize::try_from(BATCH).unwrap_or(0)];
    // Pieces of a fixed grid, so that a hole that begins anywhere never cuts an entry.
    let mut offset = start;
    while offset < file.size() {
        let len = BATCH.min(file.size() - offset);
        if file.extents(offset, len)?.iter().any(|extent| extent.kind == ExtentKind::Data) {
            let piece = &mut buffer[..usize::try_from(len).unwrap_or(0)];
            file.read_at(piece, offset)?;
            act(offset, piece)?;
        }
        offset += len;
    }
    Ok(())
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
    let (old, header) = open(from)?.map_err(|why| unusable(&why))?;
    if header.root.is_none() {
        return Err(unusable("it is not complete"));
    }
    let failed = |error| io_error("making the manifest", to, &error);
    match fs::remove_file(to) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(failed)?;
    new.set_len(old.size()).map_err(failed)?;
    for_each_piece(&old, |offset, bytes| new.write_all_at(bytes, offset).map_err(failed))?;
    // The header last: it says that all of it is there.
    new.sync_all().map_err(failed)?;
    new.write_all_at(&Header { operation: operation.into_bytes(), ..header }.encode(), 0).map_err(failed)?;
    new.sync_all().map_err(failed)?;
    sync_dir(to.parent().unwrap_or(Path::new("/"))).map_err(failed)
}

#[cfg(test)]
mod tests;
