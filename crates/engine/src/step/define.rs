//! The commit: one definition, before which nothing has changed for anybody and after which everything is there.

use kvm_clone_core::domain::{Domain, is_withdrawn_by};
use kvm_clone_core::inventory::{ImageFormat, MachineState};
use kvm_clone_core::journal::Stands;
use kvm_clone_core::plan::{Replaced, plan_clone};
use kvm_clone_core::wire::control::Request;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::wire::marker::Marker;
use kvm_clone_core::{Code, Error, Result};
use uuid::Uuid;

use super::Work;
use super::hold::release;
use super::marker::kept_of_replaced;
use crate::inventory::{self, Site};
use crate::lane::CopyDisk;
use crate::reconnect;

/// A machine that is to be replaced, as undoing brings it back.
pub(super) struct OldMachine {
    pub(super) definition: String,
    autostart: bool,
}

impl Work {
    /// The commit: everything before it is invisible, everything after it is tidying up.
    pub(super) async fn define(&mut self) -> Result<()> {
        self.source_unchanged().await?;
        self.target = reconnect::revive(&self.target).await?;
        self.hold_old().await?;
        if !(self.define_asked.is_some() && self.stands().await?) {
            match self.plan.replaces.clone() {
                None => self.place_is_free().await?,
                Some(replaced) if self.written().is_empty() => {
                    self.old = Some(self.still_replaceable(&replaced).await?);
                }
                Some(replaced) => self.old = Some(self.still_withdrawn(&replaced).await?),
            }
            let definition =
                self.plan.definition.clone().ok_or_else(|| Error::internal("the plan has no definition"))?;
            self.note_replaced().await?;
            self.hold_state().await?;
            self.define_asked = Some(self.target.libvirt.clone());
            self.target.libvirt.define(definition).await?;
        }
        self.was_not_started().await?;
        release(&self.target).await;
        if secure_definition(&self.target, &mut self.marker).await? {
            let name = &self.plan.new_vm_name;
            self.warn(format!("machine {name} starts with its host no more; virsh autostart turns it on"));
        }
        Ok(())
    }

    /// Writes down, before it is replaced whole, what goes with the machine there: what was kept of it, where it was a copy, and that it
    /// starts with its host.
    async fn note_replaced(&mut self) -> Result<()> {
        let Some(old) = self.old.as_ref().filter(|_| self.plan.replica.is_none()) else { return Ok(()) };
        let kept = self.kept_of(&Domain::parse(&old.definition)?).await?;
        let is_new = |path: &String| !self.marker.outdated.contains(path);
        let (kept, autostart): (Vec<String>, _) = (kept.into_iter().filter(is_new).collect(), old.autostart);
        if kept.is_empty() && autostart == self.marker.autostart_off {
            return Ok(());
        }
        self.marker.outdated.extend(kept);
        self.marker.autostart_off = autostart;
        self.target.host.control.order(Request::PutMarker(Box::new(self.marker.clone()))).await
    }

    /// What was kept of a copy of ours, and of no other machine.
    async fn kept_of(&self, old: &Domain) -> Result<Vec<String>> {
        let Some(lineage) = old.lineage() else { return Ok(Vec::new()) };
        // A copy of a copy, made by another tool, may carry the same lineage: the digests are the other's as well.
        let listed = self.target.libvirt.existing(String::new()).await?;
        let others = listed.iter().filter(|listed| listed.machine.uuid != self.plan.new_uuid);
        if others.map(|other| &other.xml).any(|xml| made_by(xml, lineage.operation)) {
            return Ok(Vec::new());
        }
        Ok(kept_of_replaced(old, &self.target.host, lineage.operation))
    }

    /// Whether neither name nor UUID was taken while the disks were copied: a define would overwrite that machine.
    async fn place_is_free(&self) -> Result<()> {
        let (libvirt, name) = (&self.target.libvirt, &self.plan.new_vm_name);
        let taken =
            libvirt.uuid_of(name.to_string()).await?.is_some() || libvirt.state(self.plan.new_uuid).await?.is_some();
        if !taken {
            return Ok(());
        }
        let message = format!("a machine named {name}, or of its UUID, appeared at the target while it was copied");
        Err(Error::new(Code::VmExists, message)
            .with("vm", name)
            .with("host", &self.target.host.name)
            .help("Choose another name with --new-name, or replace it with --force"))
    }

