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
    /// Nowhere, with the link down: an interface of type `null`, which libvirt has since 8.7.
    Null,
    /// Nowhere, with the link down: an interface of type `user`, for an older libvirt.
    User,
}

impl Plug {
    fn kind(&self) -> &'static str {
        match self {
            Self::Network(_) => "network",
            Self::Bridge(_) => "bridge",
            Self::Device(_) => "direct",
            Self::Null => "null",
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
            Self::Null | Self::User => false,
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
        Plug::Null | Plug::User => {
            unplug(element, edits);
            notes.push(format!("{} is unplugged", name_of(nic)));
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

fn unplug(element: &Element, edits: &mut Edits<'_>) {
    element.all("source").for_each(|source| edits.remove(source));
    match element.child("link") {
        Some(link) => edits.set_attribute(link, "state", "down"),
        None => edits.append(element, "<link state='down'/>"),
    }
}

/// A port profile and a filter belong to the switch that the interface leaves, and VLAN tags where the new one has none.
fn leave_behind(element: &Element, nic: &Interface, takes_vlan: bool, edits: &mut Edits<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for name in ["virtualport", "filterref", "vlan"] {
        for left in element.all(name).filter(|_| name != "vlan" || !takes_vlan) {
            edits.remove(left);
            notes.push(format!("the <{name}> of {} is not carried to another network", name_of(nic)));
        }
    }
    notes
}
