//! Machines of a host: looked up, listed, and what their definitions say.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;

use kvm_clone_core::inventory::{ExistingMachine, HostId, Machine, MachineState, SourceMachine};
use kvm_clone_core::name::SourceName;
use kvm_clone_core::{Code, Error, Result};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::{Domain, DomainState};
use virt::sys;

use super::{Libvirt, by_uuid, not_found};
use crate::host::ffi;

/// Threads that ask libvirt at once when there is much to ask; hides the round trips of a far host.
const ASKING: usize = 8;

/// A machine as libvirt lists it, without its files.
pub(crate) struct Listed {
    pub(crate) machine: ExistingMachine,
    /// What its next start takes.
    pub(crate) xml: String,
    /// What it runs with, where it does: what was plugged in since stands in no definition.
    pub(crate) live: Option<String>,
}

impl Libvirt {
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
                    images: BTreeMap::new(),
                    unseen: BTreeMap::new(),
                    files: BTreeMap::new(),
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

    /// The UUID of the machine of that name, if there is one.
    pub(crate) async fn uuid_of(&self, name: String) -> Result<Option<Uuid>> {
        self.call(move |connection| lookup(connection, &name)?.map(|domain| domain.uuid()).transpose()).await
    }
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
