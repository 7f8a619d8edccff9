//! SSH connections: OpenSSH itself, driven through its multiplexing socket.
//!
//! So `ssh_config`, ProxyJump, agents, certificates, hardware keys and `known_hosts` work as the user knows them. We
//! add a configuration of our own that includes the user's and the system's and only then sets a default: in OpenSSH
//! the first value wins, so whatever the user chose stays.

mod master;
mod refusal;
mod undelayed;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvm_clone_core::host::SshAddr;
use kvm_clone_core::{Error, Result};
use openssh::Session;
use tempfile::TempDir;

use refusal::{Refusal, silent};
use undelayed::Undelayed;

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

/// Tries for a connection that the server drops before the key exchange, as `MaxStartups` makes it do in a burst.
const TRIES: u32 = 5;
/// Pauses between these tries grow by this, and by up to as much again, so that those of one burst part ways.
const PAUSE: Duration = Duration::from_millis(150);

/// A connection. It ends when nobody uses it any more, at once.
#[derive(Debug)]
pub(crate) struct Connection {
    session: Arc<Session>,
    /// Its TCP connection, until the first session runs.
    login: Mutex<Option<Undelayed>>,
    /// Where its socket is, without which it could not be ended.
    _dir: Arc<TempDir>,
}

impl Connection {
    pub(crate) fn session(&self) -> Arc<Session> {
        Arc::clone(&self.session)
    }

    /// Waits until a session is open.
    pub(crate) async fn opened<T>(&self, opening: impl Future<Output = T> + Send) -> T {
        // Of a future in a future in a future the compiler would not find the size.
        let opening: Pin<Box<dyn Future<Output = T> + Send + '_>> = Box::pin(opening);
        let login = self.login.lock().unwrap_or_else(PoisonError::into_inner).take();
        match login {
            Some(mut connection) => connection.during(opening).await,
            None => opening.await,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Left alone it would stay until it has been idle for long enough. One that is gone already is fine.
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

/// Opens a connection.
pub(crate) async fn connect(
    host: &SshAddr,
    options: &SshOptions,
    dir: &Arc<TempDir>,
    prefer_aes: bool,
) -> Result<Arc<Connection>> {
    let config = write_config(options, dir.path(), prefer_aes)?;
    for number in 1.. {
        match master::launch(host, options, &config, dir.path()).await {
            Ok((socket, login)) => {
                let session = Arc::new(Session::resume_mux(socket.into(), None));
                let login = Mutex::new(Some(login));
                return Ok(Arc::new(Connection { session, login, _dir: Arc::clone(dir) }));
            }
            Err(Refusal { dropped: true, .. }) if number < TRIES => tokio::time::sleep(pause(number)).await,
            Err(Refusal { error, .. }) => return Err(error),
        }
    }
    Err(silent(&host.name))
}

/// Longer from try to try, and never twice the same.
fn pause(number: u32) -> Duration {
    let mut random = [0];
    // Without random bytes the pauses are merely alike.
    let _ = getrandom::fill(&mut random);
    let base = PAUSE * number;
    base + base * u32::from(random[0]) / 255
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

/// An error on a connection that was there.
pub(crate) fn lost(error: &openssh::Error) -> Error {
    Error::connection("the SSH connection was lost").with("ssh", chain(error)).transient()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_short() {
        let all: Duration = (1..TRIES).map(pause).sum();
        assert!(all >= Duration::from_millis(1500) && all <= Duration::from_secs(3), "{all:?}");
    }
}
