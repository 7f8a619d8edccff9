//! Ways to change the image of a stopped machine so that who looks at its size and its time of change sees nothing.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Child, ChildStdin, Stdio};
use std::time::SystemTime;

use kvm_clone_core::plan::SyncRequest;
use kvm_clone_engine::{CloneSettings, Way};
use kvm_clone_lab::Host;

use crate::common::MIB;
use crate::oracle::wait_for;
use crate::standby::{Standby, images};

/// Where the tricks write.
pub const PLACE: u64 = 5 * MIB;

/// What `rsync` and the like tell files apart by.
#[derive(Debug, PartialEq, Eq)]
pub struct Look {
    size: u64,
    modified: SystemTime,
}

impl Look {
    pub fn of(host: &Host, path: &str) -> Self {
        let facts = std::fs::metadata(host.path(path)).unwrap();
        Self { size: facts.len(), modified: facts.modified().unwrap() }
    }

    /// Gives the file its old time back, and makes sure that it looks as it did.
    pub fn restore(&self, host: &Host, path: &str) {
        File::open(host.path(path)).unwrap().set_modified(self.modified).unwrap();
        assert_eq!(Self::of(host, path), *self, "the change shows");
    }
}

/// Changes a file's content, and nothing of its look.
pub fn hidden(host: &Host, path: &str, change: impl FnOnce()) {
    let (look, before) = (Look::of(host, path), std::fs::read(host.path(path)).unwrap());
    change();
    look.restore(host, path);
    assert!(std::fs::read(host.path(path)).unwrap() != before, "nothing was changed");
}

/// The image of a disk.
pub fn image(host: &Host, machine: &str, target: &str) -> String {
    images(host, machine)[target].0.clone()
}

pub fn byte(host: &Host, path: &str) -> u8 {
    let mut byte = [0];
    File::open(host.path(path)).unwrap().read_exact_at(&mut byte, PLACE).unwrap();
    byte[0]
}

pub fn write_byte(host: &Host, path: &str, value: u8) {
    File::options().write(true).open(host.path(path)).unwrap().write_all_at(&[value], PLACE).unwrap();
}

/// All of the file, in a place of its own.
pub fn back_up(host: &Host, path: &str) -> String {
    let backup = format!("{path}.backup");
    host.exec(&["cp", "-p", path, &backup]).unwrap();
    backup
}

/// A writable mapping of the page that [`PLACE`] is in, by a process that is there until this is dropped.
pub struct Mapping {
    host: Host,
    path: String,
    input: Option<ChildStdin>,
    process: Child,
}

impl Mapping {
    pub fn of(host: &Host, path: &str) -> Self {
        let mut process = host.command("xfs_io").arg(path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut mapping = Self { host: host.clone(), path: path.to_owned(), input: process.stdin.take(), process };
        mapping.say(&format!("mmap -rw {PLACE} 4096"));
        mapping
    }

    fn say(&mut self, command: &str) {
        self.input.as_mut().unwrap().write_all(format!("{command}\n").as_bytes()).unwrap();
    }

    /// Writes through it; returns when that is done.
    pub fn set(&mut self, value: u8) {
        self.say(&format!("mwrite -S {value} {PLACE} 1"));
        // Both see one page.
        wait_for("a write through a mapping", || byte(&self.host, &self.path) == value);
    }

    /// Has what was written go to the storage, which takes place some time before the mapping ends.
    pub fn flush(&mut self) {
        self.say("msync -s");
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        drop(self.input.take());
        self.process.wait().unwrap();
    }
}

/// Both sides are sealed: a sync reads nothing.
pub async fn assert_sealed(standby: &Standby, about: &str) {
    let result = standby.sync().await.unwrap();
    let read = result.bytes_read + result.bytes_read_dest;
    assert_eq!((result.way, read), (Way::Untouched, 0), "before {about}: {:?}", result.warnings);
}

/// A sync takes over what was changed at the source.
pub async fn assert_found(standby: &Standby, about: &str) {
    assert_ne!(standby.source_contents(), standby.replica_contents(), "{about}: there is nothing to be found");
    let result = standby.sync_with(&SyncRequest::default(), &CloneSettings::default()).await.unwrap();
    assert_eq!(result.way, Way::Compare, "{about}: {}", result.why);
    assert_eq!(standby.replica_contents(), standby.source_contents(), "{about}");
}

/// The time of a file's last change of any kind, in nanoseconds.
pub fn changed(host: &Host, path: &str) -> i128 {
    let facts = std::fs::metadata(host.path(path)).unwrap();
    i128::from(facts.ctime()) * 1_000_000_000 + i128::from(facts.ctime_nsec())
}
