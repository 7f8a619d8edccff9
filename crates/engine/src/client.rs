//! The public library: [`Client`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_clone_core::event::Phase;
use kvm_clone_core::host::HostAddr;
use kvm_clone_core::inventory::{Machine, SourceMachine};
use kvm_clone_core::name::SourceName;
use kvm_clone_core::plan::{CloneRequest, Existing, SyncRequest, sync_request};
use kvm_clone_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::clone::{self, Events, Look, Prepared};
use crate::doctor::{self, Finding};
use crate::host::install::{AgentFile, Privilege};
use crate::host::ssh::SshOptions;
use crate::host::{Access, Host, private};
use crate::inventory::{self, Site};
use crate::lane;
use crate::list;
use crate::phases::Phases;
use crate::recover::{self, Recovered, Recovery};
use crate::store::Store;
use crate::verify::{self, VerifyRequest, VerifyResult};

/// How a [`Client`] reaches hosts and where it keeps its journal. The library reads no environment and no
/// configuration; whoever makes the client does.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The agent program that is installed on hosts.
    pub agent: PathBuf,
    /// The journal's file; it is made where there is none.
    pub journal: PathBuf,
    /// How SSH connects.
    pub ssh: SshOptions,
    /// Silence after which controller and agent count each other as gone.
    pub silence: Duration,
    /// How long anything that an operation waits for on a host may go on without progress: the copying of blocks, and whatever an
    /// agent works on.
    pub stall_timeout: Duration,
    /// How long one call of libvirt may take.
    pub libvirt_timeout: Duration,
}

impl ClientOptions {
    /// Options with the defaults for everything but these two paths.
    #[must_use]
    pub fn new(agent: PathBuf, journal: PathBuf) -> Self {
        Self {
            agent,
            journal,
            ssh: SshOptions::default(),
            silence: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(120),
            libvirt_timeout: Duration::from_secs(30),
        }
    }
}

/// A host to be used, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSpec {
    /// How it is reached.
    pub addr: HostAddr,
    /// As whom the agent runs there.
    pub privilege: Privilege,
}

impl std::str::FromStr for HostSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse::<HostAddr>().map(Self::from)
    }
}

impl From<HostAddr> for HostSpec {
    fn from(addr: HostAddr) -> Self {
        Self { addr, privilege: Privilege::default() }
    }
}

/// Copies machines between libvirt hosts.
///
/// ```no_run
/// # async fn example() -> Result<(), kvm_clone_core::Error> {
/// use std::sync::Arc;
/// use kvm_clone_engine::{Client, ClientOptions, CloneSettings, Recovery};
/// use kvm_clone_core::plan::CloneRequest;
/// use tokio_util::sync::CancellationToken;
///
/// let options = ClientOptions::new("/usr/libexec/kvm-clone-agent".into(), "/tmp/journal.db".into());
/// let client = Client::new(options).await?;
/// let (alpha, beta) = ("alpha".parse()?, "root@beta".parse()?);
/// let events = Arc::new(|event| println!("{event:?}"));
/// let prepared = client.prepare(&alpha, &beta, &"web1".parse()?, CloneRequest::default(), Recovery::Act, events.clone()).await?;
/// println!("{}", prepared.plan().describe());
/// let result = prepared.execute(&CloneSettings::default(), events, CancellationToken::new()).await?;
/// println!("{} is on {}", result.new_vm_name, result.dest_host);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) access: Arc<Access>,
    pub(crate) journal: PathBuf,
}

impl Client {
    /// A client that reaches hosts in this way. Connects to nothing yet.
    ///
    /// # Errors
    /// The agent program is not there.
    pub async fn new(options: ClientOptions) -> Result<Self> {
        let agent = AgentFile::find(options.agent).await?;
        // What dead processes left is swept beside everything else: nothing waits for that.
        drop(tokio::task::spawn_blocking(private::sweep));
        let me = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let access = Access {
            ssh: options.ssh,
            agent,
            silence: options.silence,
            stall: options.stall_timeout,
            libvirt_deadline: options.libvirt_timeout,
            controller: format!("{me} pid {}", std::process::id()),
        };
        Ok(Self { access: Arc::new(access), journal: options.journal })
    }

    /// The machines of a host, by name.
    ///
    /// # Errors
    /// The host or its libvirt cannot be used.
    pub async fn list(&self, host: &HostSpec) -> Result<Vec<Machine>> {
        list::machines(&self.connect(host).await?).await
    }

    /// Everything that a clone from or to a host relies on, as findings.
    pub async fn doctor(&self, host: &HostSpec) -> Vec<Finding> {
        doctor::examine(host, &self.access).await
    }

