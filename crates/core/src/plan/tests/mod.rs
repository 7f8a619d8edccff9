//! Truth tables of the planner: one ordinary clone, and what happens when one fact of it is another.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binding;
mod checks;
mod cpu;
mod firmware;
mod live;
mod media;
mod networks;
mod placing;
mod points;
mod reducing;
mod replacing;
mod sync;
mod tpm;
mod unseen;

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::*;
use crate::domain::TpmState;
use crate::inventory::*;

/// All that a plan is made from, ready to be changed.
#[derive(Clone)]
pub(super) struct World {
    pub(super) request: CloneRequest,
    pub(super) source: SourceMachine,
    pub(super) target: TargetHost,
    pub(super) fresh: FreshIdentity,
}

const GIB: u64 = 1 << 30;

/// The stopped machine `small` on alpha, with one qcow2 disk of 10 GiB that holds 4, and the empty host beta.
pub(super) fn world() -> World {
    let source = SourceMachine {
        host: HostId("a".to_owned()),
        host_name: "alpha".to_owned(),
        name: "small".parse().unwrap(),
        uuid: "11111111-2222-4333-8444-555555555555".parse().unwrap(),
        xml: include_str!("../../domain/fixtures/small.xml").to_owned(),
        state: MachineState::Stopped,
        persistent: true,
        managed_save: false,
        snapshots: Vec::new(),
        images: BTreeMap::from([("vda".parse().unwrap(), vec![image("/pool/small.qcow2", 4)])]),
        unseen: BTreeMap::new(),
        files: BTreeMap::new(),
        nvram_dir: "/a/nvram".to_owned(),
        tpm_dir: "/a/swtpm".to_owned(),
        live: None,
        qemu_nbd: true,
    };
    let fresh = FreshIdentity {
        operation: "01900000-0000-7000-8000-0000deadbeef".parse().unwrap(),
        uuid: Uuid::from_u128(1),
        genid: Uuid::from_u128(2),
        macs: (0..4).map(|byte| [0, 0, 0, 1, 2, byte]).collect(),
        now: "2030-01-02T03:04:05Z".to_owned(),
    };
    World { request: CloneRequest::default(), source, target: beta(), fresh }
}

pub(super) fn image(path: &str, allocated_gib: u64) -> ImageFacts {
    ImageFacts {
        path: path.to_owned(),
        format: ImageFormat::Qcow2,
        virtual_size: 10 * GIB,
        allocated: allocated_gib * GIB,
        file: FileId { device: 1, inode: 100, length: 4 * GIB, born: None },
        snapshots: 0,
        bitmaps: false,
        unsupported: Vec::new(),
        by_qemu: Vec::new(),
        data_file: None,
        broken: None,
        regular_file: true,
        device_id: None,
        pool: None,
    }
}

fn beta() -> TargetHost {
    TargetHost {
        host: HostId("b".to_owned()),
        host_name: "beta".to_owned(),
        libvirt_version: 9_000_000,
        cpus: 4,
        memory_total: 8 * GIB,
        memory_available: 4 * GIB,
        pools: vec![pool("default", "/images")],
        networks: vec![network("default")],
        bridges: BTreeSet::from(["br0".to_owned()]),
        links: ["lo", "eth0", "br0", "vnet3"].map(str::to_owned).into(),
        makes_devices: true,
        network_filters: BTreeSet::new(),
        addresses: BTreeSet::new(),
        topology: Topology::default(),
        capabilities: vec![DomainCapabilities {
            arch: "x86_64".to_owned(),
            virt_type: "kvm".to_owned(),
            emulator: "/usr/bin/qemu-system-x86_64".to_owned(),
            machines: vec!["q35".to_owned(), "pc-q35-7.2".to_owned()],
        }],
        guest_cpus: None,
        nvram_dir: "/b/nvram".to_owned(),
        tpm_dir: "/b/swtpm".to_owned(),
        secrets: BTreeSet::new(),
        machines: Vec::new(),
        files: BTreeMap::new(),
        paths_present: BTreeSet::new(),
        replica: None,
    }
}

/// A network as libvirt makes it itself.
pub(super) fn network(name: &str) -> Network {
    Network { name: name.to_owned(), active: true, port_groups: BTreeSet::new(), vlans: Vlans::Refused }
}

pub(super) fn pool(name: &str, path: &str) -> Pool {
    Pool {
        name: name.to_owned(),
        active: true,
        kind: "dir".to_owned(),
        path: Some(path.to_owned()),
        capacity: 100 * GIB,
        available: 50 * GIB,
    }
}

