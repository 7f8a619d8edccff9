//! An interface that leaves its network for another one, and what it cannot take along: formatdomain, "Network interfaces".

use super::edit::{Edits, escape};
use super::network::{Interface, name_of};
use super::tree::Element;
use crate::inventory::{Network, Vlans};

/// Where an interface of the new machine is plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plug {
    /// A libvirt network.
    Network(Network),
    /// A bridge of the host.
    Bridge(String),
    /// A network device of the host: for interfaces that stood on one of the source's.
    Device(String),
    /// Nowhere, with the link down: a network device of the host's that nothing else is plugged into. Not of type `null`: libvirt
    /// knows it since 8.7, and libvirtd 9.0 crashes when such a machine starts.
    Nowhere,
    /// Nowhere, with the link down, where libvirt may not make devices.
    User,
}

impl Plug {
    fn kind(&self) -> &'static str {
        match self {
            Self::Network(_) => "network",
            Self::Bridge(_) => "bridge",
            Self::Device(_) => "direct",
            Self::Nowhere => "ethernet",
            Self::User => "user",
        }
    }

    /// The port group that comes along: where the new network has one of that name.
    fn port_group<'a>(&self, nic: &'a Interface) -> Option<&'a str> {
        let Self::Network(network) = self else { return None };
        nic.port_group.as_deref().filter(|group| network.port_groups.contains(*group))
    }

    /// Whether an interface of this element can have VLAN tags here, where libvirt has this version.
    fn takes_vlan(&self, element: &Element, libvirt_version: u64) -> bool {
        match self {
            Self::Network(network) => network.vlans.are_set_by(libvirt_version),
            Self::Bridge(_) => Vlans::AsBridge.are_set_by(libvirt_version),
            Self::Device(_) => element.attr_at(&["source"], "mode") == Some("passthrough"),
            Self::Nowhere | Self::User => false,
        }
    }
}

/// Plugs an interface in anew.
pub(super) fn edit(
    element: &Element,
    nic: &Interface,
    plug: &Plug,
    libvirt_version: u64,
    edits: &mut Edits<'_>,
) -> Vec<String> {
    edits.set_attribute(element, "type", plug.kind());
    let mut notes = Vec::new();
    match plug {
        Plug::Network(network) => {
            let group = plug.port_group(nic).map(|group| format!(" portgroup='{}'", escape(group)));
            let (name, group) = (escape(&network.name), group.unwrap_or_default());
            put_on(element, &format!("<source network='{name}'{group}/>"), edits);
        }
        Plug::Bridge(name) => put_on(element, &format!("<source bridge='{}'/>", escape(name)), edits),
        // How it stands on the device, and whether others trust it, stays.
        Plug::Device(name) => element.all("source").for_each(|source| edits.set_attribute(source, "dev", name)),
        Plug::Nowhere | Plug::User => {
            notes.push(format!("{} is unplugged", name_of(nic)));
            notes.extend(unplug(element, nic, edits));
        }
    }
    if nic.kind == "direct" && matches!(plug, Plug::Network(_) | Plug::Bridge(_)) {
        let kind = plug.kind();
        notes.push(format!("{}, which stands on that device itself, becomes one of type {kind}", name_of(nic)));
    }
    if let (Some(group), None) = (&nic.port_group, plug.port_group(nic)) {
        notes.push(format!("the port group {group:?} of {} is not carried to another network", name_of(nic)));
    }
    notes.extend(leave_behind(element, nic, plug.takes_vlan(element, libvirt_version), edits));
    notes
}

fn put_on(element: &Element, source: &str, edits: &mut Edits<'_>) {
    if let Some(old) = element.child("source") {
        edits.replace(old, source);
    }
}

/// What only a network or a bridge does for an interface, libvirt refuses to define without one.
const OF_A_NETWORK: [&str; 4] = ["port", "coalesce", "bandwidth", "mtu"];

fn unplug(element: &Element, nic: &Interface, edits: &mut Edits<'_>) -> Vec<String> {
    element.all("source").for_each(|source| edits.remove(source));
    match element.child("link") {
        Some(link) => edits.set_attribute(link, "state", "down"),
        None => edits.append(element, "<link state='down'/>"),
    }
    OF_A_NETWORK.iter().flat_map(|name| leave(element, nic, name, edits)).collect()
}

/// A port profile and a filter belong to the switch that the interface leaves, and VLAN tags where the new one has none.
fn leave_behind(element: &Element, nic: &Interface, takes_vlan: bool, edits: &mut Edits<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for name in ["virtualport", "filterref", "vlan"].iter().filter(|name| **name != "vlan" || !takes_vlan) {
        notes.extend(leave(element, nic, name, edits));
    }
    notes
}

fn leave(element: &Element, nic: &Interface, name: &str, edits: &mut Edits<'_>) -> Option<String> {
    let left: Vec<&Element> = element.all(name).collect();
    left.iter().for_each(|left| edits.remove(left));
    (!left.is_empty()).then(|| format!("the <{name}> of {} is not carried to another network", name_of(nic)))
}
