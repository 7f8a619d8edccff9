//! Finding, installing and starting the agent on a host.
//!
//! The agent is found by the digest of its build, so agents of several versions live side by side:
//! - root: `/var/lib/kvm-clone/agents/DIGEST/kvm-clone-agent`;
//! - a user with `sudo -n`: the same file, put there and checked there as root, so that root never runs a file that
//!   a user could have changed;
//! - a user alone: the same below the user's cache directory, or below the runtime directory where the cache cannot
//!   hold programs (`noexec`).
//!
//! The normal case is one command on an open connection: start it. Only when that fails is the host looked at, the
//! agent installed once and started once more.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvm_clone_core::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OnceCell;

use super::transport::{Script, Started, Transport};

/// The agent program to be used, and its digest.
#[derive(Debug, Clone)]
pub struct AgentProgram {
    path: PathBuf,
    digest: String,
}

impl AgentProgram {
    /// Reads the program that will be installed on hosts.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn load(path: &Path) -> Result<Self> {
        let bytes = read_program(path).await?;
        Ok(Self { path: path.to_owned(), digest: hex(&Sha256::digest(&bytes)) })
    }

    /// SHA-256 of the program, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// Where the agent program is. It is read when the first host is reached, while the connection is being made.
#[derive(Debug, Clone)]
pub(crate) struct AgentFile {
    path: PathBuf,
    program: OnceCell<AgentProgram>,
}

impl AgentFile {
    /// Makes sure that there is one.
    pub(crate) async fn find(path: PathBuf) -> Result<Self> {
        tokio::fs::metadata(&path).await.map_err(|error| unreadable(&path, &error))?;
        Ok(Self { path, program: OnceCell::new() })
    }

    pub(crate) async fn program(&self) -> Result<&AgentProgram> {
        self.program.get_or_try_init(|| AgentProgram::load(&self.path)).await
    }
}