/// A stopped machine on the target with one disk.
pub(super) fn existing(name: &str, uuid: u128, path: &str) -> ExistingMachine {
    let file = Some(FileId { device: 9, inode: 900, length: 1, born: None });
    ExistingMachine {
        name: name.parse().unwrap(),
        uuid: Uuid::from_u128(uuid),
        state: MachineState::Stopped,
        disk_files: vec![DiskFile { path: path.to_owned(), file }],
        uses: BTreeSet::from([path.to_owned()]),
        used_files: Vec::new(),
        unseen: Vec::new(),
        managed_save: false,
        snapshots: 0,
        checkpoints: 0,
    }
}

impl World {
    pub(super) fn plan(&self) -> ClonePlan {
        plan_clone(&self.request, &self.source, &self.target, &self.fresh).unwrap()
    }

    /// The plan after one change.
    pub(super) fn with(mut self, change: impl FnOnce(&mut Self)) -> ClonePlan {
        change(&mut self);
        self.plan()
    }

    /// Puts a device into the source's definition.
    pub(super) fn add_device(&mut self, device: &str) {
        self.source.xml = self.source.xml.replace("<!--more-->", &format!("{device}<!--more-->"));
    }

    /// Gives the source one more disk.
    pub(super) fn add_disk(&mut self, target: &str, chain: ImageChain) {
        let path = &chain[0].path;
        self.add_device(&format!("<disk><driver type='qcow2'/><source file='{path}'/><target dev='{target}'/></disk>"));
        self.source.images.insert(target.parse().unwrap(), chain);
    }

    pub(super) fn image(&mut self) -> &mut ImageFacts {
        &mut self.source.images.get_mut(&"vda".parse().unwrap()).unwrap()[0]
    }
}

/// The number of the refusal's code, nought where the plan can be carried out.
pub(super) fn code(plan: &ClonePlan) -> u16 {
    plan.refusal().map_or(0, |error| error.code.number())
}

#[test]
fn an_ordinary_clone() {
    let plan = world().plan();
    assert_eq!(code(&plan), 0);
    assert!(plan.checks.iter().all(|check| check.outcome == Outcome::Ok), "{:?}", plan.checks);
    assert_eq!(plan.new_vm_name.as_str(), "small_clone");
    assert_eq!(plan.disks[0].path, "/images/small_clone-vda.qcow2");
    assert_eq!((plan.bytes_total, plan.space_needed), (4 * GIB, 4 * GIB + 4 * GIB * 15 / 100));
    let copy = Domain::parse(plan.definition.as_ref().unwrap()).unwrap();
    assert_eq!(copy.uuid(), world().fresh.uuid);
    assert_eq!(copy.lineage().unwrap().host_name, "alpha");
    insta::assert_snapshot!(plan.describe());
}

#[test]
fn every_file_that_will_be_opened_is_in_the_plan() {
    let plan = world().with(|w| {
        let base = ImageFacts { path: "/pool/base.qcow2".to_owned(), ..w.image().clone() };
        w.source.images.get_mut(&"vda".parse().unwrap()).unwrap().push(base);
        w.image().data_file = Some("/pool/data.raw".to_owned());
    });
    for text in ["from /pool/small.qcow2 (qcow2)\n    data /pool/data.raw\n", "over /pool/base.qcow2 (qcow2)"] {
        assert!(plan.describe().contains(text), "{}", plan.describe());
    }
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["disks"][0]["chain"][0]["data_file"], "/pool/data.raw");
    assert!(json["disks"][0]["chain"][1]["data_file"].is_null());
}

#[test]
fn the_json_of_a_plan_has_the_promised_names_and_no_password() {
    let mut world = world();
    world.add_device("<graphics type='vnc' passwd='s3cret'/>");
    let json = serde_json::to_value(world.plan()).unwrap();
    for name in ["checks", "disks", "warnings", "bytes_total", "target_xml", "vm_name", "new_vm_name"] {
        assert!(json.get(name).is_some_and(|value| !value.is_null()), "{name}");
    }
    assert_eq!(json["checks"][0]["outcome"], "ok");
    assert_eq!(json["disks"][0]["target"], "vda");
    assert!(!json.to_string().contains("s3cret"));
    assert!(world.plan().definition.unwrap().contains("s3cret"));
}