    /// Whether the machine that is to be replaced is the one that the user saw: planned anew, because somebody may have
    /// started it, given its disks to another machine or made a snapshot since.
    pub(super) async fn still_replaceable(&self, replaced: &Replaced) -> Result<OldMachine> {
        let (host, _) = inventory::target(&self.target, &self.request, &self.seen.machine, &self.fresh).await?;
        let plan = plan_clone(&self.request, &self.seen.machine, &host, &self.fresh)?;
        let old = self.target.libvirt.definition(replaced.uuid).await?;
        let running = self.target.libvirt.state(replaced.uuid).await? != Some(MachineState::Stopped);
        self.replica_unchanged().await?;
        let is_same = plan.replaces.as_ref() == Some(replaced) && plan.replica == self.plan.replica;
        match old {
            Some(definition) if !running && is_same => {
                Ok(OldMachine { definition, autostart: self.target.libvirt.autostart(replaced.uuid).await? })
            }
            _ => {
                let name = &replaced.name;
                let why = plan.checks.iter().filter(|check| check.name == "replace").find_map(|check| check.error());
                let why = why.map_or_else(|| "it is not what it was".to_owned(), |error| error.message.clone());
                Err(Error::conflict(format!("machine {name} changed while it was to be replaced: {why}"))
                    .with("vm", name)
                    .with("host", &self.target.host.name)
                    .help("Look at it, and run the command again"))
            }
        }
    }

    /// Whether the machine is as it was taken out of service: its images are not those of any point that somebody may have
    /// defined meanwhile.
    async fn still_withdrawn(&self, replaced: &Replaced) -> Result<OldMachine> {
        let (libvirt, uuid) = (&self.target.libvirt, replaced.uuid);
        let old = libvirt.definition(uuid).await?;
        let is_stopped = libvirt.state(uuid).await? == Some(MachineState::Stopped);
        match old {
            Some(definition) if is_stopped && what_stands(&definition, self.operation) == Stands::Withdrawn => {
                self.images_unchanged(|disk| disk.untouched).await?;
                Ok(OldMachine { definition, autostart: libvirt.autostart(uuid).await? })
            }
            _ => Err(Error::conflict(format!("machine {} was changed while it was out of service", replaced.name))
                .with("vm", &replaced.name)
                .with("host", &self.target.host.name)
                .help(
                    "Its disks were written meanwhile: look at what its definition is now, and run the command again",
                )),
        }
    }

    /// Whether nobody wrote to these images of the replica since the locks were taken.
    async fn images_unchanged(&self, which: impl Fn(&CopyDisk) -> bool) -> Result<()> {
        for (disk, before) in &self.known.identities {
            let copied = self.disks.iter().find(|copied| copied.target == *disk).filter(|copied| which(copied));
            let Some(base) = copied.and_then(|copied| copied.base.as_ref()) else { continue };
            let now = inventory::inspect(&self.target.host, base.image.clone()).await?;
            if now.identities != *before {
                let path = &base.image.path;
                return Err(Error::conflict(format!("image {path} of the replica changed while it was compared"))
                    .with("disk", disk)
                    .with("path", path)
                    .with("host", &self.target.host.name)
                    .help("Somebody writes to it: find it with fuser or lsof on the target, and sync again"));
            }
        }
        Ok(())
    }

    /// Whether nobody wrote to the replica's images and files since the locks were taken.
    async fn replica_unchanged(&self) -> Result<()> {
        self.images_unchanged(|_| true).await?;
        for (path, before) in &self.known.files.identities {
            let file = ImageSpec::new(path, ImageFormat::Raw).without_link();
            if inventory::inspect(&self.target.host, file).await?.identities != *before {
                return Err(Error::conflict(format!("{path} of the replica changed while its disks were compared"))
                    .with("path", path)
                    .with("host", &self.target.host.name)
                    .help("Somebody uses the replica: find out who, and sync again"));
            }
        }
        Ok(())
    }

