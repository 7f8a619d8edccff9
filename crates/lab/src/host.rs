//! A host as a test sees it: run something in it, look into it, restart it.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::number::Number;
use crate::run::{chmod, output, program, read};
use crate::{HostSpec, LabError, Result, boot, fault};

/// What a host was promised and stays true over its reboots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) index: u8,
    pub(crate) address: Ipv4Addr,
    pub(crate) spec: HostSpec,
}

/// A process of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid within the host.
    pub pid: u32,
    /// Its pid on the machine, for signals from outside.
    pub outer_pid: u32,
    /// Its words, joined by blanks; empty for one that has ended and was not yet reaped.
    pub command: String,
    /// The state letter of `/proc/<pid>/stat`.
    pub state: char,
}

/// A host of a lab. Clones are handles on the same host.
#[derive(Debug, Clone)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    record: Record,
    dir: PathBuf,
    number: Number,
    child: Mutex<Option<Child>>,
}

impl Host {
    pub(crate) fn new(lab: &Path, number: Number, record: Record) -> Self {
        let dir = crate::lab::host_dir(lab, &record.spec.name);
        Self(Arc::new(Inner { record, dir, number, child: Mutex::default() }))
    }

    pub(crate) fn load_all(lab: &Path) -> Result<Vec<Self>> {
        let dir = lab.join("hosts");
        let id = lab.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let number = Number::parse(&id)?;
        let mut hosts = Vec::new();
        for entry in fs::read_dir(&dir).map_err(LabError::file("list", &dir))?.flatten() {
            let path = entry.path().join("host.json");
            let record = serde_json::from_str(&read(&path)?);
            let record = record.map_err(|source| LabError::Refused(format!("{}: {source}", path.display())))?;
            hosts.push(Self::new(lab, number, record));
        }
        hosts.sort_by_key(|host| host.record().index);
        Ok(hosts)
    }

    /// The host's name in the lab, its own host name, and its name for ssh.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.record.spec.name
    }

    /// The host's address in the lab's network.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.0.record.address
    }

    /// The public half of the key its sshd shows, as in a `known_hosts` file: type and key.
    pub fn host_key_public(&self) -> Result<String> {
        let text = read(&self.root_dir().join("etc/ssh/ssh_host_ed25519_key.pub"))?;
        Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
    }

    /// A program that will run inside the host, as root, with an empty standard input. Its environment is that of a plain
    /// root login, and nothing of ours. Where the host is down, it fails when it is run.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let target = self.init_pid().unwrap_or(NO_PID).to_string();
        let mut command = program("/usr/bin/nsenter");
        command.args(["--target", &target, "--mount", "--uts", "--ipc", "--net", "--pid", "--", name]);
        command.env_clear().envs([("LC_ALL", "C"), ("HOME", "/root"), ("USER", "root"), ("PATH", PATH)]);
        command
    }

    /// Runs a program inside the host; its standard output, or an error with its status and standard error.
    pub fn exec(&self, argv: &[&str]) -> Result<String> {
        let (name, arguments) = argv.split_first().ok_or_else(|| LabError::Refused("no command given".to_owned()))?;
        output(self.command(name).args(arguments))
    }

    /// Runs a fixed script with the host's bash.
    pub fn shell(&self, script: &str) -> Result<String> {
        output(self.command("bash").args(["-euo", "pipefail", "-c", script]))
    }

    /// How the machine reaches a path of the host: through its mounts while it is up, on its disk otherwise. Absolute links
    /// on the way would lead out of the host.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        let relative = inside.trim_start_matches('/');
        match self.init_pid() {
            Some(pid) => PathBuf::from(format!("/proc/{pid}/root")).join(relative),
            None => self.root_dir().join(relative),
        }
    }

    /// The names in a directory of the host, sorted; none where it is not there. Without starting a program in the host, which
    /// takes longer than all the rest: a test looks at its hosts hundreds of times.
    pub fn names_in(&self, inside: &str) -> Result<Vec<String>> {
        let path = self.path(inside);
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(LabError::file("list", &path))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(LabError::file("list", &path))?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Puts a copy of a file of the machine into the host.
    pub fn install_file(&self, from: &Path, to: &str, mode: u32) -> Result<()> {
        let path = self.path(to);
        if let Some(parent) = path.parent() {
            crate::run::make_dir(parent)?;
        }
        // A new inode each time: a program that runs cannot be overwritten.
        let fresh = path.with_extension("lab-new");
        fs::copy(from, &fresh).map_err(LabError::file("copy to", &fresh))?;
        chmod(&fresh, mode)?;
        fs::rename(&fresh, &path).map_err(LabError::file("rename to", &path))
    }

    /// All processes of the host but its first one and its idle helper.
    pub fn processes(&self) -> Result<Vec<Process>> {
        fault::processes(self)
    }

    /// Ends all processes at once, as a hard reset would, and boots again. Files survive, `/run`, `/tmp` and processes do
    /// not; the boot id is a new one.
    pub fn reboot(&self) -> Result<()> {
        boot::halt(self)?;
        boot::start(self)
    }

    /// Ends all processes at once. The host's files and its place in the network stay.
    pub fn halt(&self) -> Result<()> {
        boot::halt(self)
    }

    /// Boots a host that was halted; returns when its sshd and libvirt answer.
    pub fn start(&self) -> Result<()> {
        boot::start(self)
    }

    pub(crate) fn record(&self) -> &Record {
        &self.0.record
    }

    pub(crate) fn spec(&self) -> &HostSpec {
        &self.0.record.spec
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0.dir
    }

    pub(crate) fn root_dir(&self) -> PathBuf {
        self.0.dir.join("root")
    }

    pub(crate) fn netns(&self) -> String {
        format!("{}-{}", self.0.number.prefix(), self.name())
    }

    /// The host's link as the machine sees it: the other end of its `eth0`.
    pub(crate) fn link(&self) -> String {
        format!("{}h{}", self.0.number.prefix(), self.0.record.index)
    }

    /// The first process of the host as the machine sees it, if the host is up. A recorded pid that now belongs to somebody
    /// else is recognised by its network namespace.
    pub(crate) fn init_pid(&self) -> Option<u32> {
        let pid: u32 = fs::read_to_string(self.0.dir.join("pid")).ok()?.trim().parse().ok()?;
        let theirs = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
        let ours = fs::metadata(Path::new("/run/netns").join(self.netns())).ok()?;
        (theirs.ino() == ours.ino() && theirs.dev() == ours.dev()).then_some(pid)
    }

    pub(crate) fn adopt(&self, child: Child) {
        self.reap();
        *self.0.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
    }

    /// Collects the exit status of the process that raised the host, once the host is down.
    pub(crate) fn reap(&self) {
        if let Some(mut child) = self.0.child.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// True once the process that raises the host has ended, which it does not while the host is up.
    pub(crate) fn has_ended(&self) -> bool {
        let mut child = self.0.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)))
    }
}

/// Above the kernel's largest pid, so nobody ever has it.
const NO_PID: u32 = 1 << 23;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
