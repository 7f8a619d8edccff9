//! Directories for sockets: private to this user, and removed also when their owner was killed.

use std::path::Path;

use kvm_clone_core::{Error, Result};
use tempfile::TempDir;

const PREFIX: &str = "kvm-clone.";

/// A directory that only this user can enter (`tempfile` makes it with mode 0700). Its name says whose it is.
pub(crate) fn private_dir() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}.", std::process::id()))
        .tempdir()
        .map_err(|error| Error::internal(format!("making a private directory: {error}")))
}

/// Removes the directories of processes that are gone: a killed one cannot do it itself. Where one cannot be removed, it
/// is another user's, or the next process tries again.
pub(crate) fn sweep() {
    let Ok(entries) = std::env::temp_dir().read_dir() else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('.')?.0.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_a_dead_process_is_swept_and_ours_stays() {
        let ours = private_dir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = std::env::temp_dir().join(format!("{PREFIX}{}.x", child.id()));
        child.wait().unwrap();
        std::fs::create_dir_all(dead.join("inner")).unwrap();
        sweep();
        assert!(ours.path().exists() && !dead.exists());
    }
}
