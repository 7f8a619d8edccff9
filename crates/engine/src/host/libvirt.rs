//! libvirt of one host, through its API over the agent's relay.
//!
//! The library blocks, so every call runs on a thread for blocking work, with a deadline.

mod machines;

use std::collections::BTreeSet;
use std::sync::{Arc, Once};
use std::time::Duration;

use kvm_clone_core::Result;
use kvm_clone_core::domain::Platform;
use kvm_clone_core::inventory::{Cpus, DomainCapabilities, Network, Pool, qemu_owner};
use tokio::sync::{Mutex, OnceCell};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::sys;

use super::call::{Changing, blocking};
use super::control::Control;
use super::install::Privilege;
use super::relay::Relay;
pub(crate) use machines::Listed;

/// An open connection to the libvirt of one host.
#[derive(Clone)]
pub(crate) struct Libvirt {
    connection: Arc<Connection>,
    deadline: Duration,
    host: String,
    abilities: Arc<Abilities>,
    /// Orders to define and undefine.
    changing: Changing,
    _relay: Arc<Relay>,
}

/// What the daemon at the other end can do. It is asked once a connection: the answers are long, and every look at the host
/// wants them. Who upgrades qemu in the middle of an operation is told by the definition, which libvirt refuses then.
#[derive(Default)]
struct Abilities {
    host: OnceCell<Capabilities>,
    cpus: Mutex<Vec<(Platform, Cpus)>>,
}

/// A connection that is closed on a thread of its own: closing is a call like any other, which blocks until it was
/// answered, and the answer comes through tasks that the dropping thread may be the one to run.
struct Connection(Option<Connect>);

impl Connection {
    #[allow(clippy::expect_used, reason = "it is taken only by the drop")]
    fn open(&self) -> &Connect {
        self.0.as_ref().expect("a connection is there until it is dropped")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let connection = self.0.take();
        std::thread::spawn(move || drop(connection));
    }
}

/// What libvirt says of a host as a whole.
pub(crate) struct Capabilities {
    pub(crate) domains: Vec<DomainCapabilities>,
    /// User and group that qemu runs as.
    pub(crate) qemu_owner: Option<(u32, u32)>,
    /// libvirt's version as it counts: 9.1.2 is 9001002.
    pub(crate) version: u64,
}

impl Libvirt {
    /// Opens libvirt through the host's agent.
    pub(crate) async fn open(control: &Control, host: &str, privilege: Privilege, deadline: Duration) -> Result<Self> {
        static QUIET: Once = Once::new();
        // libvirt's client prints every error by itself; ours say more.
        QUIET.call_once(virt::error::clear_error_callback);
        let relay = Relay::open(control).await?;
        let kind = if privilege == Privilege::Root { "system" } else { "session" };
        let uri = format!("qemu+unix:///{kind}?socket={}", relay.socket().display());
        let connection = blocking(deadline, host, move || Connect::open(Some(&uri))).await?;
        Ok(Self {
            connection: Arc::new(Connection(Some(connection))),
            deadline,
            host: host.to_owned(),
            abilities: Arc::default(),
            changing: Changing::default(),
            _relay: Arc::new(relay),
        })
    }