async fn read_program(path: &Path) -> Result<Vec<u8>> {
    tokio::fs::read(path).await.map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(kvm_clone_core::Code::Configuration, format!("the agent program cannot be read: {error}"))
        .with("path", path.display())
        .help("Reinstall kvm-clone; kvm-clone-agent belongs beside kvm-clone or in /usr/libexec")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As whom the agent runs on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Privilege {
    /// As root: by logging in as root, else through `sudo -n`.
    #[default]
    Root,
    /// As the user who logs in, with that user's own libvirt.
    User,
}

const ROOT_HOME: &str = "/var/lib/kvm-clone/agents";

/// A user's runtime directory where the login did not name it, as with an sshd without PAM.
const RUNTIME_DIR: &str = "[ -n \"$XDG_RUNTIME_DIR\" ] || { r=/run/user/$(id -u); \
    [ -O \"$r\" ] && export XDG_RUNTIME_DIR=\"$r\"; };";

/// Starts the agent with these arguments, if it is where it belongs.
pub(crate) fn start_script(digest: &str, privilege: Privilege, arguments: &str) -> Result<Script> {
    let file = format!("{digest}/kvm-clone-agent");
    Script::new(match privilege {
        Privilege::Root => format!(
            "export LC_ALL=C; a={ROOT_HOME}/{file}; \
             [ \"$(id -u)\" = 0 ] && exec \"$a\" {arguments}; exec sudo -n -- \"$a\" {arguments}"
        ),
        Privilege::User => format!(
            "export LC_ALL=C; {RUNTIME_DIR} a=\"${{XDG_CACHE_HOME:-$HOME/.cache}}/kvm-clone/agents/{file}\"; \
             b=\"$XDG_RUNTIME_DIR/kvm-clone-agents/{file}\"; \
             [ -n \"$XDG_RUNTIME_DIR\" ] && [ -x \"$b\" ] && a=\"$b\"; exec \"$a\" {arguments}"
        ),
    })
}

/// Looks at a host on which the agent did not start. Each line it prints begins with a mark, so that banners do not
/// matter.
const PROBE: &str = "export LC_ALL=C; say() { echo \"kvm-clone:$1=$2\"; }; \
    say uid \"$(id -u)\"; say user \"$(id -un)\"; say arch \"$(uname -m)\"; \
    say sha256sum \"$(command -v sha256sum)\"; say sudo \"$(command -v sudo)\"; \
    sudo -n true >/dev/null 2>&1 && say sudo_works yes; say end yes";

/// What the probe found.
struct Probe(HashMap<String, String>);

impl Probe {
    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

/// Why the agent cannot be had on a host, or that it now is there: looks, and installs it once.
pub(crate) async fn install(transport: &Transport, program: &AgentProgram, privilege: Privilege) -> Result<()> {
    let probe = probe(transport).await?;
    let ours = std::env::consts::ARCH;
    if probe.get("arch") != ours {
        let theirs = probe.get("arch");
        return Err(Error::unsupported(format!("the host has {theirs} processors, this agent is for {ours}"))
            .with("arch", theirs)
            .help(format!("kvm-clone works between {ours} hosts")));
    }
    let root = probe.get("uid") == "0";
    if privilege == Privilege::Root && !root && probe.get("sudo_works") != "yes" {
        return Err(sudo_refused(&probe));
    }
    if probe.get("sha256sum").is_empty() {
        return Err(Error::insufficient("sha256sum is not installed on the host").help("Install coreutils there"));
    }
    let script = match (privilege, root) {
        (Privilege::Root, true) => install_as_root(&program.digest),
        (Privilege::Root, false) => install_through_sudo(&program.digest),
        (Privilege::User, _) => install_for_user(&program.digest),
    };
    upload(transport, &Script::new(script)?, program).await
}

fn sudo_refused(probe: &Probe) -> Error {
    let user = probe.get("user");
    if probe.get("sudo").is_empty() {
        return Error::connection(format!("{user} is not root there, and sudo is not installed"))
            .with("user", user)
            .help("Log in as root (root@HOST), or install sudo")
            .help("To use the user's own session libvirt, set sudo = false for the host");
    }
    Error::connection(format!("sudo wants a password from {user}"))
        .with("user", user)
        .help(format!(
            "Allow it without one on the host: echo '{user} ALL=(root) NOPASSWD: ALL' > /etc/sudoers.d/kvm-clone"
        ))
        .help("Or log in as root (root@HOST); to use the user's own session libvirt, set sudo = false for the host")
}

/// Takes the program from stdin to `$t`, and checks it there.
const RECEIVE: &str = "cat > \"$t\" || exit 92; set -- $(sha256sum \"$t\"); [ \"$1\" = \"$d\" ] || exit 93;";

fn install_as_root(digest: &str) -> String {
    format!(
        "umask 022; d={digest}; mkdir -p -m 0700 /var/lib/kvm-clone && mkdir -p {ROOT_HOME}/$d || exit 91; \
         t={ROOT_HOME}/$d/new.$$; trap \"rm -f $t\" EXIT; {RECEIVE} chmod 0755 \"$t\" && \
         mv -f \"$t\" {ROOT_HOME}/$d/kvm-clone-agent || exit 92; {ROOT_HOME}/$d/kvm-clone-agent --version || exit 94"
    )
}

fn install_through_sudo(digest: &str) -> String {
    format!(
        "umask 077; d={digest}; h=\"${{XDG_CACHE_HOME:-$HOME/.cache}}\"; mkdir -p \"$h\" && \
         w=$(mktemp -d \"$h/kvm-clone.XXXXXX\") || exit 91; trap \"rm -rf $w\" EXIT; t=$w/agent; {RECEIVE} \
         n={ROOT_HOME}/$d/new.$$; sudo -n install -D -o root -g root -m 0755 \"$t\" \"$n\" || exit 92; \
         set -- $(sudo -n sha256sum \"$n\"); [ \"$1\" = \"$d\" ] || {{ sudo -n rm -f \"$n\"; exit 93; }}; \
         sudo -n mv -f \"$n\" {ROOT_HOME}/$d/kvm-clone-agent || exit 92; \
         sudo -n {ROOT_HOME}/$d/kvm-clone-agent --version || exit 94"
    )
}

fn install_for_user(digest: &str) -> String {
    format!(
        "umask 077; d={digest}; {RUNTIME_DIR} h=\"${{XDG_CACHE_HOME:-$HOME/.cache}}\"; mkdir -p \"$h\" && \
         w=$(mktemp -d \"$h/kvm-clone.XXXXXX\") || exit 91; trap \"rm -rf $w\" EXIT; t=$w/agent; {RECEIVE} \
         for b in \"$h/kvm-clone/agents/$d\" \"${{XDG_RUNTIME_DIR:+$XDG_RUNTIME_DIR/kvm-clone-agents/$d}}\"; do \
         [ -n \"$b\" ] && mkdir -p \"$b\" && cp \"$t\" \"$b/new\" && chmod 0700 \"$b/new\" && \
         mv -f \"$b/new\" \"$b/kvm-clone-agent\" || continue; \
         \"$b/kvm-clone-agent\" --version && exit 0; rm -f \"$b/kvm-clone-agent\"; done; exit 94"
    )
}

async fn upload(transport: &Transport, script: &Script, program: &AgentProgram) -> Result<()> {
    let bytes = read_program(&program.path).await?;
    let mut started = transport.start(script).await?;
    let sent = async {
        started.stdin.write_all(&bytes).await?;
        started.stdin.shutdown().await
    };
    // A failure to write shows in the exit status and the log, which say more.
    let _ = tokio::time::timeout(Duration::from_secs(120), sent).await;
    drop(started.stdin);
    let log = read_limited(&mut started.stderr).await;
    let why = match started.child.wait().await {
        Some(0) => return Ok(()),
        Some(91) => "its directory cannot be made",
        Some(92) => "it cannot be written",
        Some(93) => "it did not arrive whole",
        Some(94) => "it does not run there",
        _ => "the command failed",
    };
    let error = Error::connection(format!("the agent cannot be installed: {why}")).with("log", log.trim());
    Err(if why == "it does not run there" {
        error
            .help("The file system may be mounted noexec: let the user run it through sudo, or log in as root")
            .help("For a user alone, set XDG_CACHE_HOME on the host to a place where programs may run")
    } else {
        error.help("Check the space and the permissions of /var/lib/kvm-clone and of the user's home on the host")
    })
}

async fn probe(transport: &Transport) -> Result<Probe> {
    let mut started = transport.start(&Script::new(PROBE.to_owned())?).await?;
    drop(started.stdin);
    let text = read_limited(&mut started.stdout).await;
    let found: HashMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once("kvm-clone:")?.1.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    if found.contains_key("end") {
        return Ok(Probe(found));
    }
    let log = read_limited(&mut started.stderr).await;
    Err(Error::connection("the host does not run commands for this user")
        .with("log", log.trim())
        .help("Try ssh HOST true by hand; the login shell must allow commands"))
}

/// Reads to the end, but keeps and waits for no more than a person would read.
pub(crate) async fn read_limited(stream: &mut super::transport::Reading) -> String {
    let mut bytes = Vec::new();
    let mut limited = stream.take(64 * 1024);
    let reading = limited.read_to_end(&mut bytes);
    let _ = tokio::time::timeout(Duration::from_secs(30), reading).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Starts the control agent, without looking or installing.
pub(crate) async fn start(transport: &Transport, digest: &str, privilege: Privilege) -> Result<Started> {
    // What sshd says of the connection; `sudo` would not let it through as a variable.
    let arguments = if transport.is_ssh() { "control \"$SSH_CONNECTION\"" } else { "control" };
    transport.start(&start_script(digest, privilege, arguments)?).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_script_can_stand_in_single_quotes() {
        let digest = "0".repeat(64);
        for text in
            [install_as_root(&digest), install_through_sudo(&digest), install_for_user(&digest), PROBE.to_owned()]
        {
            Script::new(text).unwrap();
        }
        for privilege in [Privilege::Root, Privilege::User] {
            start_script(&digest, privilege, "control \"$SSH_CONNECTION\"").unwrap();
        }
    }
}