    /// Reaches both hosts, takes their inventories and plans a clone. Where a machine is to be replaced, what an interrupted
    /// operation left of it is finished or undone first, if `mode` says so; else nothing is changed on either host, except that
    /// the agent may be installed.
    ///
    /// # Errors
    /// A host cannot be used, the machine is not there, or an interrupted operation cannot be recovered. What keeps the plan
    /// from being carried out is in the plan.
    pub async fn prepare(
        &self,
        source: &HostSpec,
        target: &HostSpec,
        name: &SourceName,
        request: CloneRequest,
        mode: Recovery,
        events: Events,
    ) -> Result<Prepared> {
        let started = Instant::now();
        let mut phases = Phases::default();
        // A name that cannot be is refused before any connection.
        let new_name = request.new_name(name)?;
        phases.enter(Phase::Connect, &events);
        // The source is looked at while the target is still being reached: checking its images takes a while.
        let looked_at = async {
            let site = self.connect(source).await?;
            let seen = clone::look_at_source(&site, name, &request, Look::First).await?;
            lane::read_ahead(&site.host, &seen.machine).await;
            Ok((site, seen))
        };
        let ((source, seen), target, store) =
            tokio::try_join!(looked_at, self.connect(target), Store::open(&self.journal))?;
        let target = same_if_one(&source, target);
        phases.enter(Phase::Plan, &events);
        if mode == Recovery::Act && request.existing == Existing::Replace {
            // What that knows of the machine's files nobody else does, and it goes with the machine.
            if let Some(old) = target.libvirt.uuid_of(new_name.to_string()).await? {
                recover::finish_earlier(&target, &store, old).await?;
            }
        }
        self.plan(Reached { source, target, store, started, phases }, name, request, seen.machine).await
    }

    /// Reaches both hosts, finds the source's replica and plans how it is brought to the source's present point. What an
    /// interrupted operation left of the replica is finished or undone first, where `mode` says so; else nothing is changed
    /// on either host, except that the agent may be installed.
    ///
    /// # Errors
    /// A host cannot be used, the machine or its replica is not there, or an interrupted operation cannot be recovered. What
    /// keeps the plan from being carried out is in the plan.
    pub async fn prepare_sync(
        &self,
        source: &HostSpec,
        target: &HostSpec,
        name: &SourceName,
        asked: &SyncRequest,
        mode: Recovery,
        events: Events,
    ) -> Result<Prepared> {
        let started = Instant::now();
        let mut phases = Phases::default();
        phases.enter(Phase::Connect, &events);
        let (source, target, store) =
            tokio::try_join!(self.connect(source), self.connect(target), Store::open(&self.journal))?;
        let target = same_if_one(&source, target);
        phases.enter(Phase::Plan, &events);
        let machine = source.libvirt.source(name, source.host.facts.id.clone()).await?;
        let found = inventory::find_replica(&target, &machine, asked.replica.as_ref()).await?;
        if mode == Recovery::Act {
            recover::finish_earlier(&target, &store, found.uuid).await?;
        }
        let request = sync_request(&found.name, &found.lineage, asked)?;
        let seen = clone::look_at_source(&source, name, &request, Look::First).await?;
        self.plan(Reached { source, target, store, started, phases }, name, request, seen.machine).await
    }

    /// Looks at the target for what was seen at the source, and plans.
    async fn plan(
        &self,
        reached: Reached,
        name: &SourceName,
        request: CloneRequest,
        seen: SourceMachine,
    ) -> Result<Prepared> {
        let Reached { source, target, store, started, phases } = reached;
        let fresh = clone::fresh_identity(MOST_INTERFACES)?;
        let (host, _) = inventory::target(&target, &request, &seen, &fresh).await?;
        let plan = clone::plan(&seen, &target, &host, &request, &fresh)?;
        let (silence, name) = (self.access.silence, name.clone());
        Ok(Prepared { request, fresh, source, target, plan, store, silence, name, seen, started, phases, staged: None })
    }

    /// Compares the disks of a stopped machine with the digests of its last point, or with the disks of another machine. Nothing
    /// is changed on either host, except that the agent may be installed; stopped midway, nothing is left.
    ///
    /// # Errors
    /// A host cannot be used, a machine is not there, runs, or is in use by another operation, it has no digests, or a disk
    /// cannot be read. That disks differ is no error but a result.
    pub async fn verify(&self, request: &VerifyRequest, events: Events) -> Result<VerifyResult> {
        request.check()?;
        let started = Instant::now();
        let mut phases = Phases::default();
        phases.enter(Phase::Connect, &events);
        let (site, other) = match &request.against {
            None => (self.connect(&request.host).await?, None),
            Some((host, _)) => {
                let (site, other) = tokio::try_join!(self.connect(&request.host), self.connect(host))?;
                let other = same_if_one(&site, other);
                (site, Some(other))
            }
        };
        verify::verify(request, site, other, (started, phases), events).await
    }

    /// What interrupted operations left on a host: finished or undone, unless only looked at.
    ///
    /// # Errors
    /// The host cannot be used. What went wrong with one operation is in its entry.
    pub async fn recover(&self, host: &HostSpec, mode: Recovery) -> Result<Vec<Recovered>> {
        let (site, store) = tokio::try_join!(self.connect(host), Store::open(&self.journal))?;
        let recovered = recover::recover(&site, &store, mode).await;
        store.close().await;
        recovered
    }

    pub(crate) async fn connect(&self, spec: &HostSpec) -> Result<Site> {
        let host = Host::connect(&spec.addr, spec.privilege, &self.access).await?;
        let libvirt = host.libvirt().await.map_err(|error: Error| error.with("host", &host.name))?;
        Ok(Site { host, libvirt })
    }
}

/// Both hosts, and the journal of what will be done with them.
struct Reached {
    source: Site,
    target: Site,
    store: Store,
    started: Instant,
    phases: Phases,
}

/// One host under two names is served by one agent, which then holds all locks.
pub(crate) fn same_if_one(source: &Site, target: Site) -> Site {
    if !source.host.is(&target.host) {
        return target;
    }
    let mut same = source.clone();
    same.host.name = target.host.name;
    same
}

/// Random MAC addresses that are kept ready; qemu has no room for as many interfaces.
const MOST_INTERFACES: usize = 256;
