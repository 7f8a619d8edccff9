//! The machines that are compared: found, locked, looked at, and looked at again.

use std::collections::BTreeMap;

use kvm_clone_core::domain::{Domain, Lineage};
use kvm_clone_core::inventory::MachineState;
use kvm_clone_core::journal::LockKey;
use kvm_clone_core::name::{DiskTarget, SourceName};
use kvm_clone_core::plan::refuse_disk;
use kvm_clone_core::wire::control::Request;
use kvm_clone_core::wire::facts::Identity;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Code, Error, Result};
use uuid::Uuid;

use crate::inventory::{self, Inspected, Site};
use crate::known::{OwnFile, own_files};
use crate::step::export;

/// A stopped machine whose lock is held.
pub(super) struct Subject {
    pub(super) site: Site,
    pub(super) name: SourceName,
    uuid: Uuid,
    pub(super) lineage: Option<Lineage>,
    pub(super) disks: Vec<SubjectDisk>,
    /// The files that it has beside its disks, where it is a copy.
    pub(super) files: Vec<OwnFile>,
}

/// A disk of it.
pub(super) struct SubjectDisk {
    pub(super) target: DiskTarget,
    /// As the agent reads it.
    pub(super) image: ImageSpec,
    /// Size that the guest sees, in bytes.
    pub(super) size: u64,
    /// The topmost image as the definition names it.
    named: ImageSpec,
    /// What identified its files before any was read.
    identities: Vec<Identity>,
}

/// Takes the locks of one machine, or of two, and looks at their disks.
pub(super) async fn take(
    operation: Uuid,
    ours: (Site, &SourceName),
    theirs: Option<(Site, &SourceName)>,
) -> Result<(Subject, Option<Subject>)> {
    let our_uuid = find(&ours.0, ours.1).await?;
    let Some(theirs) = theirs else {
        lock(&ours.0, operation, &[our_uuid]).await?;
        return Ok((Subject::look(ours, "disk").await?, None));
    };
    let their_uuid = find(&theirs.0, theirs.1).await?;
    if !ours.0.host.is(&theirs.0.host) {
        lock(&ours.0, operation, &[our_uuid]).await?;
        lock(&theirs.0, operation, &[their_uuid]).await?;
    } else if our_uuid == their_uuid {
        return Err(Error::validation(format!("{} on {} is one machine, not two", ours.1, ours.0.host.name))
            .with("vm", ours.1)
            .help("Name another machine after --against"));
    } else {
        // One agent holds the locks of both, and takes them at once.
        lock(&ours.0, operation, &[our_uuid, their_uuid]).await?;
    }
    let (ours, theirs) = tokio::try_join!(Subject::look(ours, "disk"), Subject::look(theirs, "against"))?;
    Ok((ours, Some(theirs)))
}

/// A machine that is there, and stopped.
async fn find(site: &Site, name: &SourceName) -> Result<Uuid> {
    let machine = site.libvirt.source(name, site.host.facts.id.clone()).await?;
    if machine.state == MachineState::Stopped {
        return Ok(machine.uuid);
    }
    let (host, state) = (&site.host.name, machine.state);
    Err(Error::conflict(format!("machine {name} on {host} is {state}: its disks change while they are read"))
        .with("vm", name)
        .with("host", host)
        .help("Shut it down, and verify it before it is started again")
        .help("A sync verifies what it writes; a machine that runs can be synced"))
}

/// Its disks are known to be no point of anything.
fn out_of_service(site: &Site, name: &SourceName) -> Error {
    let host = &site.host.name;
    Error::conflict(format!("replica {name} on {host} is out of service: its disks are neither one point nor another"))
        .with("vm", name)
        .with("host", host)
        .help("A sync in place of it was interrupted: sync it again, which completes it")
}

async fn lock(site: &Site, operation: Uuid, machines: &[Uuid]) -> Result<()> {
    let mut keys: Vec<String> = machines.iter().map(|uuid| LockKey::Machine(*uuid).to_string()).collect();
    keys.sort();
    site.host.control.order(Request::Lock { operation, keys }).await
}

