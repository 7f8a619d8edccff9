//! A host: reached, with its agent started and its libvirt opened.

mod answers;
mod call;
pub(crate) mod control;
mod ffi;
mod frames;
pub(crate) mod install;
pub(crate) mod libvirt;
mod live;
pub(crate) mod private;
mod relay;
pub(crate) mod ssh;
pub(crate) mod transport;

use std::sync::Arc;
use std::time::Duration;

use kvm_clone_core::host::HostAddr;
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::facts::HostFacts;
use kvm_clone_core::{Code, Error, Result};
use tempfile::TempDir;

use crate::client::HostSpec;
use control::{Control, NoAgent, Patience, unexpected};
use install::{AgentFile, AgentProgram, Privilege};
pub(crate) use libvirt::{Libvirt, Listed};
use ssh::SshOptions;
use transport::Transport;

/// What is needed to use hosts.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) ssh: SshOptions,
    pub(crate) agent: AgentFile,
    /// Silence after which either side counts as gone.
    pub(crate) silence: Duration,
    /// How long a host may work on something without progress.
    pub(crate) stall: Duration,
    /// How long one call of libvirt may take.
    pub(crate) libvirt_deadline: Duration,
    /// Who we are, for whoever meets our locks.
    pub(crate) controller: String,
}

/// A host in use. Dropping it closes the agent's stdin, with which everything of ours there ends.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) addr: HostAddr,
    pub(crate) name: String,
    pub(crate) privilege: Privilege,
    pub(crate) transport: Transport,
    pub(crate) control: Control,
    pub(crate) facts: Arc<HostFacts>,
    program: AgentProgram,
    access: Arc<Access>,
    /// Holds SSH's sockets.
    dir: Arc<TempDir>,
}

impl Host {
    /// Reaches a host and makes sure of its agent.
    pub(crate) async fn connect(addr: &HostAddr, privilege: Privilege, access: &Arc<Access>) -> Result<Self> {
        let dir = Arc::new(private::private_dir()?);
        let reached = async { open(addr, access, &dir).await.map_err(|error| named(error, addr)) };
        let (transport, program) = tokio::try_join!(reached, access.agent.program())?;
        let started = Self::start(addr, privilege, access, transport, program.clone(), dir).await;
        started.map_err(|error| named(error, addr))
    }

    async fn start(
        addr: &HostAddr,
        privilege: Privilege,
        access: &Arc<Access>,
        transport: Transport,
        program: AgentProgram,
        dir: Arc<TempDir>,
    ) -> Result<Self> {
        let name = addr.to_string();
        let control = agent(&transport, privilege, access, &program, &name).await?;
        let facts = match control.ask(Request::Facts).await? {
            Reply::Facts(facts) => Arc::new(*facts),
            other => return Err(unexpected(&other)),
        };
        let (addr, access) = (addr.clone(), Arc::clone(access));
        Ok(Self { addr, name, privilege, transport, control, facts, program, access, dir })
    }

    /// Opens the host's libvirt.
    pub(crate) async fn libvirt(&self) -> Result<Libvirt> {
        let opened = Libvirt::open(&self.control, &self.name, self.privilege, self.access.libvirt_deadline).await;
        opened.map_err(|error| named(error, &self.addr))
    }

    /// One more way to start commands on this host: a connection of its own, or for `local` just another process.
    pub(crate) async fn another_transport(&self) -> Result<Transport> {
        open(&self.addr, &self.access, &self.dir).await
    }

    /// The same host, reached anew with an agent of its own.
    pub(crate) async fn again(&self) -> Result<Self> {
        Self::connect(&self.addr, self.privilege, &self.access).await
    }

    /// How the user named it, and as whom we are there.
    pub(crate) fn spec(&self) -> Result<HostSpec> {
        // The address may be that of another name for the same host.
        Ok(HostSpec { addr: self.name.parse()?, privilege: self.privilege })
    }

    /// The digest of the agent that runs there.
    pub(crate) fn agent_digest(&self) -> &str {
        self.program.digest()
    }

    /// How long something may go on there without progress.
    pub(crate) fn stall(&self) -> Duration {
        self.access.stall
    }

    /// Whether this and the other are one machine, whatever their names.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.facts.id == other.facts.id && self.privilege == other.privilege
    }
}

/// Says which host it was: an agent does not know how the user calls its host.
fn named(mut error: Error, addr: &HostAddr) -> Error {
    let known_as = match addr {
        HostAddr::Local => "local",
        HostAddr::Ssh(ssh) => &ssh.name,
    };
    if !error.message.contains(known_as) {
        error.message = format!("{addr}: {}", error.message);
    }
    error.with("host", addr)
}

async fn open(addr: &HostAddr, access: &Access, dir: &Arc<TempDir>) -> Result<Transport> {
    match addr {
        HostAddr::Local => Ok(Transport::Local),
        HostAddr::Ssh(addr) => {
            let connection = ssh::connect(addr, &access.ssh, dir, has_aes()).await?;
            Ok(Transport::Ssh(connection))
        }
    }
}

/// Starts the agent; installs it where it is not there, or is not the right one.
async fn agent(
    transport: &Transport,
    privilege: Privilege,
    access: &Access,
    program: &AgentProgram,
    name: &str,
) -> Result<Control> {
    let digest = program.digest();
    let mut installed = false;
    loop {
        let started = install::start(transport, digest, privilege).await?;
        let patience = Patience { silence: access.silence, stall: access.stall };
        let greeted = Control::greet(name, started, patience, access.controller.clone()).await;
        match greeted {
            Ok(Ok(control)) if control.hello().build == digest => return Ok(control),
            Ok(Ok(control)) if installed => {
                return Err(Error::connection("the agent on the host is another version than the one installed there")
                    .with("found", &control.hello().build)
                    .with("wanted", digest)
                    .help("Remove /var/lib/kvm-clone/agents on the host and try again"));
            }
            Ok(Err(no_agent)) if installed => return Err(did_not_start(&no_agent)),
            // A second time as silent as the first: that is not the program's fault.
            Err(error) if installed || error.code == Code::Timeout => return Err(error),
            Ok(_) | Err(_) => {
                install::install(transport, program, privilege).await?;
                installed = true;
            }
        }
    }
}

fn did_not_start(no_agent: &NoAgent) -> Error {
    let status = no_agent.status.map_or_else(|| "a signal".to_owned(), |status| format!("status {status}"));
    Error::connection(format!("the agent was installed but does not start (it ended with {status})"))
        .with("log", no_agent.log.trim())
        .help("Look at the log; disk, memory or a security module on the host may forbid it")
}

/// Whether this machine's processors have AES instructions: then AES-GCM is the faster cipher here. A server that lacks
/// them only loses speed, and only where the user has not chosen ciphers.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}
