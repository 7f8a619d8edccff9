//! One fact changed, and the code that follows.

use super::*;

pub(super) type Change = fn(&mut World);

pub(super) fn table(cases: &[(&str, Change, u16)]) {
    for (what, change, expected) in cases {
        let plan = world().with(change);
        assert_eq!(code(&plan), *expected, "{what}: {:?}", plan.refusal());
        assert_eq!(plan.definition.is_some(), *expected == 0, "{what}");
        assert_eq!(plan.target_xml.is_some(), *expected == 0, "{what}");
        if let Some(error) = plan.refusal() {
            assert!(!error.help.is_empty(), "{what} has no way out");
            assert!(plan.describe().contains("cannot be carried out"));
        }
    }
}

#[test]
fn the_source() {
    table(&[
        ("managed save", |w| w.source.managed_save = true, 1013),
        ("snapshots", |w| w.source.snapshots = vec!["before".to_owned()], 0),
        ("snapshots inside", |w| w.image().snapshots = 2, 0),
        ("a TPM of its own", |w| w.add_device("<tpm><backend type='emulator'/></tpm>"), 0),
        ("a TPM of its host", |w| w.add_device("<tpm><backend type='passthrough'/></tpm>"), 1013),
        (
            "a replica with a TPM",
            |w| {
                w.add_device("<tpm><backend type='emulator'/></tpm>");
                w.request.identity = Identity::Kept;
            },
            1013,
        ),
        (
            "a replica with an empty TPM, by word",
            |w| {
                w.add_device("<tpm><backend type='emulator'/></tpm>");
                w.request.identity = Identity::Kept;
                w.request.tpm = TpmState::New;
            },
            0,
        ),
        ("a device in the place of a file", |w| w.image().regular_file = false, 1013),
        (
            "another format of qemu's",
            |w| {
                w.source.xml = w.source.xml.replace("type='qcow2'", "type='vmdk'");
                w.image().format = ImageFormat::Other("vmdk".to_owned());
            },
            0,
        ),
        (
            "a raw disk with a header that its guest wrote",
            |w| {
                w.source.xml = w.source.xml.replace("type='qcow2'", "type='raw'");
            },
            1013,
        ),
        (
            "a disk without a format is raw",
            |w| {
                w.source.xml = w.source.xml.replace("type='qcow2'", "");
            },
            1013,
        ),
        ("LUKS", |w| w.image().unsupported = vec!["LUKS encryption".to_owned()], 1013),
        ("no image", |w| w.source.images.clear(), 1005),
        ("an empty chain", |w| w.source.images.values_mut().for_each(Vec::clear), 1005),
    ]);
}

#[test]
fn the_target() {
    table(&[
        ("as many CPUs", |w| w.target.cpus = 1, 0),
        ("too little memory", |w| w.target.memory_total = 1 << 20, 1005),
        ("little free memory", |w| w.target.memory_available = 1 << 20, 0),
        ("another architecture", |w| w.target.capabilities[0].arch = "aarch64".to_owned(), 1013),
        ("no KVM", |w| w.target.capabilities[0].virt_type = "qemu".to_owned(), 1013),
        ("an older qemu", |w| w.target.capabilities[0].machines = vec!["pc-q35-6.2".to_owned()], 1013),
        ("no emulator", |w| w.target.capabilities.clear(), 1013),
        ("another emulator", |w| w.target.capabilities[0].emulator = "/usr/libexec/qemu-kvm".to_owned(), 0),
    ]);
}

#[test]
fn names_and_uuids() {
    fn same_host(w: &mut World) {
        w.target.host = w.source.host.clone();
    }
    fn name(w: &mut World, name: &str) {
        w.request.new_name = Some(name.parse().unwrap());
    }
    table(&[
        ("another name", |w| name(w, "other"), 0),
        ("a taken name", |w| w.target.machines = vec![existing("small_clone", 5, "/x")], 1004),
        ("a taken UUID", |w| w.target.machines = vec![existing("other", 1, "/x")], 1004),
        ("a replica", |w| w.request.identity = Identity::Kept, 0),
        (
            "its UUID is taken",
            |w| {
                w.request.uuid = Identity::Kept;
                w.target.machines = vec![ExistingMachine { uuid: w.source.uuid, ..existing("other", 1, "/x") }];
            },
            1004,
        ),
        ("the same host", same_host, 0),
        (
            "onto itself",
            |w| {
                same_host(w);
                name(w, "small")
            },
            1007,
        ),
        (
            "onto itself by force",
            |w| {
                same_host(w);
                name(w, "small");
                w.request.existing = Existing::Replace;
                w.target.machines =
                    vec![ExistingMachine { uuid: w.source.uuid, ..existing("small", 1, "/pool/small.qcow2") }];
            },
            1007,
        ),
        (
            "the same UUID on one host",
            |w| {
                same_host(w);
                w.request.uuid = Identity::Kept;
                w.target.machines =
                    vec![ExistingMachine { uuid: w.source.uuid, ..existing("small", 1, "/pool/small.qcow2") }];
            },
            1004,
        ),
    ]);
}