/// The disks of both, by target device.
pub(super) fn pairs<'a>(
    ours: &'a Subject,
    theirs: &'a Subject,
) -> BTreeMap<DiskTarget, (Option<&'a SubjectDisk>, Option<&'a SubjectDisk>)> {
    let mut pairs = BTreeMap::<DiskTarget, (Option<&SubjectDisk>, Option<&SubjectDisk>)>::new();
    for disk in &ours.disks {
        pairs.entry(disk.target.clone()).or_default().0 = Some(disk);
    }
    for disk in &theirs.disks {
        pairs.entry(disk.target.clone()).or_default().1 = Some(disk);
    }
    pairs
}

/// What came of comparing, if nothing of the machines changed meanwhile. A change explains whatever else went wrong.
pub(super) async fn if_unchanged<T>(outcome: Result<T>, ours: &Subject, theirs: Option<&Subject>) -> Result<T> {
    let theirs = async {
        match theirs {
            Some(theirs) => theirs.unchanged().await,
            None => Ok(()),
        }
    };
    match tokio::try_join!(ours.unchanged(), theirs) {
        Err(error) if error.code == Code::Conflict => Err(error),
        Err(error) => outcome.and(Err(error)),
        Ok(_) => outcome,
    }
}

impl Subject {
    /// Looks at a machine whose lock is held. `side` tells what is exported for it from what is exported for another machine.
    async fn look((site, name): (Site, &SourceName), side: &str) -> Result<Self> {
        let uuid = find(&site, name).await?;
        let gone = || Error::conflict(format!("machine {name} is not there any more")).with("vm", name);
        let xml = site.libvirt.definition(uuid).await?.ok_or_else(gone)?;
        let domain = Domain::parse(&xml).map_err(|error| error.with("vm", name))?;
        if domain.lineage().is_some_and(|lineage| lineage.incomplete.is_some()) {
            return Err(out_of_service(&site, name));
        }
        let mut found = inventory::disk_images(&site, &domain).await?;
        let has_qemu_nbd = site.host.facts.programs.contains_key("qemu-nbd");
        let mut disks = Vec::new();
        for disk in domain.data_disks() {
            let Inspected { images, identities } = found.remove(&disk.target).unwrap_or_default();
            if let Some(refusal) = refuse_disk(disk, &images, &site.host.name, has_qemu_nbd) {
                return Err(refusal.with("vm", name).with("host", &site.host.name));
            }
            let mut image = inventory::spec(&images)?;
            let named = ImageSpec::new(&image.path, image.format.clone());
            if images.iter().any(|image| !image.by_qemu.is_empty()) {
                image = export(&site.host, format!("{side}-{}", disk.target), image).await?;
            }
            let size = images.first().map_or(0, |top| top.virtual_size);
            disks.push(SubjectDisk { target: disk.target.clone(), image, size, named, identities });
        }
        let lineage = domain.lineage();
        let files = lineage.as_ref().map(|lineage| own_files(&site.host, &domain, uuid, lineage)).transpose()?;
        Ok(Self { site, name: name.clone(), uuid, lineage, disks, files: files.unwrap_or_default() })
    }

    /// Whether it is stopped still, and nobody wrote to its images.
    async fn unchanged(&self) -> Result<()> {
        let another = |what: String| {
            Error::conflict(format!(
                "machine {} on {} {what} while its disks were compared",
                self.name, self.site.host.name
            ))
            .with("vm", &self.name)
            .with("host", &self.site.host.name)
            .help("What was found proves nothing: verify it again when nobody uses it")
        };
        match self.site.libvirt.state(self.uuid).await? {
            Some(MachineState::Stopped) => {}
            Some(state) => return Err(another(format!("was started (it is {state})"))),
            None => return Err(another("was undefined".to_owned())),
        }
        for disk in &self.disks {
            let now = inventory::inspect(&self.site.host, disk.named.clone()).await?;
            if now.identities != disk.identities {
                let error = another(format!("got something written to the image of disk {}", disk.target));
                return Err(error.with("disk", &disk.target).with("path", &disk.named.path));
            }
        }
        Ok(())
    }
}
