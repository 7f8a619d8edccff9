//! Tests of the definition's reading, refusing and transforming.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod hostile;
mod refusing;
mod transforming;
mod untouched;

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::*;
use crate::inventory::{HostId, ImageFormat, Network};
use crate::name::DiskTarget;

pub(super) const WEB: &str = include_str!("../fixtures/web.xml");
pub(super) const SMALL: &str = include_str!("../fixtures/small.xml");

pub(super) fn target(name: &str) -> DiskTarget {
    name.parse().unwrap()
}

/// What a plain clone of a machine asks for: a new identity, and each disk in `/new`.
pub(super) fn clone_of(domain: &Domain) -> Transform {
    let image = |disk: &DiskElement| NewDisk::new(format!("/new/copy-{}.qcow2", disk.target), ImageFormat::Qcow2);
    Transform {
        name: "copy".parse().unwrap(),
        uuid: Uuid::from_u128(7),
        identity: Identity::New,
        genid: Uuid::from_u128(8),
        macs: Macs::Fresh((10..20).map(|byte| [0xff, 0xff, 0xff, 1, 2, byte]).collect()),
        disks: domain.data_disks().map(|disk| (disk.target.clone(), image(disk))).collect(),
        media: BTreeMap::new(),
        plugs: Vec::new(),
        nvram: domain.nvram().and_then(|nvram| nvram.path).map(|_| "/new/copy_VARS.fd".to_owned()),
        machine: None,
        emulator: None,
        paths_present: BTreeSet::new(),
        libvirt_version: 9_002_000,
        addresses: BTreeSet::new(),
        whereabouts: Whereabouts::OtherHost,
        lineage: Lineage {
            host: HostId("h-1".to_owned()),
            host_name: "root@alpha".to_owned(),
            uuid: domain.uuid(),
            name: domain.name().clone(),
            operation: Uuid::from_u128(9),
            point: "2030-01-02T03:04:05Z".to_owned(),
            policy: LineagePolicy::default(),
            points: Vec::new(),
            incomplete: None,
        },
    }
}

/// What a replica asks for: everything kept, images that have the same names and formats.
pub(super) fn replica_of(domain: &Domain) -> Transform {
    let format = |disk: &DiskElement| {
        if disk.format.as_deref() == Some("qcow2") { ImageFormat::Qcow2 } else { ImageFormat::Raw }
    };
    let image = |disk: &DiskElement| NewDisk::new(disk.source.clone().unwrap(), format(disk));
    Transform {
        name: domain.name().to_string().parse().unwrap(),
        uuid: domain.uuid(),
        identity: Identity::Kept,
        macs: Macs::Kept,
        disks: domain.data_disks().map(|disk| (disk.target.clone(), image(disk))).collect::<BTreeMap<_, _>>(),
        paths_present: domain.host_paths(),
        ..clone_of(domain)
    }
}

/// `small` with another text in the place of one that it holds.
pub(super) fn small_with(old: &str, new: &str) -> String {
    assert!(SMALL.contains(old), "{old}");
    SMALL.replacen(old, new, 1)
}

/// `small` with one more device.
pub(super) fn with_device(device: &str) -> String {
    small_with("<!--more-->", device)
}

#[test]
fn a_definition_is_read() {
    let web = Domain::parse(WEB).unwrap();
    assert_eq!(web.name().as_str(), "web");
    assert_eq!(web.memory().0, 2 << 30);
    assert_eq!(web.vcpus(), 2);
    assert_eq!(web.platform().machine.as_deref(), Some("pc-q35-7.2"));
    let disks: Vec<_> =
        web.disks().iter().map(|disk| (disk.target.as_str(), disk.source.as_deref().unwrap())).collect();
    let expected = [
        ("vda", "/srv/a/disk.qcow2"),
        ("vdb", "/srv/b/disk.qcow2"),
        ("sda", "data one.img"),
        ("sdb", "/iso/debian.iso"),
    ];
    assert_eq!(disks, expected);
    assert_eq!(web.disks()[2].pool.as_deref(), Some("fast"));
    assert_eq!(web.interfaces()[1].source.as_deref(), Some("br0"));
    assert_eq!(web.host_paths(), BTreeSet::from(["/iso/debian.iso".to_owned()]));
    assert_eq!(web.lineage(), None);
}

#[test]
fn memory_has_many_units() {
    for (unit, bytes) in [("b", 1), ("KB", 1000), ("k", 1024), ("MiB", 1 << 20), ("G", 1 << 30), ("TB", 10u64.pow(12))]
    {
        let xml = small_with("<memory unit='MiB'>64", &format!("<memory unit='{unit}'>3"));
        assert_eq!(Domain::parse(&xml).unwrap().memory().0, 3 * bytes, "{unit}");
    }
}
