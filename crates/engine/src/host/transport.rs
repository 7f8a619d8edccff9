//! How a command is started on a host, and how its streams are reached.
//!
//! What a remote shell sees is a script of ours in single quotes; the values in it are hexadecimal digests, numbers and
//! fixed words.

use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use kvm_clone_core::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};

use super::ssh::{self, Connection};

/// A way to start commands on one host.
#[derive(Clone)]
pub(crate) enum Transport {
    /// This machine.
    Local,
    /// One SSH connection.
    Ssh(Arc<Connection>),
}

/// A stream that we read.
pub(crate) type Reading = Box<dyn AsyncRead + Send + Unpin>;
/// A stream that we write.
pub(crate) type Writing = Box<dyn AsyncWrite + Send + Unpin>;

/// A started command whose streams we hold.
pub(crate) struct Started {
    pub(crate) stdin: Writing,
    pub(crate) stdout: Reading,
    pub(crate) stderr: Reading,
    pub(crate) child: Child,
}

/// A started command's end.
pub(crate) enum Child {
    Local(tokio::process::Child),
    /// With the connection that it needs as long as it runs.
    Ssh(Box<openssh::Child<Arc<openssh::Session>>>, Arc<Connection>),
}

impl Child {
    /// Waits for the command's end. None: it was killed by a signal, or its connection broke.
    pub(crate) async fn wait(self) -> Option<i32> {
        match self {
            Self::Local(mut child) => child.wait().await.ok().and_then(|status: ExitStatus| status.code()),
            Self::Ssh(child, _connection) => match child.wait().await {
                Ok(status) => status.code(),
                // The crate reports status 127 as an error of its own.
                Err(openssh::Error::Remote(_)) => Some(127),
                Err(_) => None,
            },
        }
    }
}

impl Transport {
    /// Whether commands are started over SSH.
    pub(crate) const fn is_ssh(&self) -> bool {
        matches!(self, Self::Ssh(_))
    }

    /// Starts a script of ours; we hold its streams.
    pub(crate) async fn start(&self, script: &Script) -> Result<Started> {
        match self {
            Self::Local => {
                let mut child = local(script)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .map_err(|error| Error::connection(format!("starting sh: {error}")))?;
                let (Some(stdin), Some(stdout), Some(stderr)) =
                    (child.stdin.take(), child.stdout.take(), child.stderr.take())
                else {
                    return Err(Error::internal("a started command has no streams"));
                };
                Ok(Started {
                    stdin: Box::new(stdin),
                    stdout: Box::new(stdout),
                    stderr: Box::new(stderr),
                    child: Child::Local(child),
                })
            }
            Self::Ssh(connection) => {
                let mut command = connection.session().arc_raw_command(script.for_shell());
                let piped = openssh::Stdio::piped;
                let command = command.stdin(piped()).stdout(piped()).stderr(piped());
                let mut child = connection.opened(command.spawn()).await.map_err(|error| ssh::lost(&error))?;
                let (Some(stdin), Some(stdout), Some(stderr)) =
                    (child.stdin().take(), child.stdout().take(), child.stderr().take())
                else {
                    return Err(Error::internal("a started command has no streams"));
                };
                Ok(Started {
                    stdin: Box::new(stdin),
                    stdout: Box::new(stdout),
                    stderr: Box::new(stderr),
                    child: Child::Ssh(Box::new(child), Arc::clone(connection)),
                })
            }
        }
    }

    /// Starts a script of ours on these streams; its log is dropped.
    pub(crate) async fn start_on(&self, script: &Script, stdin: OwnedFd, stdout: OwnedFd) -> Result<Child> {
        match self {
            Self::Local => {
                let child = local(script)
                    .stdin(stdin)
                    .stdout(stdout)
                    .stderr(Stdio::null())
                    .spawn()
                    .map_err(|error| Error::connection(format!("starting sh: {error}")))?;
                Ok(Child::Local(child))
            }
            Self::Ssh(connection) => {
                let mut command = connection.session().arc_raw_command(script.for_shell());
                let command = command.stdin(stdin).stdout(stdout).stderr(openssh::Stdio::null());
                let child = connection.opened(command.spawn()).await.map_err(|error| ssh::lost(&error))?;
                Ok(Child::Ssh(Box::new(child), Arc::clone(connection)))
            }
        }
    }
}

/// A POSIX shell script without single quotes.
#[derive(Debug, Clone)]
pub(crate) struct Script(String);

impl Script {
    /// Takes a script of ours.
    ///
    /// # Errors
    /// It holds a single quote, which would end the quotes that it is sent in.
    pub(crate) fn new(text: String) -> Result<Self> {
        if text.contains('\'') { Err(Error::internal("a script holds a single quote")) } else { Ok(Self(text)) }
    }

    /// The script as a command for whatever login shell the user has: `exec` and single quotes mean the same in all.
    fn for_shell(&self) -> String {
        format!("exec sh -c '{}'", self.0)
    }
}

/// A process group of its own keeps Ctrl-C at the terminal from reaching the agent: ending is the controller's to do.
fn local(script: &Script) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("sh");
    command.arg("-c").arg(&script.0).process_group(0);
    command
}
