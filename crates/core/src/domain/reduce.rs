//! What a user wants left out of the copy, taken out of the source's definition before anything else looks at it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Domain;
use super::edit::Edits;
use super::tree::Element;
use super::which::{which, with_article};
use crate::error::{Error, Result};
use crate::name::DiskTarget;

/// What is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reduction {
    /// Disks (`--exclude`).
    pub disks: BTreeSet<DiskTarget>,
    /// Devices of the source's host (`--drop-hostdev`).
    pub host_devices: bool,
    /// Directories of the source's host (`--drop-fs`).
    pub shared_directories: bool,
    /// Pinning, NUMA placement, cgroups and huge pages, those of memory devices too (`--drop-tuning`).
    pub tuning: bool,
}

/// The definition without what is left out, and what that was.
///
/// # Errors
/// [`Code::Validation`](crate::Code::Validation) where a disk to be left out is not there.
pub fn reduce(domain: Domain, reduction: &Reduction) -> Result<(Domain, Vec<String>)> {
    if *reduction == Reduction::default() {
        return Ok((domain, Vec::new()));
    }
    let mut edits = Edits::new(domain.xml());
    let mut notes = leave_disks_out(&domain, &reduction.disks, &mut edits)?;
    if reduction.host_devices {
        notes.extend(leave_out(domain.devices().iter().filter(|device| is_host_device(device)), &mut edits));
    }
    if reduction.shared_directories {
        notes.extend(leave_out(domain.devices_named("filesystem"), &mut edits));
    }
    if reduction.tuning {
        notes.extend(leave_tuning_out(&domain, &mut edits));
    }
    Ok((Domain::parse(&edits.apply()?)?, notes))
}

fn leave_disks_out(domain: &Domain, disks: &BTreeSet<DiskTarget>, edits: &mut Edits<'_>) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for target in disks {
        let found = domain.disk_elements().enumerate().find(|(_, (disk, _))| disk.target == *target);
        let Some((index, (_, element))) = found else {
            let there: Vec<&str> = domain.disks().iter().map(|disk| disk.target.as_str()).collect();
            return Err(Error::validation(format!("machine {} has no disk {target} to leave out", domain.name()))
                .with("disk", target)
                .help(format!("It has {}", there.join(", "))));
        };
        edits.remove(element);
        notes.push(format!("disk {target} is left out"));
        // formatdomain, "devices": without an order of its own, the first disk is booted from.
        let boots = match domain.disk_elements().any(|(_, disk)| disk.child("boot").is_some()) {
            true => element.attr_at(&["boot"], "order") == Some("1"),
            false => index == 0,
        };
        if boots {
            notes.push(format!("the machine boots from disk {target}, which is left out"));
        }
    }
    Ok(notes)
}

/// formatdomain, "Host device assignment"; a network device and a TPM of the host are such as well.
pub(super) fn is_host_device(device: &Element) -> bool {
    let is_nic = device.is("interface") && matches!(device.attr("type"), Some("hostdev" | "vdpa"));
    let is_tpm = device.is("tpm") && device.attr_at(&["backend"], "type") == Some("passthrough");
    device.is("hostdev") || is_nic || is_tpm
}

fn leave_out<'a>(devices: impl Iterator<Item = &'a Element>, edits: &mut Edits<'_>) -> Vec<String> {
    let note = |device: &Element| {
        edits.remove(device);
        let kind = device.attr("type").map(|kind| format!(" of type {kind:?}")).unwrap_or_default();
        let which = which(device).map(|which| format!(": {which}")).unwrap_or_default();
        format!("{}{kind} is left out{which}", with_article(device))
    };
    devices.map(note).collect()
}

/// formatdomain, "CPU Tuning", "NUMA Node Tuning", "Resource partitioning", "Memory Backing", "CPU Allocation", "Memory
/// devices".
fn leave_tuning_out(domain: &Domain, edits: &mut Edits<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for name in ["cputune", "numatune", "resource", "blkiotune", "memtune"] {
        for element in domain.root.all(name) {
            edits.remove(element);
            notes.push(format!("<{name}> is left out"));
        }
    }
    if let Some(pages) = domain.root.at(&["memoryBacking", "hugepages"]) {
        edits.remove(pages);
        notes.push("huge pages are left out".to_owned());
    }
    if let Some(vcpu) = domain.root.child("vcpu").filter(|vcpu| vcpu.attr("cpuset").is_some()) {
        edits.remove_attribute(vcpu, "cpuset");
        notes.push("the CPUs that the virtual ones are bound to are left out".to_owned());
    }
    for source in domain.devices_named("memory").filter_map(|device| device.child("source")) {
        notes.extend(leave_places_out(source, edits));
    }
    notes
}

/// Which pages of which nodes a memory device lies on; without them libvirt wants no `<source>` either.
fn leave_places_out(source: &Element, edits: &mut Edits<'_>) -> Vec<String> {
    let places: Vec<&Element> =
        source.children.iter().filter(|child| child.is("pagesize") || child.is("nodemask")).collect();
    if places.len() == source.children.len() {
        edits.remove(source);
    } else {
        places.iter().for_each(|place| edits.remove(place));
    }
    places.iter().map(|place| format!("the <{}> of a <memory> device is left out", place.name)).collect()
}
