//! From the source's definition to that of the new machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use uuid::Uuid;

use super::edit::Edits;
use super::refuse::Whereabouts;
use super::{
    Domain, Identity, Lineage, Macs, NewDisk, Plug, chardev, devices, disks, identity, lineage, media, network, nvram,
    output,
};
use crate::error::{Error, Result};
use crate::name::{DiskTarget, VmName};

/// Everything that makes the new machine differ from its source.
#[derive(Debug, Clone)]
pub struct Transform {
    /// The new machine's name.
    pub name: VmName,
    /// The new machine's UUID.
    pub uuid: Uuid,
    /// Whether it is a machine of its own; one that keeps the source's identity keeps ports and serials as well.
    pub identity: Identity,
    /// The generation id of a machine of its own.
    pub genid: Uuid,
    /// Its MAC addresses.
    pub macs: Macs,
    /// The image of each disk; every one of [`Domain::data_disks`] must be there.
    pub disks: BTreeMap<DiskTarget, NewDisk>,
    /// The copies of media, by drive; the others stay where the target has them, and are ejected elsewhere.
    pub media: BTreeMap<DiskTarget, NewDisk>,
    /// What becomes of the source's networks, bridges and host devices, by name; others stay as they are.
    pub plugs: Vec<(String, Plug)>,
    /// The file of the copy's own firmware variables; where the source names one, so must this. None leaves it to libvirt.
    pub nvram: Option<String>,
    /// The machine type, where it is not the source's.
    pub machine: Option<String>,
    /// The target's emulator, where it differs from the source's.
    pub emulator: Option<String>,
    /// Which of [`Domain::host_paths`] the target has.
    pub paths_present: BTreeSet<String>,
    /// The version of the target's libvirt as it counts: 9.1.2 is 9001002.
    pub libvirt_version: u64,
    /// The target's addresses; none where they are not known.
    pub addresses: BTreeSet<IpAddr>,
    /// Where the target is.
    pub whereabouts: Whereabouts,
    /// What ties the new machine to its source.
    pub lineage: Lineage,
}

/// The definition of the new machine, and what a user should know of the changes.
///
/// Everything that no rule speaks of stays byte for byte. The caller has asked [`super::refusals`] before.
///
/// # Errors
/// [`Code::Internal`](crate::Code::Internal) where the result is not what was asked for.
pub fn transform(domain: &Domain, wanted: &Transform) -> Result<(String, Vec<String>)> {
    let mut edits = Edits::new(domain.xml());
    identity::edit(domain, &wanted.name, wanted.uuid, wanted.identity, wanted.genid, &mut edits);
    identity::edit_macs(domain, &wanted.macs, &mut edits)?;
    lineage::edit(domain, &wanted.lineage, &mut edits);
    set_emulator(domain, wanted.emulator.as_deref(), &mut edits);

    let mut notes = identity::notes(domain, wanted.identity);
    notes.extend(nvram::edit(domain, wanted, &mut edits));
    set_machine(domain, wanted.machine.as_deref(), &mut edits);
    notes.extend(chardev::edit(domain, &mut edits));
    notes.extend(output::edit(domain, wanted, &mut edits));
    notes.extend(disks::edit(domain, &wanted.disks, &mut edits)?);
    notes.extend(media::edit(domain, wanted, &mut edits));
    notes.extend(network::edit(domain, wanted, &mut edits));
    if wanted.identity == Identity::New {
        notes.extend(devices::edit(domain, &mut edits));
    }
    notes.extend(devices::listen_there(domain, &wanted.addresses, &mut edits));
    notes.extend(devices::drop_static_labels(domain, &mut edits));

    let xml = edits.apply()?;
    check(&xml, domain, wanted)?;
    Ok((xml, notes))
}

fn set_emulator(domain: &Domain, emulator: Option<&str>, edits: &mut Edits<'_>) {
    if let (Some(element), Some(path)) = (domain.root.at(&["devices", "emulator"]), emulator) {
        edits.set_text(element, path);
    }
}

fn set_machine(domain: &Domain, machine: Option<&str>, edits: &mut Edits<'_>) {
    if let (Some(element), Some(machine)) = (domain.root.at(&["os", "type"]), machine) {
        edits.set_attribute(element, "machine", machine);
    }
}

/// Reads the result again: a definition that still names the source's disks would let two machines write to them.
fn check(xml: &str, source: &Domain, wanted: &Transform) -> Result<()> {
    let wrong = |what: &str| Error::internal(format!("the new definition has the wrong {what}"));
    let made = Domain::parse(xml).map_err(|error| Error::internal(format!("the new definition: {error}")))?;
    if made.name().as_str() != wanted.name.as_str() {
        return Err(wrong("name"));
    }
    if made.uuid() != wanted.uuid {
        return Err(wrong("UUID"));
    }
    let paths = made.data_disks().map(|disk| (&disk.target, disk.source.as_ref()));
    if !paths.eq(source.data_disks().map(|disk| (&disk.target, wanted.disks.get(&disk.target).map(|new| &new.path)))) {
        return Err(wrong("disks"));
    }
    let variables = |domain: &Domain| domain.nvram().and_then(|nvram| nvram.path);
    if (variables(source).is_some() || wanted.nvram.is_some()) && variables(&made) != wanted.nvram {
        return Err(wrong("firmware variables"));
    }
    if made.lineage().as_ref() != Some(&wanted.lineage) {
        return Err(wrong("lineage"));
    }
    Ok(())
}

/// A replica's own definition with other images behind these of its disks, and another lineage; all else stays.
///
/// # Errors
/// [`Code::Internal`](crate::Code::Internal) where the result is not what was asked for.
pub fn repoint(replica: &Domain, images: &BTreeMap<DiskTarget, NewDisk>, lineage: &Lineage) -> Result<String> {
    let mut edits = Edits::new(replica.xml());
    lineage::edit(replica, lineage, &mut edits);
    for (disk, element) in replica.disk_elements() {
        if let (Some(new), Some(source)) = (images.get(&disk.target), element.child("source")) {
            disks::repoint(element, source, new, &mut edits);
        }
    }
    let xml = edits.apply()?;
    let made = Domain::parse(&xml)?;
    let is_at = |(target, new): (&DiskTarget, &NewDisk)| {
        made.disks().iter().any(|disk| disk.target == *target && disk.source.as_ref() == Some(&new.path))
    };
    if made.lineage().as_ref() != Some(lineage) || !images.iter().all(is_at) {
        return Err(Error::internal("the replica's new definition is not what was asked for"));
    }
    Ok(xml)
}

/// The definition without the passwords of displays, fit for being shown.
///
/// # Errors
/// [`Code::Libvirt`](crate::Code::Libvirt) where it cannot be read.
pub fn redact(xml: &str) -> Result<String> {
    let domain = Domain::parse(xml)?;
    let mut edits = Edits::new(xml);
    for graphics in domain.devices_named("graphics").filter(|graphics| graphics.attr("passwd").is_some()) {
        edits.set_attribute(graphics, "passwd", "***");
    }
    edits.apply()
}