#[test]
fn what_does_not_hinder_is_said() {
    let said = |change: Change, words: &str| {
        let plan = world().with(change);
        assert_eq!(code(&plan), 0, "{words}");
        assert!(plan.warnings.iter().any(|warning| warning.contains(words)), "{words}: {:?}", plan.warnings);
        assert!(plan.describe().contains(words), "{words}");
    };
    said(|w| w.source.snapshots = vec!["before".to_owned()], "before");
    said(|w| w.image().snapshots = 2, "2 snapshot(s) inside disk vda");
    said(|w| w.target.memory_available = 0, "memory");
    said(|w| w.source.xml = w.source.xml.replace("<vcpu>1<", "<vcpu>5<"), "5 virtual CPUs, the target 4 processors");
    said(|w| w.target.pools[0].available = 5 * GIB, "can grow to");
    said(|w| w.target.capabilities[0].emulator = "/usr/libexec/qemu-kvm".to_owned(), "/usr/libexec/qemu-kvm");
    said(|w| w.add_device("<graphics type='vnc' port='5900'/>"), "port");
    said(
        |w| w.source.xml = w.source.xml.replace("</os>", "</os><cpu mode='host-passthrough'/>"),
        "CPU of whatever host",
    );
    said(
        |w| {
            w.add_device("<interface type='network'><source network='default'/></interface>");
            w.target.networks[0].active = false;
        },
        "not active",
    );
    said(
        |w| {
            w.add_device(
                "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>",
            );
            w.request.macs = Identity::Kept;
            w.target.host = w.source.host.clone();
        },
        "same MAC addresses",
    );
}

#[test]
fn all_failures_are_told_at_once() {
    let plan = world().with(|w| {
        w.source.state = MachineState::Crashed;
        w.add_device("<shmem name='x'/><hostdev/>");
        w.target.memory_total = 0;
        w.target.pools.clear();
    });
    let failed = plan.checks.iter().filter(|check| check.outcome == Outcome::Fail).count();
    assert_eq!(failed, 5, "{:?}", plan.checks);
}

#[test]
fn a_name_that_cannot_be_made_wants_another() {
    let mut world = world();
    world.source.name = "my machine".parse().unwrap();
    let plan = |world: &World| plan_clone(&world.request, &world.source, &world.target, &world.fresh);
    let error = plan(&world).unwrap_err();
    assert_eq!(error.code.number(), 1007);
    assert!(error.help.iter().any(|help| help.contains("--new-name")));
    world.request.new_name = Some("mine".parse().unwrap());
    assert!(plan(&world).is_ok());
}

#[test]
fn a_hostile_definition_is_no_plan() {
    let mut world = world();
    world.source.xml = "<!DOCTYPE a><domain/>".to_owned();
    let error = plan_clone(&world.request, &world.source, &world.target, &world.fresh).unwrap_err();
    assert_eq!(error.code.number(), 1009);
}

#[test]
fn what_only_qemu_reads_needs_qemu_nbd() {
    let zstd = |w: &mut World| w.image().by_qemu.push("zstd compression".to_owned());
    assert_eq!(code(&world().with(zstd)), 0);
    let missing = world().with(|w| {
        zstd(w);
        w.source.qemu_nbd = false;
    });
    assert_eq!(code(&missing), 1005);
    let many = world().with(|w| w.image().unsupported.push("several files for one image".to_owned()));
    assert_eq!(code(&many), 1013);
    let broken = world().with(|w| w.image().broken = Some("ERROR cluster 7".to_owned()));
    assert_eq!(code(&broken), 1012);
    // A machine that runs reads its images itself.
    assert_eq!(
        code(&super::live::running().with(|w| {
            zstd(w);
            w.source.qemu_nbd = false;
        })),
        0
    );
}

