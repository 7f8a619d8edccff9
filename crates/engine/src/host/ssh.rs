//! SSH connections: OpenSSH itself, driven through its multiplexing socket.
//!
//! So `ssh_config`, ProxyJump, agents, certificates, hardware keys and `known_hosts` work as the user knows them. We
//! add a configuration of our own that includes the user's and the system's and only then sets a default: in OpenSSH
//! the first value wins, so whatever the user chose stays.

use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvm_clone_core::host::SshAddr;
use kvm_clone_core::{Error, Result};
use openssh::{ControlPersist, KnownHosts, Session, SessionBuilder};
use tempfile::TempDir;

/// How to reach hosts by SSH.
#[derive(Debug, Clone)]
pub struct SshOptions {
    /// A key file to use instead of those that `ssh_config` and the agent offer.
    pub key: Option<PathBuf>,
    /// The port for hosts that name none.
    pub port: Option<u16>,
    /// The user for hosts that name none.
    pub user: Option<String>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// Whether unknown host keys are accepted the first time. Changed ones never are.
    pub accept_new_hosts: bool,
    /// `ssh_config` files to include, the first one winning. Those that do not exist are skipped.
    pub configs: Vec<PathBuf>,
}

impl Default for SshOptions {
    fn default() -> Self {
        Self {
            key: None,
            port: None,
            user: None,
            connect_timeout: Duration::from_secs(10),
            accept_new_hosts: false,
            configs: Vec::new(),
        }
    }
}

/// How long a master connection outlives its last session when nobody ends it: after a kill of ours it ends by itself.
const IDLE_SECONDS: NonZeroUsize = NonZeroUsize::new(60).unwrap();
const ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Tries for a connection that the server drops before the key exchange, as `MaxStartups` makes it do in a burst.
const TRIES: u32 = 5;
/// Pauses between these tries grow by this, and by up to as much again, so that those of one burst part ways.
const PAUSE: Duration = Duration::from_millis(150);

/// A connection. It ends when nobody uses it any more, at once.
#[derive(Debug)]
pub(crate) struct Connection {
    session: Arc<Session>,
    /// Where its socket is, without which it could not be ended.
    _dir: Arc<TempDir>,
}

impl Connection {
    pub(crate) fn session(&self) -> Arc<Session> {
        Arc::clone(&self.session)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The crate only has the master take no more sessions: it would stay until it has been idle for long enough. One
        // that is gone already is fine.
        let _ = terminate(self.session.control_socket());
    }
}

/// Has a master end, with all that runs over it, in the words of OpenSSH's multiplexing protocol (`PROTOCOL.mux`).
fn terminate(socket: &Path) -> std::io::Result<()> {
    const HELLO: [u32; 2] = [0x0000_0001, 4];
    const TERMINATE: [u32; 2] = [0x1000_0005, 0];
    const LENGTH: u32 = 8;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    for [kind, value] in [HELLO, TERMINATE] {
        let packet: Vec<u8> = [LENGTH, kind, value].into_iter().flat_map(u32::to_be_bytes).collect();
        stream.write_all(&packet)?;
    }
    // Its answers do not matter; the end of the stream is its end.
    std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
}

/// Why there is no connection.
struct Refusal {
    error: Error,
    /// The server took the connection and closed it before it knew who we are.
    dropped: bool,
}

/// Opens a connection.
pub(crate) async fn connect(
    host: &SshAddr,
    options: &SshOptions,
    dir: &Arc<TempDir>,
    prefer_aes: bool,
) -> Result<Arc<Connection>> {
    let config = write_config(options, dir.path(), prefer_aes)?;
    let builder = builder(host, options, config, dir.path());
    // ConnectTimeout covers everything up to the key exchange; a server that stops answering later is caught here.
    let patience = options.connect_timeout * 2 + Duration::from_secs(5);
    for number in 1.. {
        match attempt(&builder, &host.name, patience).await {
            Ok(session) => return Ok(Arc::new(Connection { session: Arc::new(session), _dir: Arc::clone(dir) })),
            Err(Refusal { dropped: true, .. }) if number < TRIES => tokio::time::sleep(pause(number)).await,
            Err(Refusal { error, .. }) => return Err(error),
        }
    }
    Err(silent(&host.name))
}

async fn attempt(builder: &SessionBuilder, host: &str, patience: Duration) -> Result<Session, Refusal> {
    match tokio::time::timeout(patience, builder.connect_mux(host)).await {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(error)) => {
            let log = chain(&error);
            Err(Refusal { error: classify(&log, host), dropped: was_dropped(&log) })
        }
        Err(_) => Err(Refusal { error: silent(host), dropped: false }),
    }
}

/// Longer from try to try, and never twice the same.
fn pause(number: u32) -> Duration {
    let mut random = [0];
    // Without random bytes the pauses are merely alike.
    let _ = getrandom::fill(&mut random);
    let base = PAUSE * number;
    base + base * u32::from(random[0]) / 255
}

fn builder(host: &SshAddr, options: &SshOptions, config: PathBuf, dir: &Path) -> SessionBuilder {
    let mut builder = SessionBuilder::default();
    builder
        // `Add` is accept-new; the crate's `Accept` would take changed keys too.
        .known_hosts_check(if options.accept_new_hosts { KnownHosts::Add } else { KnownHosts::Strict })
        // OpenSSH counts in whole seconds, and takes none for no limit.
        .connect_timeout(options.connect_timeout.max(Duration::from_secs(1)))
        .server_alive_interval(ALIVE_INTERVAL)
        .control_directory(dir)
        .control_persist(ControlPersist::IdleFor(IDLE_SECONDS))
        .config_file(config);
    if let Some(port) = host.port.or(options.port) {
        builder.port(port);
    }
    if let Some(user) = host.user.clone().or_else(|| options.user.clone()) {
        builder.user(user);
    }
    if let Some(key) = &options.key {
        builder.keyfile(key);
    }
    builder
}

