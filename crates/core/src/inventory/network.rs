//! libvirt's networks: formatnetwork.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::domain::tree::Element;
use crate::domain::unreadable;
use crate::error::Result;

/// A network of libvirt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Whether it is started.
    pub active: bool,
    /// Its port groups.
    pub port_groups: BTreeSet<String>,
    /// What becomes of the VLAN tag of an interface on it.
    pub vlans: Vlans,
}

/// Whether interfaces can have VLAN tags: formatnetwork, "Setting VLAN tag".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vlans {
    /// Such an interface does not start.
    Refused,
    /// As on a Linux bridge, which they have since libvirt 11.0.
    AsBridge,
    /// They are set.
    Set,
}

/// The first libvirt that sets VLAN tags on Linux bridges.
const SINCE_BRIDGES: u64 = 11_000_000;

impl Vlans {
    /// Whether libvirt of this version sets them.
    #[must_use]
    pub fn are_set_by(self, libvirt_version: u64) -> bool {
        match self {
            Self::Refused => false,
            Self::AsBridge => libvirt_version >= SINCE_BRIDGES,
            Self::Set => true,
        }
    }
}

impl Network {
    /// Reads the XML of a network. Whether it is active is no part of it.
    ///
    /// # Errors
    /// [`Code::Libvirt`](crate::Code::Libvirt) where it cannot be read.
    pub fn from_xml(xml: &str, active: bool) -> Result<Self> {
        let root = Element::parse(xml)?;
        if !root.is("network") {
            return Err(unreadable(format!("it describes a <{}>, not a <network>", root.name)));
        }
        let groups = root.all("portgroup").filter_map(|group| group.attr("name"));
        Ok(Self {
            name: root.text_at(&["name"]).ok_or_else(|| unreadable("a network has no <name>"))?.to_owned(),
            active,
            port_groups: groups.map(str::to_owned).collect(),
            vlans: vlans(&root),
        })
    }
}

/// Open vSwitch, and devices with virtual functions; a network that libvirt makes itself has none.
fn vlans(network: &Element) -> Vlans {
    let is_switch = network.attr_at(&["virtualport"], "type") == Some("openvswitch");
    let is_bridge = network.child("bridge").is_some();
    match network.attr_at(&["forward"], "mode") {
        Some("hostdev" | "passthrough") => Vlans::Set,
        Some("bridge") if is_switch => Vlans::Set,
        Some("bridge") if is_bridge => Vlans::AsBridge,
        _ => Vlans::Refused,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read() {
        let bridge = "<bridge name='br0'/>";
        for (inside, vlans) in [
            ("<forward mode='nat'/><bridge name='virbr0'/>", Vlans::Refused),
            ("<bridge name='virbr1'/>", Vlans::Refused),
            (&format!("<forward mode='bridge'/>{bridge}"), Vlans::AsBridge),
            (&format!("<forward mode='bridge'/>{bridge}<virtualport type='openvswitch'/>"), Vlans::Set),
            ("<forward mode='bridge'><interface dev='eth0'/></forward>", Vlans::Refused),
            ("<forward mode='hostdev' managed='yes'><pf dev='eth0'/></forward>", Vlans::Set),
            ("<forward mode='passthrough'><pf dev='eth0'/></forward>", Vlans::Set),
        ] {
            let xml =
                format!("<network><name>lan</name>{inside}<portgroup name='eng'/><portgroup name='b'/></network>");
            let network = Network::from_xml(&xml, true).unwrap();
            assert_eq!((network.name.as_str(), network.vlans), ("lan", vlans), "{inside}");
            assert_eq!(network.port_groups, ["b", "eng"].map(str::to_owned).into());
        }
        for bad in ["<pool/>", "<network/>", "<!DOCTYPE a><network/>"] {
            assert_eq!(Network::from_xml(bad, true).unwrap_err().code.number(), 1009, "{bad}");
        }
        let set = |vlans: Vlans| [10_010_000, 11_000_000].map(|version| vlans.are_set_by(version));
        assert_eq!([Vlans::Refused, Vlans::AsBridge, Vlans::Set].map(set), [[false; 2], [false, true], [true; 2]]);
    }
}