#[test]
fn a_device_that_both_hosts_reach_is_known_by_its_name() {
    let seen = |inode, born, device_id: Option<&str>| SeenFile {
        file: FileId { device: 77, inode, length: 4 * GIB, born },
        device_id: device_id.map(str::to_owned),
    };
    let with = |here: Option<&str>, there: SeenFile| {
        code(&world().with(|w| {
            w.image().device_id = here.map(str::to_owned);
            w.target.files.insert("/pool/small.qcow2".to_owned(), there);
        }))
    };
    assert_eq!(with(None, seen(100, None, None)), 1013);
    assert_eq!(with(None, seen(101, None, None)), 0);
    assert_eq!(with(Some("naa.5"), seen(5, None, Some("naa.5"))), 1013);
    assert_eq!(with(Some("naa.5"), seen(100, None, Some("naa.6"))), 0);
    assert_eq!(with(Some("naa.5"), seen(100, None, None)), 0);
}

#[test]
fn images_keep_their_snapshots_by_word() {
    let kept = |change: fn(&mut World)| {
        world().with(|w| {
            w.request.keep_snapshots = true;
            w.image().snapshots = 2;
            w.image().allocated = 20 * GIB;
            change(w);
        })
    };
    let plan = kept(|w| w.source.snapshots = vec!["before-upgrade".to_owned()]);
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
    assert_eq!(plan.disks[0].whole, Some(WholeFile { length: 4 * GIB, snapshots: 2 }));
    assert_eq!(plan.disks[0].allocated, 20 * GIB, "snapshots take more than the guest sees");
    assert!(plan.describe().contains("with 2 snapshot(s) inside"), "{}", plan.describe());
    assert!(plan.warnings.iter().any(|warning| warning.contains("before-upgrade")), "{:?}", plan.warnings);
    assert!(!plan.warnings.iter().any(|warning| warning.contains("bitmaps")), "{:?}", plan.warnings);
    let plan = kept(|w| w.image().bitmaps = true);
    assert!(plan.warnings.iter().any(|warning| warning.contains("bitmaps")), "{:?}", plan.warnings);
    assert_eq!(world().plan().disks[0].whole, None);
    assert_eq!(kept(|w| w.image().snapshots = 0).disks[0].whole, None, "without snapshots it is copied as ever");
}

#[test]
fn snapshots_that_cannot_be_kept_are_refused() {
    type Change = fn(&mut World);
    let cases: [(&str, Change); 4] = [
        ("it runs", |w| w.source.state = MachineState::Running),
        ("a chain", |w| {
            let behind = ImageFacts { path: "/pool/base.qcow2".to_owned(), ..w.image().clone() };
            w.source.images.get_mut(&"vda".parse().unwrap()).unwrap().push(behind);
        }),
        ("a data file", |w| w.image().data_file = Some("/pool/data".to_owned())),
        ("encryption", |w| w.image().unsupported.push("LUKS encryption".to_owned())),
    ];
    for (what, change) in cases {
        let plan = world().with(|w| {
            w.request.keep_snapshots = true;
            w.image().snapshots = 1;
            change(w);
        });
        let refused = plan.checks.iter().filter_map(Check::error).map(|error| error.code.number());
        assert!(refused.into_iter().any(|code| code == 1013), "{what}: {:?}", plan.checks);
    }
    let mut contradiction = world();
    contradiction.request.keep_snapshots = true;
    contradiction.request.disk_format = DiskFormat::Raw;
    let World { request, source, target, fresh } = contradiction;
    assert_eq!(plan_clone(&request, &source, &target, &fresh).unwrap_err().code.number(), 1007);
}

#[test]
fn names_in_commands_of_a_help_are_quoted() {
    let plan = world().with(|w| {
        w.image().pool = Some("my pool".to_owned());
        w.target.pools.push(Pool { active: false, ..pool("my pool", "/fast") });
        w.source.name = "my machine".parse().unwrap();
        w.request.new_name = Some("mine".parse().unwrap());
        w.source.state = MachineState::Crashed;
    });
    let help: Vec<_> = plan.checks.iter().filter_map(|check| check.help.as_deref()).collect();
    for command in ["virsh pool-start 'my pool'", "virsh destroy 'my machine'"] {
        assert!(help.iter().any(|help| help.ends_with(command)), "{help:?}");
    }
}