fn write_config(options: &SshOptions, dir: &Path, prefer_aes: bool) -> Result<PathBuf> {
    let mut text = String::new();
    for config in options.configs.iter().filter(|path| path.exists()) {
        text.push_str(&format!("Include \"{}\"\n", config.display()));
    }
    text.push_str("Host *\n");
    if prefer_aes {
        // With AES instructions, AES-GCM costs two thirds of chacha20-poly1305, which OpenSSH prefers.
        text.push_str("  Ciphers ^aes128-gcm@openssh.com\n");
    }
    let write = || -> std::io::Result<PathBuf> {
        let mut file = tempfile::Builder::new().prefix("config.").tempfile_in(dir)?;
        file.write_all(text.as_bytes())?;
        let (_, path) = file.keep().map_err(|error| error.error)?;
        Ok(path)
    };
    write().map_err(|error| Error::internal(format!("writing the SSH configuration: {error}")))
}

/// An error's whole chain as text: OpenSSH's own words are at its end.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// What OpenSSH wrote, as an error with its way out. The phrases are those of OpenSSH 7 to 10, which are not
/// translated.
fn classify(log: &str, host: &str) -> Error {
    let has = |phrase: &str| log.contains(phrase);
    let error = if has("REMOTE HOST IDENTIFICATION HAS CHANGED") || has("Host key for") && has("has changed") {
        Error::connection(format!("the host key of {host} has changed"))
            .help(format!("If you reinstalled the host, remove its old key: ssh-keygen -R {host}"))
            .help("Otherwise find out who answers in its place before you connect")
    } else if has("Host key verification failed") || has("host key is known") {
        Error::connection(format!("the host key of {host} is not known"))
            .help(format!("Connect once by hand (ssh {host} true), compare the fingerprint and accept it"))
            .help("Or set ssh.host_key_policy to accept-new")
    } else if has("Could not resolve hostname") {
        Error::connection(format!("the name {host} cannot be resolved"))
            .help("Check the spelling, DNS, /etc/hosts, or add a Host entry to ~/.ssh/config")
    } else if has("Connection refused") {
        Error::connection(format!("{host} refuses the connection"))
            .help("Make sure that sshd runs there and that the port is right (--ssh-port)")
            .transient()
    } else if has("timed out") || has("Timeout, server") {
        silent(host)
    } else if has("Permission denied (") || has("Too many authentication failures") {
        Error::connection(format!("{host} refuses this user or key"))
            .help(format!("Try ssh {host} true by hand; load the key into ssh-agent, or name it with --ssh-key"))
    } else if has("No route to host") || has("Network is unreachable") {
        Error::connection(format!("there is no route to {host}")).help("Check the network and the address").transient()
    } else if was_dropped(log) || has("Connection closed by") || has("Connection reset by") {
        Error::connection(format!("{host} closed the connection"))
            .help("sshd there may be limiting connections (MaxStartups), or a firewall interferes")
            .transient()
    } else {
        Error::connection(format!("no SSH connection to {host}")).help(format!("Try ssh {host} true by hand"))
    };
    let words: Vec<&str> =
        log.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('@')).collect();
    error.with("host", host).with("ssh", words.join("; "))
}

/// Whether the server closed the connection before the key exchange: it had too many that were not logged in yet.
fn was_dropped(log: &str) -> bool {
    ["kex_exchange_identification", "ssh_exchange_identification", "Exceeded MaxStartups", "Not allowed at this time"]
        .iter()
        .any(|phrase| log.contains(phrase))
}

fn silent(host: &str) -> Error {
    Error::connection(format!("{host} does not answer"))
        .with("host", host)
        .help("Check that the host is up and that no firewall drops SSH; ssh.connect_timeout sets how long we wait")
        .transient()
}

/// An error on a connection that was there.
pub(crate) fn lost(error: &openssh::Error) -> Error {
    Error::connection("the SSH connection was lost").with("ssh", chain(error)).transient()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_openssh_has_its_own_words() {
        let cases = [
            ("Could not resolve hostname nowhere: Name or service not known", "cannot be resolved"),
            ("connect to host a port 22: Connection refused", "refuses the connection"),
            ("connect to host a port 22: Connection timed out", "does not answer"),
            (
                "No ED25519 host key is known for a and you have requested strict checking.\r\nHost key verification failed.",
                "is not known",
            ),
            ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "has changed"),
            ("root@a: Permission denied (publickey).", "refuses this user or key"),
            ("kex_exchange_identification: Connection closed by remote host", "closed the connection"),
        ];
        for (log, words) in cases {
            let error = classify(log, "a");
            assert!(error.message.contains(words), "{log}: {}", error.message);
            assert!(!error.help.is_empty());
        }
    }

    #[test]
    fn only_what_was_dropped_before_the_key_exchange_is_tried_again() {
        assert!(was_dropped(
            "kex_exchange_identification: read: Connection reset by peer\r\nConnection reset by 10.0.0.1"
        ));
        assert!(!was_dropped("Connection closed by authenticating user root 10.0.0.1 port 22 [preauth]"));
        assert!(!was_dropped("root@a: Permission denied (publickey)."));
    }

    #[test]
    fn pauses_stay_short() {
        let all: Duration = (1..TRIES).map(pause).sum();
        assert!(all >= Duration::from_millis(1500) && all <= Duration::from_secs(3), "{all:?}");
    }
}
