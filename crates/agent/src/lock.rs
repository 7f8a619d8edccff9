//! The locks that keep two operations from working on one machine.
//!
//! Each key has two files, which are never unlinked (an unlinked lock file can be held by one process while another
//! locks its successor):
//! - `KEY`: held exclusively by the control agent of the operation, for as long as it lives;
//! - `KEY.users`: held shared by everything that works for it (lane agents, `qemu-img`, `qemu-nbd`). An operation starts
//!   only after it could take this one exclusively: then no writer of a dead operation is left alive.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kvm_clone_core::journal::is_lock_key;
use kvm_clone_core::{Code, Error, Result};
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use crate::place::{Place, io_error};

/// The locks of one operation on this host.
#[derive(Debug)]
pub(crate) struct Locks {
    held: Vec<File>,
    users: Vec<PathBuf>,
    keys: Vec<String>,
}

impl Locks {
    /// Takes all of these locks, or none, without waiting.
    pub(crate) fn take(place: &Place, keys: &[String], operation: Uuid, holder: &str) -> Result<Self> {
        let mut locks = Self { held: Vec::new(), users: Vec::new(), keys: keys.to_vec() };
        for key in keys {
            let path = key_path(place, key)?;
            let file = open(&path)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(held_by_other(key, &path));
            }
            note(&file, operation, holder).map_err(|error| io_error("writing", &path, &error))?;
            let users = users_path(&path);
            if flock(open(&users)?, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(still_ending(key));
            }
            locks.held.push(file);
            locks.users.push(users);
        }
        Ok(locks)
    }

    /// The keys that are held.
    pub(crate) fn keys(&self) -> &[String] {
        &self.keys
    }

    /// Whether nothing that worked for the operation is left: no lane agent, no program.
    pub(crate) fn without_users(&self) -> bool {
        let free =
            |path: &PathBuf| open(path).is_ok_and(|file| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok());
        self.users.iter().all(free)
    }

    /// Open files that hold the users' side of all keys: a program that has them open keeps later operations away until it has ended,
    /// whatever becomes of us.
    pub(crate) fn for_program(&self) -> Result<Vec<File>> {
        self.users.iter().map(|path| share(path)).collect()
    }
}

/// Writes down who holds a lock. In place, so that whoever meets the lock at this moment finds words in the file.
fn note(file: &File, operation: Uuid, holder: &str) -> std::io::Result<()> {
    let note = format!("operation {operation} of {holder}\n");
    file.write_all_at(note.as_bytes(), 0)?;
    file.set_len(note.len() as u64)
}

/// Holds the users' side of these keys, as a lane agent does.
pub(crate) fn hold_users(place: &Place, keys: &[String]) -> Result<Vec<File>> {
    keys.iter().map(|key| share(&users_path(&key_path(place, key)?))).collect()
}

fn share(path: &Path) -> Result<File> {
    let file = open(path)?;
    flock(&file, FlockOperation::NonBlockingLockShared).map_err(|error| io_error("locking", path, &error.into()))?;
    Ok(file)
}

fn key_path(place: &Place, key: &str) -> Result<PathBuf> {
    if !is_lock_key(key) {
        return Err(Error::internal(format!("{key:?} is not a lock key")));
    }
    Ok(place.locks().join(key))
}

fn users_path(key: &Path) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push(".users");
    name.into()
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| io_error("opening a lock", path, &error))
}

fn held_by_other(key: &str, path: &Path) -> Error {
    let holder = fs::read_to_string(path).unwrap_or_default();
    let holder: String = holder.lines().next().unwrap_or("somebody unknown").chars().take(200).collect();
    Error::new(Code::Locked, format!("{} is in use by {holder}", what(key)))
        .with("lock", key)
        .with("holder", holder)
        .help("Wait until that operation has ended, or stop it where it was started")
        .transient()
}

fn still_ending(key: &str) -> Error {
    Error::new(Code::Locked, format!("a part of an earlier operation on {} is still ending", what(key)))
        .with("lock", key)
        .help("Try again in a few seconds")
        .transient()
}

fn what(key: &str) -> String {
    match key.split_once('-') {
        Some(("name", name)) => format!("the machine name {name}"),
        Some((_, uuid)) => format!("the machine {uuid}"),
        None => key.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn place(dir: &Path) -> Place {
        let place = Place { run: dir.join("run"), state: dir.join("state") };
        fs::create_dir_all(place.locks()).unwrap();
        place
    }

    #[test]
    fn the_second_gets_1011_with_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let keys = vec!["name-web1".to_owned()];
        let first = Locks::take(&place, &keys, Uuid::nil(), "me@here pid 7").unwrap();
        let error = Locks::take(&place, &keys, Uuid::max(), "you").unwrap_err();
        assert_eq!(error.code, Code::Locked);
        assert!(error.context["holder"].contains("me@here pid 7"));
        drop(first);
        Locks::take(&place, &keys, Uuid::max(), "you").unwrap();
    }

    #[test]
    fn a_living_user_of_a_dead_operation_keeps_the_next_one_out() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let keys = vec!["name-web1".to_owned()];
        let locks = Locks::take(&place, &keys, Uuid::nil(), "me").unwrap();
        let user = hold_users(&place, &keys).unwrap();
        drop(locks);
        assert_eq!(Locks::take(&place, &keys, Uuid::max(), "you").unwrap_err().code, Code::Locked);
        drop(user);
        Locks::take(&place, &keys, Uuid::max(), "you").unwrap();
    }

    #[test]
    fn a_program_that_lives_on_keeps_everybody_away_from_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let machine = format!("uuid-{}", Uuid::nil());
        let keys = ["name-web1".to_owned(), machine.clone()];
        let locks = Locks::take(&place, &keys, Uuid::nil(), "me").unwrap();
        let program = locks.for_program().unwrap();
        drop(locks);
        let only_reads = || Locks::take(&place, std::slice::from_ref(&machine), Uuid::max(), "you");
        assert_eq!(only_reads().unwrap_err().code, Code::Locked);
        assert_eq!(Locks::take(&place, &keys, Uuid::max(), "you").unwrap_err().code, Code::Locked);
        drop(program);
        only_reads().unwrap();
    }

    #[test]
    fn all_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let _held = Locks::take(&place, &["name-b".to_owned()], Uuid::nil(), "me").unwrap();
        Locks::take(&place, &["name-a".to_owned(), "name-b".to_owned()], Uuid::max(), "you").unwrap_err();
        Locks::take(&place, &["name-a".to_owned()], Uuid::max(), "you").unwrap();
    }
}
