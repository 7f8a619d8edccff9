//! What running operations keep beside the journal: that their controller lives, how far they are, and whether they are
//! asked to stop.
//!
//! | file | who makes it | what it says |
//! |---|---|---|
//! | `ID` | the controller, which holds its lock (`flock`) from before the operation is journaled until after its end is | that the controller lives: the kernel lets go of the lock with the last breath of the process |
//! | `ID.progress` | the controller, twice a second | how far it is |
//! | `ID.cancel` | `cancel` | that it is to stop |
//!
//! Nothing here needs to survive a power cut: after one no controller lives.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvm_clone_core::progress::Progress;
use kvm_clone_core::{Code, Error, Result};
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

const PROGRESS: &str = ".progress";
const HALF_WRITTEN: &str = ".progress.new";
const CANCEL: &str = ".cancel";

/// Somebody who looks holds a lock for a moment: so often it is tried again …
const TRIES: u32 = 200;
/// … after this pause.
const PAUSE: Duration = Duration::from_millis(5);

/// The directory of these files.
#[derive(Debug, Clone)]
pub(crate) struct Place(PathBuf);

impl Place {
    /// That of a journal.
    pub(crate) fn beside(journal: &Path) -> Self {
        let mut dir = journal.as_os_str().to_owned();
        dir.push(".running");
        Self(dir.into())
    }

    fn file(&self, operation: Uuid, ending: &str) -> PathBuf {
        self.0.join(format!("{operation}{ending}"))
    }

    /// Says that this process works on an operation, until what is returned is dropped. May wait for a moment.
    ///
    /// # Errors
    /// [`Code::Configuration`] where the file cannot be made.
    pub(super) fn hold(&self, operation: Uuid) -> Result<Presence> {
        let path = self.file(operation, "");
        let failed = |why: &str| {
            Error::new(Code::Configuration, format!("an operation cannot be made known: {why}"))
                .with("path", path.display())
                .help("Check the permissions and the space beside the journal; state.url in the configuration names another place")
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(|error| failed(&error.to_string()))?;
        for _ in 0..TRIES {
            // Not inherited by any program that is started: std opens with O_CLOEXEC.
            let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = opened.map_err(|error| failed(&error.to_string()))?;
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            // Who sweeps may have removed it between the two.
            if locked && file.metadata().is_ok_and(|metadata| metadata.nlink() == 1) {
                // What was said to a controller that is dead is not meant for this one.
                for ending in [CANCEL, PROGRESS] {
                    let _ = std::fs::remove_file(self.file(operation, ending));
                }
                return Ok(Presence { place: self.clone(), operation, file });
            }
            std::thread::sleep(PAUSE);
        }
        Err(failed("its file is locked by somebody else"))
    }

    /// Does something with these files, off the async threads.
    pub(super) async fn apart<T: Send + 'static>(&self, act: impl FnOnce(&Self) -> T + Send + 'static) -> Result<T> {
        let place = self.clone();
        let done = tokio::task::spawn_blocking(move || act(&place)).await;
        done.map_err(|error| Error::internal(format!("the files beside the journal: {error}")))
    }

    /// Whether the controller of an operation lives, for who must not block.
    pub(crate) async fn lives(&self, operation: Uuid) -> Result<bool> {
        self.apart(move |place| place.is_present(operation)).await
    }

    /// Whether the controller of an operation lives.
    pub(super) fn is_present(&self, operation: Uuid) -> bool {
        let Ok(file) = File::open(self.file(operation, "")) else { return false };
        flock(&file, FlockOperation::NonBlockingLockShared).is_err()
    }

