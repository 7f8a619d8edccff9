//! A lab's number: one of 512, from which every name and address of the lab derives, held by a lock.
//!
//! The lock is what tells a living lab from a dead one: the kernel releases it however its owner ends, so neither a
//! recorded pid nor a start time can be mistaken for another process.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::fs::{FlockOperation, flock};

use crate::run::{make_dir, output, program};
use crate::{LabError, Result};

/// Where labs live. One place for the machine, because interfaces and addresses are the machine's too. On a real file
/// system: images must be able to have holes and direct I/O.
const BASE: &str = "/var/lib/kvm-clone-lab";
/// Where their locks are. Never removed: a lock file that is unlinked while somebody waits for it locks nothing.
const LOCKS: &str = "/run/kvm-clone-lab";
const COUNT: u16 = 512;
const TEARDOWN: &str = include_str!("script/teardown.sh");

/// Which lab of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number(u16);

impl Number {
    pub(crate) fn parse(id: &str) -> Result<Self> {
        let known = id.parse().ok().filter(|number| *number < COUNT).map(Self);
        known.ok_or_else(|| LabError::Refused(format!("{id:?} is not the id of a lab (0 to {})", COUNT - 1)))
    }

    /// Takes a number that nobody has, and removes labs that died on the way.
    pub(crate) fn take() -> Result<(Self, File)> {
        sweep()?;
        let start = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap_or(0);
        for step in 0..COUNT {
            let number = Self((start + step) % COUNT);
            let Some(lock) = number.try_lock()? else { continue };
            if !number.dir().exists() {
                make_dir(&number.dir())?;
                return Ok((number, lock));
            }
        }
        Err(LabError::Refused(format!("all {COUNT} labs of this machine are taken")))
    }

    pub(crate) fn dir(self) -> PathBuf {
        Path::new(BASE).join(self.0.to_string())
    }

    /// `kclab37`: at most 15 bytes remain a valid interface name with a suffix.
    pub(crate) fn prefix(self) -> String {
        format!("kclab{}", self.0)
    }

    /// The address in 198.18.0.0/15 (RFC 2544: for tests of network gear, never routed) that this lab may use.
    pub(crate) fn address(self, last: u8) -> Ipv4Addr {
        let [high, low] = self.0.to_be_bytes();
        Ipv4Addr::new(198, 18 + high, low, last)
    }

    pub(crate) fn is_kept(self) -> bool {
        self.dir().join("kept").exists()
    }

    fn lock_path(self) -> PathBuf {
        Path::new(LOCKS).join(format!("{}.lock", self.0))
    }

    pub(crate) fn try_lock(self) -> Result<Option<File>> {
        let path = self.lock_path();
        let file = File::create(&path).map_err(LabError::file("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(source) => Err(LabError::system(format!("lock {}", path.display()))(source)),
        }
    }

    /// Removes what there is of the lab; the caller holds its lock. `kept` says that the user asked for the end of a lab
    /// that was raised to stay.
    pub(crate) fn tear_down(self, kept: bool) -> Result<()> {
        let mut command = program("bash");
        command.args(["-c", TEARDOWN, "teardown"]).arg(self.dir()).arg(self.to_string());
        output(command.arg(if kept { "kept-too" } else { "" })).map(drop)
    }

    /// A process that outlives us and removes the lab once our lock is gone. In a process group of its own, so a Ctrl-C
    /// at the terminal ends the owner and not the one who cleans up.
    pub(crate) fn watch(self) -> Result<Child> {
        let mut command = program("flock");
        command.arg(self.lock_path()).args(["bash", "-c", TEARDOWN, "teardown"]).arg(self.dir()).arg(self.to_string());
        // The owner's output pipe must not stay open because of us.
        command.stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/").process_group(0);
        command.spawn().map_err(|source| LabError::Start { program: "flock".to_owned(), source })
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The labs that exist, living or not.
pub(crate) fn all() -> Result<Vec<Number>> {
    for directory in [BASE, LOCKS] {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(LabError::file("make directory", directory))?;
    }
    let entries = fs::read_dir(BASE).map_err(LabError::file("list", BASE))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut numbers: Vec<Number> = names.filter_map(|name| Number::parse(&name).ok()).collect();
    numbers.sort_by_key(|number| number.0);
    Ok(numbers)
}

/// Removes labs whose owner is gone and that were not asked to stay.
fn sweep() -> Result<()> {
    for number in all()?.into_iter().filter(|number| !number.is_kept()) {
        if let Some(_lock) = number.try_lock()? {
            // One that cannot be removed keeps its number and is tried again; it must not keep others from being raised.
            let _ = number.tear_down(false);
        }
    }
    Ok(())
}
