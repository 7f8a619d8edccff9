//! Seals of this host's disks: taken, kept, and looked at. What makes one trusted is decided in `kvm_clone_core::seal`.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use kvm_clone_core::Result;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::seal::{Proof, Seal, SealedFile};
use kvm_clone_core::wire::facts::Identity;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::wire::replica::{SealOrder, SealQuery, SealState};
use uuid::Uuid;

use super::marker::{sync_dir, write_whole};
use super::sight::{facts, look, settled};
use crate::place::{Place, io_error};

/// No seal of ours is longer.
const SIZE_LIMIT: u64 = 1 << 20;

/// Writes seals of what the files hold now, durably, and removes those of the lineage's points before.
pub(super) fn take(place: &Place, orders: &[SealOrder]) -> Result<()> {
    let boot_id = boot_id()?;
    for order in orders {
        let seal = Seal {
            operation: order.operation,
            disk: order.disk.clone(),
            root: order.root,
            key: order.key,
            boot_id: boot_id.clone(),
            proof: seal_files(order).map_or_else(Proof::Nothing, Proof::Files),
        };
        let path = path(place, order.operation, &order.disk);
        write_whole(&path, &seal.encode()).map_err(|error| io_error("writing the seal", &path, &error))?;
    }
    outdate(place, orders)
}

/// What the seals are worth now.
pub(super) fn states(place: &Place, queries: &[SealQuery]) -> Result<Vec<SealState>> {
    let boot_id = boot_id()?;
    Ok(queries.iter().map(|query| state(place, query, &boot_id)).collect())
}

/// Removes what older operations of the same lineage sealed: a key is one lineage's alone, and its newest point the only one
/// that is asked for. Seals of others, and those that cannot be read, stay.
fn outdate(place: &Place, orders: &[SealOrder]) -> Result<()> {
    let dir = place.seals();
    let is_outdated =
        |seal: &Seal| orders.iter().any(|order| order.key == seal.key && order.operation != seal.operation);
    let remove = || -> io::Result<()> {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if read(&path).is_ok_and(|seal| seal.as_ref().is_some_and(is_outdated)) {
                fs::remove_file(&path)?;
            }
        }
        sync_dir(&dir)
    };
    if orders.is_empty() {
        return Ok(());
    }
    remove().map_err(|error| io_error("removing seals", &dir, &error))
}

fn path(place: &Place, operation: Uuid, disk: &DiskTarget) -> PathBuf {
    place.seals().join(format!("{operation}-{disk}.json"))
}

fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(path).map(|id| id.trim().to_owned()).map_err(|error| io_error("reading", path, &error))
}

fn state(place: &Place, query: &SealQuery, boot_id: &str) -> SealState {
    match read(&path(place, query.operation, &query.disk)) {
        Ok(None) => SealState::Absent { why: None },
        Err(why) => SealState::Absent { why: Some(why) },
        Ok(Some(seal)) => {
            let now: Vec<_> = chain(&query.image).map(|path| look(path).map(|(_, facts)| facts)).collect();
            let state = seal.judge(query, boot_id, &now);
            match (state, unsealed(&query.image)) {
                (SealState::Trusted { root, key }, Some(why)) => SealState::Untrusted { root, key, why },
                (state, _) => state,
            }
        }
    }
}

/// A seal that cannot be read counts as none: all it could do is save work.
fn read(path: &Path) -> std::result::Result<Option<Seal>, String> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| format!("the seal cannot be opened: {error}"))?,
    };
    let mut text = Vec::new();
    file.take(SIZE_LIMIT).read_to_end(&mut text).map_err(|error| format!("the seal cannot be read: {error}"))?;
    Seal::decode(&text).map(Some)
}

/// The files of a disk, as their definition names them.
fn chain(image: &ImageSpec) -> impl Iterator<Item = &str> {
    [&image.path].into_iter().chain(image.backing.iter().map(|(path, _)| path)).map(String::as_str)
}

/// Why a disk is never sealed, whatever its files look like.
fn unsealed(image: &ImageSpec) -> Option<String> {
    if image.export.is_some() {
        Some("the disk is read from a server".to_owned())
    } else if image.data_files.is_empty() {
        None
    } else {
        Some("a part of the disk lies in a data file".to_owned())
    }
}

/// The files of a disk as a seal keeps them, or why it cannot.
fn seal_files(order: &SealOrder) -> std::result::Result<Vec<SealedFile>, String> {
    if let Some(why) = unsealed(&order.image) {
        return Err(why);
    }
    let paths: Vec<&str> = chain(&order.image).collect();
    if paths.len() != order.seen.len() {
        return Err("the disk lies in other files than were looked at before".to_owned());
    }
    paths.into_iter().zip(&order.seen).map(|(path, seen)| seal_file(path, seen)).collect()
}

/// Makes what was written to a file durable, and looks whether that is all: nobody can have written since the file was
/// `seen` whose write does not show.
fn seal_file(path: &str, seen: &Identity) -> std::result::Result<SealedFile, String> {
    let failed = |error: io::Error| format!("{path}: {error}");
    let (file, before) = settled(path)?;
    // Its time of change too: whoever writes can put the other one back.
    if before != *seen {
        return Err(format!("{path} was written to, or is another file, since its content was known"));
    }
    if !seen.quiet {
        return Err(format!("{path} was open for writing, or just changed, when its content was looked at"));
    }
    // What the page cache holds is what the storage holds, so that no failing write-back changes it later; and a page that is
    // written through a mapping from now on takes a fault, which changes the file's times.
    file.sync_all().map_err(failed)?;
    let after = facts(path, &file)?;
    if after.identity == before { after.proof() } else { Err(format!("{path} changes while it is looked at")) }
}

#[cfg(test)]
mod tests;
