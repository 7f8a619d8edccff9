//! Facts from libvirt's XML.

use super::{
    DomainCapabilities, Machine, MachineDisk, MachineNetwork, MachineState, PointImage, PointOf, Pool, ReplicaOf,
};
use crate::domain::tree::Element;
use crate::domain::{Domain, KeptImage, KeptPoint, unreadable, with_true_images};
use crate::error::Result;

impl Machine {
    /// What `list` shows of a definition; sizes and addresses stay open where the definition does not know them.
    ///
    /// # Errors
    /// [`Code::Libvirt`](crate::Code::Libvirt) where the definition cannot be read.
    pub fn from_xml(host: &str, state: MachineState, xml: &str) -> Result<Self> {
        let domain = with_true_images(&Domain::parse(xml)?)?;
        let disks = domain.disks().iter().map(|disk| MachineDisk {
            path: disk.source.clone(),
            size: None,
            format: disk.format.clone(),
            target: disk.target.clone(),
            pool: disk.pool.clone(),
        });
        let networks = domain.interfaces().into_iter().map(|nic| MachineNetwork {
            interface: nic.host_device,
            mac_address: nic.mac,
            network: nic.source,
            ip_address: None,
        });
        let replica_of = domain.lineage().map(|lineage| ReplicaOf {
            host: lineage.host_name,
            name: lineage.name,
            point: lineage.point,
            age_seconds: None,
            points: lineage.points.iter().map(point_of).collect(),
            incomplete: lineage.incomplete.is_some(),
        });
        Ok(Self {
            name: domain.name().clone(),
            uuid: domain.uuid(),
            state,
            memory: domain.memory().0 >> 20,
            vcpus: domain.vcpus(),
            disks: disks.collect(),
            networks: networks.collect(),
            host: host.to_owned(),
            replica_of,
        })
    }
}

fn point_of(kept: &KeptPoint) -> PointOf {
    let images = kept.images.iter().map(|(disk, image)| (disk.clone(), point_image(image))).collect();
    PointOf { point: kept.point.clone(), age_seconds: None, bytes: None, images }
}

fn point_image(image: &KeptImage) -> PointImage {
    PointImage { path: image.path.clone(), format: image.format.clone() }
}

impl Pool {
    /// Reads the XML of a pool: formatstorage, "Storage pool XML". Whether it is active is no part of it.
    ///
    /// # Errors
    /// [`Code::Libvirt`](crate::Code::Libvirt) where it cannot be read.
    pub fn from_xml(xml: &str, active: bool) -> Result<Self> {
        let root = Element::parse(xml)?;
        if !root.is("pool") {
            return Err(unreadable(format!("it describes a <{}>, not a <pool>", root.name)));
        }
        let bytes = |name| root.text_at(&[name]).and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Self {
            name: root.text_at(&["name"]).ok_or_else(|| unreadable("a pool has no <name>"))?.to_owned(),
            active,
            kind: root.attr("type").unwrap_or_default().to_owned(),
            path: root.text_at(&["target", "path"]).map(str::to_owned),
            capacity: bytes("capacity"),
            available: bytes("available"),
        })
    }
}

impl DomainCapabilities {
    /// Reads what a host can run from libvirt's driver capabilities: formatcaps, "Guest capabilities".
    ///
    /// One call gives every emulator and machine type, where `domcapabilities` would be one call for each.
    ///
    /// # Errors
    /// [`Code::Libvirt`](crate::Code::Libvirt) where they cannot be read.
    pub fn all_from_xml(xml: &str) -> Result<Vec<Self>> {
        let root = Element::parse(xml)?;
        if !root.is("capabilities") {
            return Err(unreadable(format!("it describes a <{}>, not <capabilities>", root.name)));
        }
        let guests = root.all("guest").filter(|guest| guest.text_at(&["os_type"]) == Some("hvm"));
        let arches = guests.flat_map(|guest| guest.all("arch"));
        Ok(arches.flat_map(|arch| arch.all("domain").filter_map(|domain| Self::from_domain(arch, domain))).collect())
    }

    /// `<domain>` may name an emulator and machines of its own; else those of its `<arch>` are meant.
    fn from_domain(arch: &Element, domain: &Element) -> Option<Self> {
        let emulator = domain.text_at(&["emulator"]).or_else(|| arch.text_at(&["emulator"]))?;
        let place = if domain.child("machine").is_some() { domain } else { arch };
        let names =
            |machine: &Element| [Some(machine.trimmed().to_owned()), machine.attr("canonical").map(str::to_owned)];
        Some(Self {
            arch: arch.attr("name")?.to_owned(),
            virt_type: domain.attr("type")?.to_owned(),
            emulator: emulator.to_owned(),
            machines: place.all("machine").flat_map(names).flatten().collect(),
        })
    }
}

/// User and group that qemu runs as on a host: formatcaps, "Host capabilities" (`secmodel` of model `dac`, whose
/// `baselabel` is `+UID:+GID`).
///
/// # Errors
/// [`Code::Libvirt`](crate::Code::Libvirt) where the capabilities cannot be read.
pub fn qemu_owner(capabilities: &str) -> Result<Option<(u32, u32)>> {
    let root = Element::parse(capabilities)?;
    let models = root.child("host").into_iter().flat_map(|host| host.all("secmodel"));
    let labels = models.filter(|model| model.text_at(&["model"]) == Some("dac")).flat_map(|dac| dac.all("baselabel"));
    let mut owners = labels.filter_map(|label| {
        let (user, group) = label.trimmed().split_once(':')?;
        Some((user.trim_start_matches('+').parse().ok()?, group.trim_start_matches('+').parse().ok()?))
    });
    Ok(owners.next())
}

/// Whether an emulator can back machines up: formatdomaincaps, "Features" (`backup`).
///
/// # Errors
/// [`Code::Libvirt`](crate::Code::Libvirt) where the capabilities cannot be read.
pub fn can_back_up(domain_capabilities: &str) -> Result<bool> {
    let root = Element::parse(domain_capabilities)?;
    Ok(root.attr_at(&["features", "backup"], "supported") == Some("yes"))
}