    /// Takes the definition back, if libvirt has it: the answer to the call may have been lost.
    pub(super) async fn undefine(&mut self) -> Result<()> {
        let Some(asked) = &self.define_asked else { return Ok(()) };
        asked.no_more_changes().await?;
        self.target = reconnect::revive(&self.target).await?;
        if !self.stands().await? {
            return Ok(());
        }
        let (libvirt, uuid) = (&self.target.libvirt, self.plan.new_uuid);
        // Who starts it now has its new disks, which are no longer ours to take away.
        self.hold_new().await?;
        self.refuse_begun().await?;
        match &self.old {
            Some(old) => {
                libvirt.define(old.definition.clone()).await?;
                libvirt.set_autostart(uuid, old.autostart).await?;
            }
            None => libvirt.undefine(uuid).await?,
        }
        if let Err(begun) = self.refuse_begun().await {
            libvirt.define(self.plan.definition.clone().unwrap_or_default()).await?;
            return Err(begun);
        }
        release(&self.target).await;
        self.target.host.control.order(Request::SyncDefinitions).await
    }

    /// Refuses where the machine runs by the definition that this operation made.
    async fn refuse_begun(&self) -> Result<()> {
        let live = self.target.libvirt.running(self.plan.new_uuid).await?;
        if !live.is_some_and(|live| made_by(&live, self.operation)) {
            return Ok(());
        }
        let (name, host) = (&self.plan.new_vm_name, &self.target.host.name);
        Err(Error::conflict(format!(
            "machine {name} on {host} was started as it was just defined, and is not taken back"
        ))
        .with("vm", name)
        .with("host", host)
        .help(format!("kvm-clone recover {host} finishes what is left to do")))
    }

    async fn stands(&self) -> Result<bool> {
        stands(&self.target, self.plan.new_uuid, self.operation).await
    }
}

/// Makes a machine's new definition durable, before what it replaces goes: else a power cut would leave the old definition without
/// its disks. Where the marker says so, the machine is kept from starting with its host, and that it is done is noted: a copy that
/// starts by itself beside its source is a surprise. Whoever wants it asks for it, and is not to be overruled by `recover`.
/// Whether that was done.
pub(crate) async fn secure_definition(site: &Site, marker: &mut Marker) -> Result<bool> {
    if marker.autostart_off {
        site.libvirt.set_autostart(marker.uuid, false).await?;
    }
    site.host.control.order(Request::SyncDefinitions).await?;
    let was_off = std::mem::take(&mut marker.autostart_off);
    if was_off {
        site.host.control.order(Request::PutMarker(Box::new(marker.clone()))).await?;
    }
    Ok(was_off)
}

/// Whether a machine stands as this operation defined it.
pub(crate) async fn stands(site: &Site, machine: Uuid, operation: Uuid) -> Result<bool> {
    Ok(standing(site, machine, operation).await? == Stands::Made)
}

/// What a machine's definition is to this operation.
pub(crate) async fn standing(site: &Site, machine: Uuid, operation: Uuid) -> Result<Stands> {
    let definition = site.libvirt.definition(machine).await?;
    Ok(definition.map_or(Stands::Another, |xml| what_stands(&xml, operation)))
}

fn what_stands(xml: &str, operation: Uuid) -> Stands {
    match Domain::parse(xml) {
        Ok(domain) if is_withdrawn_by(&domain, operation) => Stands::Withdrawn,
        Ok(domain) if domain.lineage().is_some_and(|lineage| lineage.operation == operation) => Stands::Made,
        _ => Stands::Another,
    }
}

/// Whether a definition was made by this operation.
pub(crate) fn made_by(xml: &str, operation: Uuid) -> bool {
    what_stands(xml, operation) == Stands::Made
}
