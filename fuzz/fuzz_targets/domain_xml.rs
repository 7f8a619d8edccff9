//! A definition from a host that nobody trusts: no text may panic, and what is transformed names none of the source's
//! disks, whatever else stands in it.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use kvm_clone_core::domain::{
    CarryContext, Domain, Identity, Lineage, LineagePolicy, Macs, NewDisk, TpmState, Transform, Whereabouts, redact,
    refusals, transform, warnings,
};
use kvm_clone_core::inventory::{HostId, ImageFormat};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

fuzz_target!(|input: &[u8]| {
    let Ok(xml) = std::str::from_utf8(input) else { return };
    let Ok(domain) = Domain::parse(xml) else { return };
    let nowhere = BTreeSet::new();
    let context = CarryContext {
        paths_present: &nowhere,
        whereabouts: Whereabouts::OtherHost,
        identity: Identity::New,
        tpm: TpmState::New,
    };
    let _ = (warnings(&domain, &context), redact(xml), domain.platform(), domain.memory(), domain.vcpus());
    let _ = domain.binding();
    let refused = !refusals(&domain, &context).is_empty();
    match transform(&domain, &wanted(&domain)) {
        Ok((made, _)) => holds(&domain, &made),
        Err(error) => assert!(refused, "nothing was refused, yet: {error}"),
    }
});

/// A plain clone on another host.
fn wanted(domain: &Domain) -> Transform {
    let disks = domain.data_disks().map(|disk| {
        let path = format!("/new/copy-{}.qcow2", disk.target);
        (disk.target.clone(), NewDisk::new(path, ImageFormat::Qcow2))
    });
    Transform {
        name: "copy".parse().unwrap(),
        uuid: Uuid::from_u128(7),
        identity: Identity::New,
        genid: Uuid::from_u128(8),
        macs: Macs::Fresh((0..=255).map(|byte| [0xff, 0xff, 0xff, 1, 2, byte]).collect()),
        disks: disks.collect(),
        media: BTreeMap::new(),
        plugs: Vec::new(),
        nvram: domain.nvram().and_then(|nvram| nvram.path).map(|_| "/new/copy_VARS.fd".to_owned()),
        machine: None,
        emulator: None,
        paths_present: BTreeSet::new(),
        libvirt_version: 9_002_000,
        addresses: BTreeSet::from([IpAddr::V4(Ipv4Addr::LOCALHOST)]),
        whereabouts: Whereabouts::OtherHost,
        lineage: Lineage {
            host: HostId("h-1".to_owned()),
            host_name: "alpha".to_owned(),
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

fn holds(source: &Domain, made: &str) {
    let made = Domain::parse(made).unwrap();
    assert_eq!(made.name().as_str(), "copy");
    assert_eq!(made.uuid(), Uuid::from_u128(7));
    assert_eq!(made.data_disks().count(), source.data_disks().count());
    for disk in made.data_disks() {
        assert_eq!(disk.source.as_deref(), Some(format!("/new/copy-{}.qcow2", disk.target).as_str()));
    }
}
