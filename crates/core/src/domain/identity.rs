//! What makes a machine itself: name, UUID, generation id, SMBIOS UUID, MAC addresses.
//!
//! formatdomain, "General metadata", "SMBIOS System Information" and "Network interfaces".

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Domain;
use super::edit::Edits;
use super::tree::Element;
use crate::error::{Error, Result};
use crate::name::VmName;

/// Whether the copy is a machine of its own, or stands in for its source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// A machine of its own.
    #[default]
    New,
    /// The source's own identity, for fail-over.
    Kept,
}

/// Where the MAC addresses of the copy come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Macs {
    /// They are the source's.
    Kept,
    /// Random ones, at least one for each interface. The first half of an address stays the source's (52:54:00 for
    /// most), since it tells guests and networks whose kind it is; the second half is taken from here.
    Fresh(Vec<[u8; 6]>),
    /// Those that a replica has already, by the source's interfaces in order; fresh ones where it has none.
    Of {
        /// The replica's, as [`macs_of`] finds them.
        known: Vec<Option<String>>,
        /// Random ones for the others.
        fresh: Vec<[u8; 6]>,
    },
}

/// Sets name and UUID, and what has to follow them.
pub(super) fn edit(domain: &Domain, name: &VmName, uuid: Uuid, identity: Identity, genid: Uuid, edits: &mut Edits<'_>) {
    let root = &domain.root;
    for (path, value) in [("name", name.to_string()), ("uuid", uuid.to_string())] {
        if let Some(element) = root.child(path).filter(|element| element.trimmed() != value) {
            edits.set_text(element, &value);
        }
    }
    // libvirt refuses a definition whose SMBIOS UUID is not the machine's.
    for entry in smbios_uuids(root).filter(|entry| entry.trimmed().parse() != Ok(uuid)) {
        edits.set_text(entry, &uuid.to_string());
    }
    // A live definition carries the id of the running instance.
    edits.remove_attribute(root, "id");
    if identity == Identity::New {
        // formatdomain: the guest must see a new generation id when it is "copied, or cloned".
        root.all("genid").for_each(|element| edits.set_text(element, &genid.to_string()));
        root.all("title").for_each(|element| edits.remove(element));
    }
}

fn smbios_uuids(root: &Element) -> impl Iterator<Item = &Element> {
    let systems = root.all("sysinfo").flat_map(|sysinfo| sysinfo.all("system"));
    systems.flat_map(|system| system.all("entry")).filter(|entry| entry.attr("name") == Some("uuid"))
}

/// Says what of the identity was left behind.
pub(super) fn notes(domain: &Domain, identity: Identity) -> Vec<String> {
    let title = domain.root.text_at(&["title"]).filter(|_| identity == Identity::New);
    title.map(|title| format!("the title {title:?} stays with the source")).into_iter().collect()
}

/// Gives each interface its new address.
pub(super) fn edit_macs(domain: &Domain, macs: &Macs, edits: &mut Edits<'_>) -> Result<()> {
    let (known, random) = match macs {
        Macs::Kept => return Ok(()),
        Macs::Fresh(random) => (&[][..], random),
        Macs::Of { known, fresh } => (known.as_slice(), fresh),
    };
    let elements: Vec<&Element> = domain.devices_named("interface").filter_map(|nic| nic.child("mac")).collect();
    let mut taken: BTreeSet<String> =
        elements.iter().filter_map(|mac| mac.attr("address")).map(str::to_ascii_lowercase).collect();
    taken.extend(known.iter().flatten().cloned());
    let mut random = random.iter();
    for (index, element) in elements.into_iter().enumerate() {
        if let Some(known) = known.get(index).and_then(Option::as_ref) {
            edits.set_attribute(element, "address", known);
            continue;
        }
        let old = element.attr("address").unwrap_or("52:54:00:00:00:00");
        let fresh = random.by_ref().map(|bytes| with_prefix_of(old, *bytes)).find(|mac| taken.insert(mac.clone()));
        let fresh = fresh.ok_or_else(|| Error::internal("there are fewer fresh MAC addresses than interfaces"))?;
        edits.set_attribute(element, "address", &fresh);
    }
    Ok(())
}

/// The addresses that a replica has for the interfaces of its source, in their order: for the interface in the same slot of
/// the same bus, since libvirt gives each one and a copy keeps them; where the definitions name no slots, for the one at the
/// same place in the list. Formatdomain, "Device Addresses".
#[must_use]
pub fn macs_of(source: &Domain, replica: &Domain) -> Vec<Option<String>> {
    let with_mac = |domain: &Domain| -> Vec<(Option<Slot>, Option<String>)> {
        let nics = domain.devices_named("interface").filter(|nic| nic.child("mac").is_some());
        nics.map(|nic| (slot(nic), nic.attr_at(&["mac"], "address").map(str::to_ascii_lowercase))).collect()
    };
    let theirs = with_mac(replica);
    let find = |(index, (slot, _)): (usize, (Option<Slot>, Option<String>))| match slot {
        Some(slot) => theirs.iter().find(|(other, _)| other.as_ref() == Some(&slot)).and_then(|(_, mac)| mac.clone()),
        None => theirs.get(index).filter(|(other, _)| other.is_none()).and_then(|(_, mac)| mac.clone()),
    };
    with_mac(source).into_iter().enumerate().map(find).collect()
}

/// Where a device is plugged in, as its definition says: the attributes of its address.
type Slot = Vec<(String, String)>;

fn slot(device: &Element) -> Option<Slot> {
    let address = device.child("address")?;
    let mut slot: Slot =
        address.attributes.iter().map(|attribute| (attribute.name.clone(), attribute.value.clone())).collect();
    slot.sort();
    Some(slot)
}

/// The first three bytes of the old address, the last three of the random one.
fn with_prefix_of(old: &str, random: [u8; 6]) -> String {
    let old: Vec<u8> = old.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let [a, b, c] = match old.as_slice() {
        [a, b, c, _, _, _] => [*a, *b, *c],
        _ => [0x52, 0x54, 0x00],
    };
    let [.., x, y, z] = random;
    format!("{a:02x}:{b:02x}:{c:02x}:{x:02x}:{y:02x}:{z:02x}")
}