    /// How far an operation said that it is.
    pub(super) fn progress(&self, operation: Uuid) -> Option<Progress> {
        let text = std::fs::read(self.file(operation, PROGRESS)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Asks an operation to stop.
    ///
    /// # Errors
    /// [`Code::Configuration`] where that cannot be written.
    pub(super) fn ask_to_stop(&self, operation: Uuid) -> Result<()> {
        let path = self.file(operation, CANCEL);
        std::fs::write(&path, "").map_err(|error| {
            Error::new(Code::Configuration, format!("the operation cannot be asked to stop: {error}"))
                .with("path", path.display())
                .help("Run it as the user who began the operation, or stop the command itself with Ctrl-C")
        })
    }

    /// Takes that back: who asked is the one who removes what the operation did not see.
    pub(super) fn ask_no_more(&self, operation: Uuid) {
        let _ = std::fs::remove_file(self.file(operation, CANCEL));
    }

    /// Removes what dead operations left, but for those that are to be kept.
    pub(super) fn sweep(&self, kept: &BTreeSet<Uuid>) {
        let Ok(entries) = self.0.read_dir() else { return };
        let id = |name: &str| name.split('.').next()?.parse::<Uuid>().ok();
        let named = entries.flatten().filter_map(|entry| id(entry.file_name().to_str()?));
        for operation in named.collect::<BTreeSet<_>>().difference(kept) {
            match File::open(self.file(*operation, "")) {
                // Removed under its lock, so that nobody can take it meanwhile and believe to have it.
                Ok(file) if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() => self.remove(*operation),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.remove(*operation),
                _ => {}
            }
        }
    }

    fn remove(&self, operation: Uuid) {
        for ending in [CANCEL, HALF_WRITTEN, PROGRESS, ""] {
            // What is not there need not go; what cannot go is swept another time.
            let _ = std::fs::remove_file(self.file(operation, ending));
        }
    }
}

/// That this process works on an operation. Dropping it ends that, and removes the files.
#[derive(Debug)]
pub(crate) struct Presence {
    place: Place,
    operation: Uuid,
    /// Holds the lock.
    #[cfg_attr(not(test), expect(dead_code, reason = "it is held, not used"))]
    file: File,
}

impl Presence {
    /// Whether somebody asked the operation to stop.
    pub(crate) fn is_asked_to_stop(&self) -> bool {
        self.place.file(self.operation, CANCEL).exists()
    }

    /// As the end of a process that is killed: the lock goes, the files stay.
    #[cfg(test)]
    pub(super) fn die(self) {
        let dead = std::mem::ManuallyDrop::new(self);
        flock(&dead.file, FlockOperation::Unlock).unwrap_or_default();
    }

    /// Tells how far it is; a reader finds this or what was told before, never a part.
    pub(crate) fn tell(&self, progress: &Progress) {
        let written = self.place.file(self.operation, HALF_WRITTEN);
        let Ok(text) = serde_json::to_vec(progress) else { return };
        // An operation does not fail because nobody can see how far it is.
        if std::fs::write(&written, text).is_ok() {
            let _ = std::fs::rename(&written, self.place.file(self.operation, PROGRESS));
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.place.remove(self.operation);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, Place) {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::beside(&dir.path().join("journal.db"));
        (dir, place)
    }

    fn files(place: &Place) -> usize {
        place.0.read_dir().unwrap().count()
    }

    #[test]
    fn a_controller_is_present_until_it_ends_and_leaves_nothing() {
        let (_dir, place) = place();
        let id = Uuid::now_v7();
        assert!(!place.is_present(id));
        let presence = place.hold(id).unwrap();
        assert!(place.is_present(id) && !presence.is_asked_to_stop() && place.progress(id).is_none());
        let progress = Progress { message: "copy".to_owned(), ..Progress::default() };
        presence.tell(&progress);
        assert_eq!(place.progress(id), Some(progress));
        place.ask_to_stop(id).unwrap();
        assert!(presence.is_asked_to_stop());
        drop(presence);
        assert!(!place.is_present(id));
        assert_eq!(files(&place), 0);
    }

    #[test]
    fn programs_that_are_started_do_not_keep_it_present() {
        let (_dir, place) = place();
        let id = Uuid::now_v7();
        let presence = place.hold(id).unwrap();
        let kept = place.file(id, ".kept");
        std::fs::hard_link(place.file(id, ""), &kept).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        drop(presence);
        let is_free = flock(File::open(kept).unwrap(), FlockOperation::NonBlockingLockExclusive).is_ok();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_free);
    }

    #[test]
    fn what_dead_operations_left_is_swept_and_the_rest_stays() {
        let (_dir, place) = place();
        let [lives, dead, kept, late] = [(); 4].map(|()| Uuid::now_v7());
        let presence = place.hold(lives).unwrap();
        for id in [dead, kept] {
            std::fs::write(place.file(id, ""), "").unwrap();
            std::fs::write(place.file(id, PROGRESS), "{}").unwrap();
        }
        place.ask_to_stop(late).unwrap();
        place.sweep(&BTreeSet::from([kept]));
        assert!(place.is_present(lives) && place.file(kept, PROGRESS).exists());
        assert_eq!(files(&place), 3);
        drop(presence);
    }

    #[test]
    fn sweeping_takes_nobodys_presence_away() {
        let (_dir, place) = place();
        std::thread::scope(|scope| {
            let sweeper = scope.spawn(|| (0..2000).for_each(|_| place.sweep(&BTreeSet::new())));
            while !sweeper.is_finished() {
                let id = Uuid::now_v7();
                let _presence = place.hold(id).unwrap();
                assert!(place.is_present(id));
            }
        });
    }
}
