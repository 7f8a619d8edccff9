//! Keeping the emulator of a TPM away from its state.
//!
//! swtpm locks a file beside the state for as long as it runs (`swtpm_nvstore_dir.c`, `SWTPM_NVRAM_Lock_Dir`, since 0.7), with the
//! locks of fcntl(2), and does not start where it cannot. Whoever has that lock changes the state behind nobody's back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use kvm_clone_core::{Error, Result};
use rustix::fs::{FlockOperation, OFlags, fcntl_lock};
use rustix::io::Errno;

use crate::place::io_error;

/// The lock of one state, held as long as this value lives. Such locks are a process's: it would lose this one by closing
/// the file anywhere else.
pub(super) struct StateLock {
    path: PathBuf,
    file: File,
    /// Whether the file was made for it.
    made: bool,
}

impl StateLock {
    /// Takes the lock of the state in a directory.
    ///
    /// # Errors
    /// [`kvm_clone_core::Code::Conflict`] where an emulator has it.
    pub(super) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(".lock");
        let failed = |error: io::Error| io_error("locking", &path, &error);
        let (file, made) = open(&path).map_err(failed)?;
        let mut lock = Self { path: path.clone(), file, made };
        if made {
            lock.give_to_owner_of(dir).map_err(failed)?;
        }
        match fcntl_lock(&lock.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(lock),
            Err(Errno::AGAIN | Errno::ACCESS) => {
                lock.made = false;
                Err(Error::conflict(format!("an emulator works on the TPM in {}", dir.display()))
                    .with("path", dir.display())
                    .help("Stop the machine that it belongs to, and run the command again"))
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Whether it is the lock of the state in this directory.
    pub(super) fn is_of(&self, dir: &Path) -> bool {
        self.path.parent() == Some(dir)
    }

    /// The emulator opens it as the user that the directory belongs to.
    fn give_to_owner_of(&self, dir: &Path) -> io::Result<()> {
        let owner = fs::symlink_metadata(dir)?;
        fchown(&self.file, Some(owner.uid()), Some(owner.gid()))
    }
}

impl Drop for StateLock {
    fn drop(&mut self) {
        if self.made {
            // One that stays harms nobody: emulators leave theirs as well.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens the file, or makes it. The emulator's user may write to the directory: no link is followed.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok((options.create_new(true).open(path)?, true)),
        opened => Ok((opened?, false)),
    }
}
