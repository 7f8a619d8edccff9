//! Machines that run: what libvirt says of their process, and the job that holds a point of them.

use std::collections::BTreeMap;
use std::time::Duration;

use kvm_clone_core::domain::{DiskElement, Domain as Definition};
use kvm_clone_core::inventory::LiveMachine;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::{Code, Error, Result};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::{Domain, DomainPausedReason, DomainStateReason};
use virt::enumutil::Enum;
use virt::sys;

use super::ffi;
use super::libvirt::{Libvirt, by_uuid};

/// What libvirt says of a machine's process.
struct Told {
    id: u32,
    xml: String,
    sizes: BTreeMap<DiskTarget, u64>,
    job: Option<String>,
    libvirt: u32,
    qemu: u32,
    storage_failed: bool,
    capabilities: String,
}

impl Libvirt {
    /// The process of a machine; none where it has none. What the host itself knows (`virsh`, scratch space) is for the
    /// caller to fill in.
    pub(crate) async fn live(&self, uuid: Uuid) -> Result<Option<LiveMachine>> {
        let told =
            self.call(move |connection| by_uuid(connection, uuid)?.map_or(Ok(None), |domain| ask(connection, &domain)));
        let Some(told) = told.await? else { return Ok(None) };
        let definition = Definition::parse(&told.xml)?;
        let path = |disk: &DiskElement| (disk.target.clone(), disk.source.clone().unwrap_or_default());
        Ok(Some(LiveMachine {
            id: told.id,
            disks: definition.data_disks().map(path).collect::<BTreeMap<_, _>>(),
            sizes: told.sizes,
            storage_failed: told.storage_failed,
            job: told.job,
            libvirt_version: u64::from(told.libvirt),
            qemu_version: u64::from(told.qemu),
            backup: kvm_clone_core::inventory::can_back_up(&told.capabilities)?,
            virsh: false,
            scratch_available: 0,
        }))
    }

    /// Begins the job that holds a point of a machine.
    pub(crate) async fn begin_backup(&self, uuid: Uuid, xml: String) -> Result<()> {
        let begun = self.call_for(BEGINS_WITHIN, move |connection| {
            by_uuid(connection, uuid)?.map_or(Ok(Some(())), |domain| ffi::begin_backup(&domain, &xml).map(|()| None))
        });
        match begun.await {
            Ok(None) => Ok(()),
            Ok(Some(())) => Err(Error::conflict("the machine was undefined just now").transient()),
            Err(error) => Err(self.not_begun(error)),
        }
    }

    /// libvirt says so where another job came first: only one may run on a machine.
    fn not_begun(&self, error: Error) -> Error {
        let code = error.context.get("libvirt_code");
        if BUSY.iter().any(|number| code == Some(&number.to_string())) && is_about_a_job(&error.message) {
            let mut busy = Error::new(Code::Locked, format!("the machine is busy: {}", error.message))
                .with("host", self.host())
                .help("Wait for the end of that job: virsh domjobinfo shows it, virsh domjobabort ends it")
                .transient();
            busy.context.extend(error.context);
            return busy;
        }
        error
    }
}

/// libvirt waits 30 s for the end of somebody else's job before it says so (`QEMU_JOB_WAIT_TIME`): its answer must not be
/// missed by a hair.
const BEGINS_WITHIN: Duration = Duration::from_secs(40);

/// How libvirt refuses a job because of another one: at once, after waiting for it, or because of a disk's own job.
const BUSY: [u32; 3] =
    [sys::VIR_ERR_OPERATION_INVALID, sys::VIR_ERR_OPERATION_TIMEOUT, sys::VIR_ERR_OPERATION_UNSUPPORTED];

fn is_about_a_job(message: &str) -> bool {
    message.contains("job") || message.contains("state change lock")
}

fn ask(connection: &Connect, domain: &Domain) -> Result<Option<Told>, virt::error::Error> {
    let Some(id) = domain.id() else { return Ok(None) };
    let xml = domain.xml_desc(0)?;
    let root = Definition::parse(&xml).map(|definition| definition.platform()).ok();
    let part = |part: Option<String>| part.filter(|part| !part.is_empty());
    let (emulator, arch, virt_type) =
        root.map_or((None, None, None), |platform| (platform.emulator, platform.arch, part(Some(platform.virt_type))));
    let capabilities =
        connection.domain_capabilities(emulator.as_deref(), arch.as_deref(), None, virt_type.as_deref(), 0)?;
    Ok(Some(Told {
        id,
        sizes: sizes(domain, &xml),
        xml,
        storage_failed: storage_failed(domain)?,
        job: job(domain)?,
        libvirt: connection.lib_version()?,
        qemu: connection.hyp_version()?,
        capabilities,
    }))
}

/// The sizes of the disks that say theirs: libvirt-domain, `virDomainGetBlockInfo`. It asks the process, so a disk that was
/// resized has its new one.
fn sizes(domain: &Domain, xml: &str) -> BTreeMap<DiskTarget, u64> {
    let disks = Definition::parse(xml).map(|definition| definition.data_disks().cloned().collect::<Vec<_>>());
    let sized =
        |disk: DiskElement| Some((disk.target.clone(), domain.block_info(disk.target.as_str(), 0).ok()?.capacity));
    disks.unwrap_or_default().into_iter().filter_map(sized).collect()
}

fn storage_failed(domain: &Domain) -> Result<bool, virt::error::Error> {
    let (_, reason) = domain.state()?;
    Ok(
        matches!(reason, Enum::Known(DomainStateReason::Paused(why)) if why.known() == Some(DomainPausedReason::IOError)),
    )
}

/// The job that runs on a machine, in words.
fn job(domain: &Domain) -> Result<Option<String>, virt::error::Error> {
    let Some(job) = ffi::job(domain)? else { return Ok(None) };
    let what = match job.operation {
        Some(sys::VIR_DOMAIN_JOB_OPERATION_BACKUP) => "a backup",
        Some(sys::VIR_DOMAIN_JOB_OPERATION_SAVE) => "saving its memory",
        Some(sys::VIR_DOMAIN_JOB_OPERATION_RESTORE) => "being restored",
        Some(sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN | sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT) => "a migration",
        Some(sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT | sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT) => "a snapshot",
        Some(sys::VIR_DOMAIN_JOB_OPERATION_DUMP) => "a memory dump",
        _ => "a job that libvirt does not name",
    };
    let seconds = job.milliseconds.map(|elapsed| format!(", for {} s", elapsed / 1000)).unwrap_or_default();
    Ok(Some(format!("{what}{seconds}")))
}
