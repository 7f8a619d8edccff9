//! Network interfaces: formatdomain, "Network interfaces".

use super::edit::Edits;
use super::identity::Identity;
use super::reduce::is_host_device;
use super::refuse::cannot_carry;
use super::tree::Element;
use super::{Domain, Transform, plug};
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
    /// The port group of its network that it is to have.
    pub port_group: Option<String>,
    /// The network filter that its host puts on it.
    pub filter: Option<String>,
    /// The name of its host side, where the definition fixes one.
    pub host_device: Option<String>,
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
        port_group: element.attr_at(&["source"], "portgroup").filter(|_| kind == "network").map(str::to_owned),
        filter: element.attr_at(&["filterref"], "filter").map(str::to_owned),
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
    domain.devices_named("interface").filter(|element| !is_carried(element)).map(refuse).collect()
}

/// Of type `ethernet` is what we have unplugged: nobody knows its device by name, and no script plugs it in.
fn is_carried(element: &Element) -> bool {
    let kind = element.attr("type").unwrap_or_default();
    let is_unplugged =
        kind == "ethernet" && ["script", "target", "source"].iter().all(|name| element.child(name).is_none());
    CARRIED.contains(&kind) || is_unplugged
}

/// Plugs the interfaces in anew and takes away what may exist only once.
pub(super) fn edit(domain: &Domain, wanted: &Transform, edits: &mut Edits<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for element in domain.devices_named("interface") {
        let nic = read_one(element);
        let plug = wanted.plugs.iter().find(|(old, _)| Some(old) == nic.source.as_ref()).map(|(_, plug)| plug);
        if let Some(plug) = plug {
            notes.extend(plug::edit(element, &nic, plug, wanted.libvirt_version, edits));
        }
        if wanted.identity == Identity::New {
            notes.extend(make_own(element, &nic, plug.is_some(), edits));
        }
    }
    notes
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

pub(super) fn name_of(nic: &Interface) -> String {
    let source = nic.source.as_deref().unwrap_or("no network");
    format!("the interface {} on {source}", nic.mac.as_deref().unwrap_or("without an address"))
}
