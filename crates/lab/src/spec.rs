//! What kind of host to raise: the differences between real hosts that kvm-clone has to cope with.

use serde::{Deserialize, Serialize};

use crate::{LabError, Result};

/// What an extra user may do through `sudo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sudo {
    /// Everything, without being asked.
    Passwordless,
    /// Everything, after a password; so `sudo -n` fails.
    Password,
    /// Nothing.
    None,
}

/// Which libvirt a host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Libvirt {
    /// One `libvirtd` with `libvirt-sock`.
    Monolithic,
    /// Clients find only `virtqemud-sock`, as with the modular daemons.
    Modular,
    /// None: no daemon, no socket.
    Absent,
}

/// A host that is to be raised. The default is a plain one: libvirtd, qemu as root, an sshd with its default settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostSpec {
    pub(crate) name: String,
    pub(crate) libvirt: Libvirt,
    pub(crate) qemu_unprivileged: bool,
    pub(crate) sshd: Vec<String>,
    pub(crate) users: Vec<(String, Sudo)>,
    pub(crate) without: Vec<String>,
    pub(crate) noexec_homes: bool,
    pub(crate) banner: Option<String>,
    pub(crate) architecture: Option<String>,
}

impl HostSpec {
    /// A plain host of that name, which is also its host name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            libvirt: Libvirt::Monolithic,
            qemu_unprivileged: false,
            sshd: Vec::new(),
            users: Vec::new(),
            without: Vec::new(),
            noexec_homes: false,
            banner: None,
            architecture: None,
        }
    }

    /// qemu runs as `libvirt-qemu` and libvirt hands it the images (`dynamic_ownership`), as distributions have it.
    #[must_use]
    pub fn qemu_unprivileged(mut self) -> Self {
        self.qemu_unprivileged = true;
        self
    }

    /// An sshd that forbids every kind of forwarding.
    #[must_use]
    pub fn disable_forwarding(mut self) -> Self {
        self.sshd.push("DisableForwarding yes".to_owned());
        self
    }

    /// Whoever logs in gets a network namespace without a network, as in a container beside libvirt.
    #[must_use]
    pub fn logins_apart(mut self) -> Self {
        self.sshd.push(r#"ForceCommand exec unshare --net sh -c "$SSH_ORIGINAL_COMMAND""#.to_owned());
        self
    }

    /// An sshd that drops bursts of connections, e.g. `"1:100:1"`.
    #[must_use]
    pub fn max_startups(mut self, setting: &str) -> Self {
        self.sshd.push(format!("MaxStartups {setting}"));
        self
    }

    /// An extra user who may log in with the lab's key and is not in group `libvirt`.
    #[must_use]
    pub fn user(mut self, name: &str, sudo: Sudo) -> Self {
        self.users.push((name.to_owned(), sudo));
        self
    }

    /// Only `virtqemud-sock`, no `libvirt-sock`.
    #[must_use]
    pub fn modular(mut self) -> Self {
        self.libvirt = Libvirt::Modular;
        self
    }

    /// No libvirt daemon and no socket.
    #[must_use]
    pub fn no_libvirt(mut self) -> Self {
        self.libvirt = Libvirt::Absent;
        self
    }

    /// Programs that this host does not have.
    #[must_use]
    pub fn without(mut self, programs: &[&str]) -> Self {
        self.without.extend(programs.iter().map(|program| (*program).to_owned()));
        self
    }

    /// `/root` and `/home` are mounted `noexec`.
    #[must_use]
    pub fn noexec_homes(mut self) -> Self {
        self.noexec_homes = true;
        self
    }

    /// The users' shell start file writes this to standard output, also for commands without a terminal.
    #[must_use]
    pub fn banner(mut self, text: &str) -> Self {
        self.banner = Some(text.to_owned());
        self
    }

    /// `uname -m` claims another architecture.
    #[must_use]
    pub fn uname(mut self, architecture: &str) -> Self {
        self.architecture = Some(architecture.to_owned());
        self
    }

    /// The host's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names become parts of paths, of a network namespace and of configuration lines.
    pub(crate) fn check(&self) -> Result<()> {
        let names = std::iter::once(&self.name).chain(self.users.iter().map(|(name, _)| name));
        for name in names.chain(&self.without) {
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if name.is_empty() || name.len() > 32 || name.starts_with(['-', '.']) || !plain {
                return Err(LabError::Refused(format!("{name:?} is not a plain name")));
            }
        }
        Ok(())
    }
}
