//! Where the agent keeps things on its host.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use kvm_clone_core::{Code, Error, Result};

/// The directories of the user that the agent runs as.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Locks, sessions and the host's id; forgotten at a reboot.
    pub(crate) run: PathBuf,
    /// Markers, manifests and seals; survive a reboot.
    pub(crate) state: PathBuf,
}

impl Place {
    /// The places of this process's user, made where they are missing: private, and refused where somebody else owns
    /// them.
    pub(crate) fn find() -> Result<Self> {
        let place = if rustix::process::geteuid().is_root() {
            Self { run: "/run/kvm-clone".into(), state: "/var/lib/kvm-clone".into() }
        } else {
            let home = env_path("HOME")?;
            let state = env_path("XDG_STATE_HOME").unwrap_or_else(|_| home.join(".local/state"));
            let run = env_path("XDG_RUNTIME_DIR").unwrap_or_else(|_| state.clone());
            Self { run: run.join("kvm-clone"), state: state.join("kvm-clone") }
        };
        place.make()
    }

    /// Makes what is missing.
    pub(crate) fn make(self) -> Result<Self> {
        private_dir(&self.run)?;
        for dir in [self.locks(), self.sessions(), self.markers(), self.manifests(), self.seals(), self.points()] {
            private_dir(&dir)?;
        }
        Ok(self)
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.run.join("locks")
    }

    pub(crate) fn sessions(&self) -> PathBuf {
        self.run.join("sessions")
    }

    pub(crate) fn markers(&self) -> PathBuf {
        self.state.join("operations")
    }

    pub(crate) fn points(&self) -> PathBuf {
        self.state.join("points")
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.state.join("manifests")
    }

    pub(crate) fn seals(&self) -> PathBuf {
        self.state.join("seals")
    }

    /// The random id of this host since its last boot, the same for every process that asks.
    pub(crate) fn host_id(&self) -> Result<String> {
        let path = self.run.join(self.host_id_name());
        for _ in 0..3 {
            match fs::read_to_string(&path) {
                Ok(id) if id.len() == 32 => return Ok(id),
                Ok(_) => return Err(Error::internal("the host's id file is damaged").with("path", path.display())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.make_host_id(&path)?,
                Err(error) => return Err(io_error("reading the host's id", &path, &error)),
            }
        }
        Err(Error::internal("the host's id cannot be made"))
    }

    /// Where there is no runtime directory the file survives reboots, and may lie in a home that several hosts share: then
    /// it is bound to this boot of this host.
    fn host_id_name(&self) -> String {
        if self.run != self.state {
            return "host-id".to_owned();
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        format!("host-id-{}", boot.trim())
    }

    /// Makes the id under a name of its own and links it, so that of two processes one wins and both read the same.
    fn make_host_id(&self, path: &Path) -> Result<()> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let own = self.run.join(format!("host-id.{id}"));
        let made = fs::write(&own, &id).and_then(|()| fs::hard_link(&own, path));
        let _ = fs::remove_file(&own);
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(io_error("making the host's id", path, &error))
            }
            _ => Ok(()),
        }
    }
}

fn env_path(name: &str) -> Result<PathBuf> {
    let value = std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    value.ok_or_else(|| {
        Error::new(Code::Connection, format!("the agent's environment has no {name}"))
            .help("Log in as a user with a home directory, or as root")
    })
}

/// Makes a directory that only this user can enter, or checks that the one there is such.
pub(crate) fn private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| io_error("making a directory", path, &error))?;
    let facts = fs::symlink_metadata(path).map_err(|error| io_error("looking at", path, &error))?;
    let ours = facts.is_dir() && facts.uid() == rustix::process::geteuid().as_raw() && facts.mode() & 0o022 == 0;
    if ours {
        return Ok(());
    }
    Err(Error::connection(format!("{} is not a private directory of this user", path.display()))
        .with("path", path.display())
        .help("Remove it, or give it to this user with mode 0700"))
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// An error of the file system, with the path and a code that fits.
pub(crate) fn io_error(doing: &str, path: &Path, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::InsufficientResources,
        io::ErrorKind::AlreadyExists => Code::VmExists,
        _ => Code::Transfer,
    };
    Error::new(code, format!("{doing} {}: {error}", path.display())).with("path", path.display())
}