    pub(super) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connect) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T> {
        self.call_for(Duration::ZERO, work).await
    }

    /// A call that may take so long although libvirt is well.
    pub(super) async fn call_for<T: Send + 'static>(
        &self,
        least: Duration,
        work: impl FnOnce(&Connect) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T> {
        let connection = Arc::clone(&self.connection);
        blocking(self.deadline.max(least), &self.host, move || work(connection.open())).await
    }

    /// Whether the connection still works: asks something that the daemon itself must answer.
    pub(crate) async fn answers(&self) -> bool {
        self.call(|connection| connection.lib_version()).await.is_ok()
    }

    /// The host, as the user named it.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Every storage pool.
    pub(crate) async fn pools(&self) -> Result<Vec<Pool>> {
        let told = self
            .call(|connection| {
                let pools = connection.list_all_storage_pools(0)?;
                pools.iter().map(|pool| Ok((pool.xml_desc(0)?, pool.is_active()?))).collect::<Result<Vec<_>, _>>()
            })
            .await?;
        told.iter().map(|(xml, active)| Pool::from_xml(xml, *active)).collect()
    }

    /// Every network.
    pub(crate) async fn networks(&self) -> Result<Vec<Network>> {
        let told = self
            .call(|connection| {
                let networks = connection.list_all_networks(0)?;
                networks.iter().map(|net| Ok((net.xml_desc(0)?, net.is_active()?))).collect::<Result<Vec<_>, _>>()
            })
            .await?;
        told.iter().map(|(xml, active)| Network::from_xml(xml, *active)).collect()
    }

    /// The names of the network filters; a user's own libvirt has none.
    pub(crate) async fn network_filters(&self) -> Result<BTreeSet<String>> {
        let has_none = |error: &virt::error::Error| error.code().is(ErrorNumber::NoSupport);
        self.call(move |connection| match connection.list_nw_filters() {
            Err(error) if has_none(&error) => Ok(BTreeSet::new()),
            names => names.map(BTreeSet::from_iter),
        })
        .await
    }

    /// The UUIDs of the secrets that libvirt keeps.
    pub(crate) async fn secrets(&self) -> Result<BTreeSet<Uuid>> {
        self.call(|connection| connection.list_all_secrets(0)?.iter().map(virt::secret::Secret::uuid).collect()).await
    }

    /// What the host can run, as whom, and by which version.
    pub(crate) async fn capabilities(&self) -> Result<&Capabilities> {
        let ask = async || {
            let (xml, version) =
                self.call(|connection| Ok((connection.capabilities()?, connection.lib_version()?))).await?;
            Ok(Capabilities {
                domains: DomainCapabilities::all_from_xml(&xml)?,
                qemu_owner: qemu_owner(&xml)?,
                version: u64::from(version),
            })
        };
        self.abilities.host.get_or_try_init(ask).await
    }

    /// The CPUs that guests on this platform can see.
    pub(crate) async fn cpus(&self, platform: Platform) -> Result<Cpus> {
        let mut known = self.abilities.cpus.lock().await;
        if let Some((_, cpus)) = known.iter().find(|(of, _)| *of == platform) {
            return Ok(cpus.clone());
        }
        let Platform { virt_type, arch, machine, emulator } = platform.clone();
        let told = self.call(move |connection| {
            let words = (emulator.as_deref(), arch.as_deref(), machine.as_deref());
            connection.domain_capabilities(words.0, words.1, words.2, Some(&virt_type), 0)
        });
        let cpus = Cpus::from_xml(&told.await?)?;
        known.push((platform, cpus.clone()));
        Ok(cpus)
    }

    /// Where a pool's volume is.
    pub(crate) async fn volume_path(&self, pool: String, volume: String) -> Result<String> {
        self.call(move |connection| {
            connection.lookup_storage_pool_by_name(&pool)?.lookup_storage_vol_by_name(&volume)?.path()
        })
        .await
    }

    /// Defines a machine: one call, after which the new definition is there whole.
    pub(crate) async fn define(&self, xml: String) -> Result<()> {
        self.change(move |connection| connection.define_domain_xml(&xml).map(drop)).await
    }

    async fn change(
        &self,
        work: impl FnOnce(&Connect) -> Result<(), virt::error::Error> + Send + 'static,
    ) -> Result<()> {
        let connection = Arc::clone(&self.connection);
        self.changing.blocking(self.deadline, &self.host, move || work(connection.open())).await
    }

    /// Waits until no definition that was asked for over this connection can still come, or go.
    ///
    /// # Errors
    /// [`Code::Timeout`] where libvirt does not answer.
    pub(crate) async fn no_more_changes(&self) -> Result<()> {
        self.changing.over(self.deadline, &self.host).await
    }

    /// Whether a machine starts with its host; one that is not there does not.
    pub(crate) async fn autostart(&self, uuid: Uuid) -> Result<bool> {
        self.call(move |connection| by_uuid(connection, uuid)?.map_or(Ok(false), |domain| domain.autostart())).await
    }

    /// Has a machine start with its host, or not.
    pub(crate) async fn set_autostart(&self, uuid: Uuid, on: bool) -> Result<()> {
        let set = move |domain: Domain| if domain.autostart()? == on { Ok(()) } else { domain.set_autostart(on) };
        self.call(move |connection| by_uuid(connection, uuid)?.map_or(Ok(()), set)).await
    }

    /// Removes a definition; one that is not there is fine.
    pub(crate) async fn undefine(&self, uuid: Uuid) -> Result<()> {
        let undefine = |connection: &Connect, domain: &Domain| undefine(domain, connection.lib_version()?);
        self.change(move |connection| by_uuid(connection, uuid)?.map_or(Ok(()), |domain| undefine(connection, &domain)))
            .await
    }

    /// Has a pool look at its directory, so that it tracks the volumes that we put there.
    pub(crate) async fn refresh(&self, pool: String) -> Result<()> {
        self.call(move |connection| connection.lookup_storage_pool_by_name(&pool)?.refresh(0).map(drop)).await
    }
}

/// libvirt refuses to undefine a machine with firmware variables unless it is told what to do with their file, and takes
/// the state of a TPM away unless it is told not to, which it understands since 8.9. Both are ours to remove, and what
/// was there before us is to stay.
fn undefine(domain: &Domain, version: u32) -> Result<(), virt::error::Error> {
    let tpm = if version >= 8_009_000 { sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM } else { 0 };
    domain.undefine_flags(sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | tpm)
}

fn not_found(error: &virt::error::Error) -> bool {
    error.code().is(ErrorNumber::NoDomain)
}

pub(super) fn by_uuid(connection: &Connect, uuid: Uuid) -> Result<Option<Domain>, virt::error::Error> {
    match connection.lookup_domain_by_uuid_string(&uuid.to_string()) {
        Err(error) if not_found(&error) => Ok(None),
        other => other.map(Some),
    }
}
