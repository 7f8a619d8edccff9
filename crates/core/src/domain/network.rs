//! Network interfaces: formatdomain, "Network interfaces".

use serde::{Deserialize, Serialize};

use super::Domain;
use super::edit::{Edits, escape};
use super::identity::Identity;
use super::reduce::is_host_device;
use super::refuse::cannot_carry;
use super::tree::Element;
use crate::error::Error;

/// An `<interface>` of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// `network`, `bridge`, `direct`, `user`, …
    pub kind: String,
    /// The network, bridge or host device that it is plugged into.
    pub source: Option<String>,
    /// The MAC address.
    pub mac: Option<String>,
    /// The name of its host side, where the definition fixes one.
    pub host_device: Option<String>,
}

/// Where an interface of the new machine is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plug {
    /// A libvirt network.
    Network(String),
    /// A bridge of the host.
    Bridge(String),
    /// Nowhere, with the link down: an interface of type `null`, which libvirt has since 8.7.
    Null,
    /// Nowhere, with the link down: an interface of type `user`, for an older libvirt.
    User,
}

/// Kinds that need nothing but a network, a bridge or a device of the host, or nothing at all.
const CARRIED: [&str; 5] = ["network", "bridge", "direct", "user", "null"];

pub(super) fn read(domain: &Domain) -> Vec<Interface> {
    domain.devices_named("interface").map(read_one).collect()
}

fn read_one(element: &Element) -> Interface {
    let kind = element.attr("type").unwrap_or_default();
    let attribute = match kind {
        "network" | "bridge" => kind,
        _ => "dev",
    };
    Interface {
        kind: kind.to_owned(),
        source: element.attr_at(&["source"], attribute).map(str::to_owned),
        mac: element.attr_at(&["mac"], "address").map(str::to_owned),
        host_device: element.attr_at(&["target"], "dev").map(str::to_owned),
    }
}

/// Interfaces that are tied to a process or device of their host.
pub(super) fn refusals(domain: &Domain) -> Vec<Error> {
    let refuse = |element: &Element| {
        let nic = read_one(element);
        let message = format!("a network interface of type {:?} belongs to its host", nic.kind);
        let instead = "Give the source machine an interface of a libvirt network or a bridge instead";
        let error = match is_host_device(element) {
            true => cannot_carry(element, message, "Leave it out with --drop-hostdev").help(instead),
            false => cannot_carry(element, message, instead),
        };
        error.with("interface", nic.mac.unwrap_or_default())
    };
    let is_carried = |element: &&Element| element.attr("type").is_some_and(|kind| CARRIED.contains(&kind));
    domain.devices_named("interface").filter(|element| !is_carried(element)).map(refuse).collect()
}

/// Plugs the interfaces in anew and takes away what may exist only once.
pub(super) fn edit(
    domain: &Domain,
    plugs: &[(String, Plug)],
    identity: Identity,
    edits: &mut Edits<'_>,
) -> Vec<String> {
    let mut notes = Vec::new();
    for element in domain.devices_named("interface") {
        let nic = read_one(element);
        let plug = plugs.iter().find(|(old, _)| Some(old) == nic.source.as_ref()).map(|(_, plug)| plug);
        if let Some(plug) = plug {
            notes.extend(replug(element, &nic, plug, edits));
        }
        if identity == Identity::New {
            notes.extend(make_own(element, &nic, plug.is_some(), edits));
        }
    }
    notes
}

fn replug(element: &Element, nic: &Interface, plug: &Plug, edits: &mut Edits<'_>) -> Vec<String> {
    let (kind, source) = match plug {
        Plug::Network(name) => ("network", Some(format!("<source network='{}'/>", escape(name)))),
        Plug::Bridge(name) => ("bridge", Some(format!("<source bridge='{}'/>", escape(name)))),
        Plug::Null => ("null", None),
        Plug::User => ("user", None),
    };
    edits.set_attribute(element, "type", kind);
    if let Some(old) = element.child("source") {
        match &source {
            Some(new) => edits.replace(old, new),
            None => edits.remove(old),
        }
    }
    let mut notes = Vec::new();
    if source.is_none() {
        unplug(element, edits);
        notes.push(format!("{} is unplugged", name_of(nic)));
    }
    // A port profile and a filter belong to the switch that the interface leaves.
    for name in ["virtualport", "filterref"] {
        for left in element.all(name) {
            edits.remove(left);
            notes.push(format!("the <{name}> of {} is not carried to another network", name_of(nic)));
        }
    }
    notes
}

fn unplug(element: &Element, edits: &mut Edits<'_>) {
    match element.child("link") {
        Some(link) => edits.set_attribute(link, "state", "down"),
        None => edits.append(element, "<link state='down'/>"),
    }
}

/// Takes away a fixed host-side name and a port id, of which a host and a switch can hold only one.
fn make_own(element: &Element, nic: &Interface, is_replugged: bool, edits: &mut Edits<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    if let (Some(target), Some(device)) = (element.child("target"), &nic.host_device) {
        edits.remove(target);
        notes.push(format!("{} gets a host device of its own instead of {device:?}", name_of(nic)));
    }
    if let Some(port) = element.at(&["virtualport", "parameters"]).filter(|_| !is_replugged) {
        for name in ["interfaceid", "instanceid"] {
            edits.remove_attribute(port, name);
        }
    }
    notes
}

fn name_of(nic: &Interface) -> String {
    let source = nic.source.as_deref().unwrap_or("no network");
    format!("the interface {} on {source}", nic.mac.as_deref().unwrap_or("without an address"))
}
