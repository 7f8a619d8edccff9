//! libvirt of one host, through its API over the agent's relay.
//!
//! The library blocks, so every call runs on a thread for blocking work, with a deadline.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::{Arc, Once};
use std::time::Duration;

use kvm_clone_core::domain::Platform;
use kvm_clone_core::inventory::{
    Cpus, DomainCapabilities, ExistingMachine, HostId, Machine, MachineState, Network, Pool, SourceMachine, qemu_owner,
};
use kvm_clone_core::name::SourceName;
use kvm_clone_core::{Code, Error, Result};
use tokio::sync::{Mutex, OnceCell};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::{Domain, DomainState};
use virt::error::ErrorNumber;
use virt::sys;

use super::call::{Changing, blocking};
use super::control::Control;
use super::ffi;
use super::install::Privilege;
use super::relay::Relay;

/// Threads that ask libvirt at once when there is much to ask; hides the round trips of a far host.
const ASKING: usize = 8;

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

/// A machine as libvirt lists it, without its files.
pub(crate) struct Listed {
    pub(crate) machine: ExistingMachine,
    /// What its next start takes.
    pub(crate) xml: String,
    /// What it runs with, where it does: what was plugged in since stands in no definition.
    pub(crate) live: Option<String>,
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

    /// Every machine with its state and its definition as it is now.
    pub(crate) async fn machines(&self) -> Result<Vec<Machine>> {
        let host = self.host.clone();
        let told = self.call(|connection| for_each_domain(connection, describe)).await?;
        told.into_iter()
            .map(|(state, xml, addresses)| {
                let mut machine = Machine::from_xml(&host, state, &xml)?;
                for network in &mut machine.networks {
                    let address = |(mac, _): &&(String, String)| Some(mac) == network.mac_address.as_ref();
                    network.ip_address = addresses.iter().find(address).map(|(_, address)| address.clone());
                }
                Ok(machine)
            })
            .collect()
    }

    /// The machine of that name, or of that UUID, without its images.
    pub(crate) async fn source(&self, name: &SourceName, host_id: HostId) -> Result<SourceMachine> {
        let (wanted, host) = (name.clone(), self.host.clone());
        let known = self
            .call(move |connection| {
                let found = lookup(connection, wanted.as_str())?;
                let Some(domain) = found else { return Ok(None) };
                let snapshots = domain.list_all_snapshots(0)?;
                let snapshots = snapshots.iter().map(virt::domain_snapshot::DomainSnapshot::name);
                Ok(Some(SourceMachine {
                    host: host_id,
                    host_name: host,
                    name: wanted.clone(),
                    uuid: domain.uuid()?,
                    xml: domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE)?,
                    state: state(&domain)?,
                    persistent: domain.is_persistent()?,
                    managed_save: domain.has_managed_save(0)?,
                    snapshots: snapshots.collect::<Result<_, _>>()?,
                    images: std::collections::BTreeMap::new(),
                    unseen: std::collections::BTreeMap::new(),
                    files: std::collections::BTreeMap::new(),
                    nvram_dir: String::new(),
                    tpm_dir: String::new(),
                    live: None,
                    qemu_nbd: false,
                }))
            })
            .await?;
        match known {
            Some(machine) => Ok(machine),
            None => Err(Error::new(Code::VmNotFound, format!("there is no machine {name} on {}", self.host))
                .with("vm", name)
                .with("host", &self.host)
                .help(format!("kvm-clone list {} shows the machines there", self.host))),
        }
    }

    /// The host, as the user named it.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// What a machine is doing now; none if it is not there any more.
    pub(crate) async fn state(&self, uuid: Uuid) -> Result<Option<MachineState>> {
        self.call(move |connection| by_uuid(connection, uuid)?.map(|domain| state(&domain)).transpose()).await
    }

    /// The definition that a machine's next start takes; none if it is not there.
    pub(crate) async fn definition(&self, uuid: Uuid) -> Result<Option<String>> {
        self.call(move |connection| {
            let flags = sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE;
            by_uuid(connection, uuid)?.map(|domain| domain.xml_desc(flags)).transpose()
        })
        .await
    }

    /// What a machine runs with; none where it does not run, or is not there.
    pub(crate) async fn running(&self, uuid: Uuid) -> Result<Option<String>> {
        let live = |domain: Domain| match state(&domain)? {
            MachineState::Stopped => Ok(None),
            _ => domain.xml_desc(0).map(Some),
        };
        self.call(move |connection| by_uuid(connection, uuid)?.map_or(Ok(None), live)).await
    }

    /// Every machine of a target host; what keeps one from being replaced is asked only for `replaced`.
    pub(crate) async fn existing(&self, replaced: String) -> Result<Vec<Listed>> {
        let told = self.call(move |connection| {
            for_each_domain(connection, |domain| {
                let (name, state) = (domain.name()?, state(domain)?);
                let asked = name == replaced;
                let managed_save = asked && domain.has_managed_save(0)?;
                let snapshots = if asked { count(domain.list_all_snapshots(0)?.len()) } else { 0 };
                let checkpoints = if asked { ffi::checkpoints(domain) } else { 0 };
                let xml = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?;
                let live = if state == MachineState::Stopped { None } else { Some(domain.xml_desc(0)?) };
                Ok((name, domain.uuid()?, state, (managed_save, snapshots, checkpoints), xml, live))
            })
        });
        let listed =
            |(name, uuid, state, (managed_save, snapshots, checkpoints), xml, live): (String, _, _, _, _, _)| {
                let machine = ExistingMachine {
                    name: name.parse().map_err(|error| self.unusable_name(&name, error))?,
                    uuid,
                    state,
                    disk_files: Vec::new(),
                    uses: BTreeSet::new(),
                    used_files: Vec::new(),
                    unseen: Vec::new(),
                    managed_save,
                    snapshots,
                    checkpoints,
                };
                Ok(Listed { machine, xml, live })
            };
        told.await?.into_iter().map(listed).collect()
    }

    /// A machine that is in nobody's way but cannot be named: what it uses must be told all the same.
    fn unusable_name(&self, name: &str, error: Error) -> Error {
        Error::unsupported(format!("a machine of {} has a name that cannot be used: {}", self.host, error.message))
            .with("vm", format!("{name:?}"))
            .with("host", &self.host)
            .help("Give it another one: virsh domrename UUID NEW")
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

    /// The UUID of the machine of that name, if there is one.
    pub(crate) async fn uuid_of(&self, name: String) -> Result<Option<Uuid>> {
        self.call(move |connection| lookup(connection, &name)?.map(|domain| domain.uuid()).transpose()).await
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

fn lookup(connection: &Connect, name: &str) -> Result<Option<Domain>, virt::error::Error> {
    match connection.lookup_domain_by_name(name) {
        Err(error) if not_found(&error) => match name.parse() {
            Ok(uuid) => by_uuid(connection, uuid),
            Err(_) => Ok(None),
        },
        other => other.map(Some),
    }
}

pub(super) fn by_uuid(connection: &Connect, uuid: Uuid) -> Result<Option<Domain>, virt::error::Error> {
    match connection.lookup_domain_by_uuid_string(&uuid.to_string()) {
        Err(error) if not_found(&error) => Ok(None),
        other => other.map(Some),
    }
}

fn state(domain: &Domain) -> Result<MachineState, virt::error::Error> {
    let (state, _) = domain.state()?;
    match state.known() {
        Some(DomainState::Running | DomainState::Blocked | DomainState::Shutdown) => Ok(MachineState::Running),
        Some(DomainState::Paused) => Ok(MachineState::Paused),
        Some(DomainState::PMSuspended) => Ok(MachineState::Suspended),
        Some(DomainState::Crashed) => Ok(MachineState::Crashed),
        Some(DomainState::Shutoff | DomainState::NoState) => Ok(MachineState::Stopped),
        None => Err(virt::error::Error::last_error()),
    }
}

type Description = (MachineState, String, Vec<(String, String)>);

fn describe(domain: &Domain) -> Result<Description, virt::error::Error> {
    let state = state(domain)?;
    let leases = sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE;
    // A network without DHCP of libvirt's has no leases; that is no failure of the list.
    let found = if state == MachineState::Running { domain.interface_addresses(leases, 0).ok() } else { None };
    let addresses = found.into_iter().flatten().filter_map(|interface| {
        let address = interface.addrs.first()?.addr.clone();
        Some((interface.hwaddr?, address))
    });
    Ok((state, domain.xml_desc(0)?, addresses.collect()))
}

/// Asks about every domain, from several threads. One that vanished meanwhile is left out.
fn for_each_domain<T: Send>(
    connection: &Connect,
    ask: impl Fn(&Domain) -> Result<T, virt::error::Error> + Sync,
) -> Result<Vec<T>, virt::error::Error> {
    let domains = connection.list_all_domains(0)?;
    let share = domains.len().div_ceil(ASKING).max(1);
    let ask = &ask;
    let answers = std::thread::scope(|scope| {
        let threads: Vec<_> =
            domains.chunks(share).map(|part| scope.spawn(move || part.iter().map(ask).collect::<Vec<_>>())).collect();
        // A list without what one of them was to ask about would be taken for the whole.
        let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.flatten().collect::<Vec<_>>()
    });
    answers.into_iter().filter(|answer| !answer.as_ref().is_err_and(not_found)).collect()
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_machines_is_whole_or_none() {
        let connection = Connect::open(Some("test:///default")).unwrap();
        let names = for_each_domain(&connection, Domain::name).unwrap();
        assert_eq!(names, ["test"]);
        let asked = std::panic::AssertUnwindSafe(|| for_each_domain(&connection, |_| -> Result<(), _> { panic!() }));
        assert!(std::panic::catch_unwind(asked).is_err());
    }
}
