//! Sync: which machine is the replica, what of it changes, and what is refused.

use super::*;
use crate::domain::{Incomplete, KeptImage, KeptPoint, Lineage, Reduction, WrittenImage};

const IMAGE: &str = "/images/standby-vda.qcow2";
const OVERLAY: &str = "/images/standby-vda-deadbeef.overlay";

/// The source and its replica `standby`, made by a clone to beta with these choices.
pub(super) fn replicated(choices: impl FnOnce(&mut CloneRequest)) -> World {
    replicated_from(world(), choices)
}

pub(super) fn replicated_from(mut world: World, choices: impl FnOnce(&mut CloneRequest)) -> World {
    world.request.new_name = Some("standby".parse().unwrap());
    choices(&mut world.request);
    let cloned = world.plan();
    assert_eq!(code(&cloned), 0, "{:?}", cloned.refusal());
    let uuid = world.fresh.uuid;
    let xml = cloned.definition.unwrap();
    let lineage = Domain::parse(&xml).unwrap().lineage().unwrap();
    let own = |path: &str| ImageFacts { file: FileId { inode: 300, ..image(path, 4).file }, ..image(path, 4) };
    let images = cloned.disks.iter().map(|disk| (disk.target.clone(), vec![own(&disk.path)])).collect();
    let mut existing = existing("standby", 0, IMAGE);
    existing.uuid = uuid;
    existing.uses = cloned.disks.iter().map(|disk| disk.path.clone()).collect();
    world.request = sync_request(&existing.name, &lineage, &SyncRequest::default()).unwrap();
    world.target.paths_present.extend(existing.uses.iter().cloned());
    world.target.replica = Some(Replica {
        name: existing.name.clone(),
        uuid,
        xml,
        lineage,
        given: Vec::new(),
        images,
        ages: vec![Some(60)],
    });
    world.target.machines = vec![existing];
    world.fresh.uuid = Uuid::from_u128(77);
    world.fresh.genid = Uuid::from_u128(78);
    world.fresh.macs = (0..4).map(|byte| [0, 0, 0, 9, 9, byte]).collect();
    world.fresh.now = "2030-02-03T04:05:06Z".to_owned();
    world
}

pub(super) fn update(world: &mut World, change: impl FnOnce(&mut Update)) {
    let Existing::Update(update) = &mut world.request.existing else { unreachable!("it is a sync") };
    change(update);
}

fn replica(world: &mut World) -> &mut Replica {
    world.target.replica.as_mut().unwrap()
}

#[test]
fn a_disk_of_the_replica_gets_an_overlay_and_the_replica_keeps_what_makes_it_itself() {
    let world = replicated(|_| ());
    let before = Domain::parse(&world.target.replica.as_ref().unwrap().xml).unwrap();
    let plan = world.plan();
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
    assert_eq!((plan.disks[0].path.as_str(), &plan.disks[0].format), (OVERLAY, &ImageFormat::Qcow2));
    assert_eq!(plan.disks[0].base.as_ref().unwrap().path, IMAGE);
    assert_eq!(plan.space_needed, 4 * GIB / 100 * 15 + 4 * GIB / 100 * 15 * 15 / 100);
    let committed = plan.definition.as_ref().unwrap();
    let after = Domain::parse(committed).unwrap();
    assert_eq!((after.name(), after.uuid(), after.genid()), (before.name(), before.uuid(), before.genid()));
    let macs = |domain: &Domain| domain.interfaces().into_iter().map(|nic| nic.mac).collect::<Vec<_>>();
    assert_eq!(macs(&after), macs(&before));
    assert_eq!(after.lineage().unwrap().point, "2030-02-03T04:05:06Z");
    let store = format!(
        "<source file='{OVERLAY}'/>\n<backingStore type='file'>\n  <format type='qcow2'/>\n  <source file='{IMAGE}'/>\n  <backingStore/>"
    );
    assert!(committed.contains(&store), "{committed}");
    let settled = plan.target_xml.as_ref().unwrap();
    assert!(settled.contains(&format!("<source file='{IMAGE}'/>")) && !settled.contains(OVERLAY), "{settled}");
    assert_eq!(plan.replaces.as_ref().unwrap().files, [""; 0]);
    insta::assert_snapshot!(plan.describe());
}

#[test]
fn the_definition_follows_the_source() {
    let mut world = replicated(|_| ());
    world.source.xml = world.source.xml.replace("<memory unit='MiB'>64", "<memory unit='MiB'>96");
    let plan = world.plan();
    assert_eq!(Domain::parse(plan.definition.as_ref().unwrap()).unwrap().memory().0, 96 << 20);
    update(&mut world, |update| update.disks_only = true);
    let plan = world.plan();
    let kept = Domain::parse(plan.definition.as_ref().unwrap()).unwrap();
    assert_eq!(kept.memory().0, 64 << 20);
    assert_eq!(kept.disks()[0].source.as_deref(), Some(OVERLAY));
}

#[test]
fn the_choices_of_the_clone_hold_again() {
    let mut world = world();
    world.add_device("<interface type='network'><source network='lan'/></interface>");
    let mut world = replicated_from(world, |request| {
        request.networks = vec![("lan".to_owned(), NetworkTarget::None)];
        request.pool = Some("default".parse().unwrap());
        request.disk_format = DiskFormat::Raw;
        request.any_machine = true;
        request.copy_media = true;
        request.block_size = "4K".parse().unwrap();
        request.reduction = Reduction { tuning: true, host_devices: true, ..Reduction::default() };
    });
    let request = &world.request;
    assert_eq!(request.usual_networks, [("lan".to_owned(), NetworkTarget::None)]);
    assert_eq!(request.pool.as_ref().unwrap().as_str(), "default");
    assert_eq!(request.disk_format, DiskFormat::Raw);
    assert!(request.any_machine && request.copy_media);
    assert_eq!(request.block_size.to_string(), "4K");
    assert!(request.reduction.tuning && request.reduction.host_devices && !request.reduction.shared_directories);
    // A network that the source is not plugged into any more needs no place.
    world.source.xml = world.source.xml.replace("<interface type='network'><source network='lan'/></interface>", "");
    assert_eq!(code(&world.plan()), 0, "{:?}", world.plan().refusal());
}

#[test]
fn the_size_of_blocks_stays_with_the_replica_and_another_one_is_said_to_cost_reading() {
    let world = replicated(|request| request.block_size = "4K".parse().unwrap());
    let asked = |size: Option<&str>| {
        let mut world = world.clone();
        let (name, lineage) = (&world.target.machines[0].name, &world.target.replica.as_ref().unwrap().lineage);
        let asked = SyncRequest { block_size: size.map(|size| size.parse().unwrap()), ..SyncRequest::default() };
        world.request = sync_request(name, lineage, &asked).unwrap();
        world
    };
    let note = |world: &World| {
        let checks = world.plan().checks;
        checks.into_iter().find(|check| check.name == "blocks").map(|check| check.message)
    };
    let kept = |world: &World| {
        let made = Domain::parse(world.plan().definition.as_ref().unwrap()).unwrap();
        made.lineage().unwrap().policy.block_size.to_string()
    };
    for same in [None, Some("4K")] {
        let world = asked(same);
        assert_eq!((note(&world), kept(&world).as_str()), (None, "4K"));
    }
    let mut other = asked(Some("64K"));
    let said = note(&other).unwrap();
    assert!(said.contains("of 64K") && said.contains("blocks of 4K") && said.contains("read once"), "{said}");
    assert_eq!(kept(&other), "64K");
    // Nothing is compared with digests, so nothing more is read.
    update(&mut other, |update| update.candidates = Candidates::All);
    assert_eq!(note(&other), None);
}

#[test]
fn a_disk_that_was_left_out_stays_left_out() {
    let mut world = world();
    world.add_disk("vdb", vec![image("/pool/data.qcow2", 1)]);
    let mut world = replicated_from(world, |request| _ = request.reduction.disks.insert("vdb".parse().unwrap()));
    let disks = |plan: ClonePlan| plan.disks.iter().map(|disk| disk.target.to_string()).collect::<Vec<_>>();
    assert_eq!(disks(world.plan()), ["vda"]);
    // Also when the source has it no more.
    let without = "<disk><driver type='qcow2'/><source file='/pool/data.qcow2'/><target dev='vdb'/></disk>";
    world.source.xml = world.source.xml.replace(without, "");
    assert_eq!(disks(world.plan()), ["vda"]);
}

#[test]
fn disks_that_come_go_and_grow_are_told() {
    let mut world = replicated(|_| ());
    world.add_disk("vdb", vec![image("/pool/data.qcow2", 1)]);
    world.image().virtual_size = 12 * GIB;
    let plan = world.plan();
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
    let text = plan.describe();
    assert!(
        text.contains("disk vdb is new at the source") && text.contains("disk vda grew from 10.0 GiB to 12.0 GiB"),
        "{text}"
    );
    assert_eq!((plan.disks[1].path.as_str(), plan.disks[1].base.is_none()), ("/images/standby-vdb.qcow2", true));
    let refused = world.clone().with(|w| update(w, |update| update.candidates = Candidates::OnlyDiffering));
    assert_eq!(code(&refused), 1014);
}

/// The source and a replica that has one disk more.
fn with_a_lost_disk() -> World {
    let mut world = replicated(|_| ());
    let more = "<disk><driver type='qcow2'/><source file='/images/old-vdb.qcow2'/><target dev='vdb'/></disk>";
    let xml = replica(&mut world).xml.replace("<!--more-->", more);
    replica(&mut world).xml = xml;
    let file = FileId { device: 9, inode: 901, length: 1, born: None };
    world.target.machines[0].disk_files.push(DiskFile { path: "/images/old-vdb.qcow2".to_owned(), file: Some(file) });
    // The definition names it through a link.
    let seen = ImageFacts { file, ..image("/data/old-vdb.qcow2", 1) };
    replica(&mut world).images.insert("vdb".parse().unwrap(), vec![seen]);
    world
}

#[test]
fn a_disk_that_is_gone_from_the_source_goes_and_its_image_by_word_alone() {
    let mut world = with_a_lost_disk();
    let plan = world.plan();
    assert!(
        plan.describe()
            .contains("disk vdb is gone from the source; the replica loses it, its image /images/old-vdb.qcow2 stays")
    );
    assert_eq!(plan.replaces.unwrap().files, [""; 0]);

    // By word its image goes with the commit, unless something may stand on it.
    update(&mut world, |update| update.remove_lost = true);
    let goes = world.plan();
    assert!(goes.describe().contains("its image /images/old-vdb.qcow2 is removed"), "{}", goes.describe());
    let replaced = goes.replaces.unwrap();
    assert_eq!(
        (replaced.files, replaced.lost_disks),
        (vec!["/images/old-vdb.qcow2".to_owned()], vec!["vdb".parse().unwrap()])
    );
    let needed: [fn(&mut World); 4] = [
        |world| {
            let image = KeptImage { path: "/data/old-vdb.qcow2".to_owned(), format: ImageFormat::Qcow2, apart: true };
            let images = [("vdb".parse().unwrap(), image)].into();
            replica(world).lineage.points.push(KeptPoint { point: "2029-01-01T00:00:00Z".to_owned(), images });
            replica(world).ages.push(Some(3600));
        },
        |world| world.request.safety.keep = true,
        |world| {
            let mut other = world.target.machines[0].clone();
            (other.name, other.uuid) = ("other".parse().unwrap(), Uuid::from_u128(77));
            other.uses.remove(IMAGE);
            world.target.machines.push(other);
        },
        |world| update(world, |update| update.disks_only = true),
    ];
    for (case, need) in needed.into_iter().enumerate() {
        let mut world = world.clone();
        need(&mut world);
        let replaced = world.plan().replaces.unwrap();
        assert_eq!((replaced.files, replaced.lost_disks), (Vec::new(), Vec::new()), "{case}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused_and_can_be_copied_whole() {
    type Change = fn(&mut ImageFacts);
    let cases: [(&str, Change, u16); 6] = [
        ("larger", |image| image.virtual_size += 512, 1014),
        ("device", |image| image.regular_file = false, 1013),
        ("format", |image| image.format = ImageFormat::Other("vmdk".to_owned()), 1013),
        ("data file", |image| image.data_file = Some("/x".to_owned()), 1013),
        ("zstd", |image| image.by_qemu.push("zstd".to_owned()), 1013),
        ("grown with snapshots", |image| (image.virtual_size, image.snapshots) = (GIB, 1), 1013),
    ];
    for (what, change, expected) in cases {
        let mut world = replicated(|_| ());
        change(&mut replica(&mut world).images.get_mut(&"vda".parse().unwrap()).unwrap()[0]);
        assert_eq!(code(&world.plan()), expected, "{what}");
        update(&mut world, |update| update.candidates = Candidates::All);
        let whole = world.plan();
        assert_eq!(code(&whole), 0, "{what}: {:?}", whole.refusal());
        assert_eq!(whole.disks[0].path, "/images/standby-vda-deadbeef.qcow2");
        assert_eq!(whole.replaces.unwrap().files, [IMAGE]);
    }
    let chain = replicated(|_| ()).with(|w| {
        replica(w).images.get_mut(&"vda".parse().unwrap()).unwrap().push(image("/images/base", 1));
    });
    assert_eq!(code(&chain), 1013);
}

#[test]
fn an_odd_disk_is_as_large_as_its_overlay_was() {
    let plan = replicated(|_| ()).with(|w| {
        w.image().virtual_size = GIB + 1;
        let image = &mut replica(w).images.get_mut(&"vda".parse().unwrap()).unwrap()[0];
        image.virtual_size = GIB + 512;
    });
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
}

#[test]
fn a_replica_that_runs_or_holds_more_than_its_disks_is_left_alone() {
    type Change = fn(&mut ExistingMachine);
    let cases: [(&str, Change, u16); 5] = [
        ("running", |machine| machine.state = MachineState::Running, 1014),
        ("paused", |machine| machine.state = MachineState::Paused, 1014),
        ("managed save", |machine| machine.managed_save = true, 1014),
        ("snapshots", |machine| machine.snapshots = 1, 1013),
        ("checkpoints", |machine| machine.checkpoints = 1, 1013),
    ];
    for (what, change, expected) in cases {
        let plan = replicated(|_| ()).with(|w| change(&mut w.target.machines[0]));
        assert_eq!(code(&plan), expected, "{what}");
    }
}

#[test]
fn a_disk_with_another_serial_is_another_disk() {
    let serial = |xml: &str, serial: &str| {
        xml.replace("<target dev='vda'", &format!("<serial>{serial}</serial><target dev='vda'"))
    };
    let mut world = replicated(|_| ());
    world.source.xml = serial(&world.source.xml, "one");
    let xml = serial(&replica(&mut world).xml.clone(), "two");
    replica(&mut world).xml = xml;
    let plan = world.plan();
    assert!(plan.disks[0].base.is_none(), "{:?}", plan.disks);
    assert_eq!(plan.disks[0].path, "/images/standby-vda-deadbeef.qcow2");
}

#[test]
fn the_replica_is_found_by_its_lineage() {
    let world = replicated(|_| ());
    let lineage = world.target.replica.as_ref().unwrap().lineage.clone();
    let names: Vec<SourceName> = ["standby", "other", "small"].iter().map(|name| name.parse().unwrap()).collect();
    let rebooted = Lineage { host: HostId("elsewhere".to_owned()), ..lineage.clone() };
    let foreign = Lineage { uuid: Uuid::from_u128(123), ..lineage.clone() };
    let find = |lineages: &[Option<&Lineage>], wanted: Option<&str>| {
        let machines: Vec<Candidate<'_>> = names
            .iter()
            .zip(lineages)
            .map(|(name, lineage)| Candidate { name, uuid: Uuid::nil(), lineage: *lineage })
            .collect();
        let wanted = wanted.map(|name| name.parse().unwrap());
        let found = find_replica(&world.source, "beta", &machines, wanted.as_ref());
        found.map(|found| found.name.to_string()).map_err(|error| error.code.number())
    };
    assert_eq!(find(&[Some(&lineage), None], None), Ok("standby".to_owned()));
    assert_eq!(find(&[Some(&rebooted), None], None), Ok("standby".to_owned()));
    assert_eq!(find(&[Some(&rebooted), Some(&lineage)], None), Ok("other".to_owned()));
    assert_eq!(find(&[Some(&lineage), Some(&lineage)], None), Err(1007));
    assert_eq!(find(&[Some(&lineage), Some(&lineage)], Some("standby")), Ok("standby".to_owned()));
    assert_eq!(find(&[Some(&foreign), None], None), Err(1003));
    assert_eq!(find(&[None, None, None], None), Err(1007));
    assert_eq!(find(&[Some(&foreign)], Some("standby")), Err(1007));
    assert_eq!(find(&[], Some("standby")), Err(1003));
}

/// The replica's disk is a raw image, and it is written in place.
fn in_place() -> World {
    let mut world = replicated(|_| ());
    let image = &mut replica(&mut world).images.get_mut(&"vda".parse().unwrap()).unwrap()[0];
    image.format = ImageFormat::Raw;
    update(&mut world, |update| update.in_place = true);
    world
}

fn interrupted(world: &mut World) {
    let written = WrittenImage { path: IMAGE.to_owned(), format: ImageFormat::Raw, device: false };
    let images = BTreeMap::from([("vda".parse().unwrap(), written)]);
    replica(world).lineage.incomplete = Some(Incomplete { operation: Uuid::from_u128(5), images });
}

#[test]
fn in_place_the_replicas_image_is_the_new_one_and_the_risk_is_named() {
    let plan = in_place().plan();
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
    assert_eq!((plan.disks[0].path.as_str(), &plan.disks[0].format, plan.space_needed), (IMAGE, &ImageFormat::Raw, 0));
    let definition = plan.definition.as_ref().unwrap();
    assert!(
        definition.contains(&format!("<source file='{IMAGE}'/>")) && !definition.contains("backingStore"),
        "{definition}"
    );
    assert!(plan.warnings.iter().any(|warning| warning.contains("its old point is lost")), "{:?}", plan.warnings);
    assert_eq!(plan.replaces.as_ref().unwrap().files, [""; 0]);
    let text = plan.describe();
    assert!(
        text.contains("1 image(s) in place") && text.contains(&format!("to   {IMAGE} (raw, pool default), in place")),
        "{text}"
    );
}

#[test]
fn in_place_a_device_keeps_its_name_and_must_have_the_very_size() {
    let mut world = in_place();
    let device = "/dev/vg/standby";
    let xml =
        replica(&mut world).xml.replace(&format!("<source file='{IMAGE}'/>"), &format!("<source dev='{device}'/>"));
    replica(&mut world).xml = xml.replacen("<disk type='file'", "<disk type='block'", 1);
    let image = &mut replica(&mut world).images.get_mut(&"vda".parse().unwrap()).unwrap()[0];
    (image.path, image.regular_file) = ("/dev/dm-7".to_owned(), false);
    let plan = world.plan();
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
    let base = plan.disks[0].base.as_ref().unwrap();
    assert_eq!((base.path.as_str(), base.device.as_deref()), ("/dev/dm-7", Some(device)));
    assert!(plan.definition.as_ref().unwrap().contains(&format!("<source dev='{device}'/>")));
    for by in [-512i64, 512] {
        let other = world.clone().with(|w| {
            let image = &mut replica(w).images.get_mut(&"vda".parse().unwrap()).unwrap()[0];
            image.virtual_size = image.virtual_size.checked_add_signed(by).unwrap();
        });
        assert_eq!(code(&other), 1013, "{by}");
    }
}

#[test]
fn what_cannot_be_written_in_place_is_refused() {
    assert_eq!(code(&replicated(|_| ()).with(|w| update(w, |update| update.in_place = true))), 1013, "qcow2");
    let optional = |w: &mut World| {
        let xml = replica(w)
            .xml
            .replace(&format!("<source file='{IMAGE}'"), &format!("<source file='{IMAGE}' startupPolicy='optional'"));
        replica(w).xml = xml;
    };
    assert_eq!(code(&in_place().with(optional)), 1013, "it would start without the disk");
    let shrunk = in_place().with(|w| w.image().virtual_size -= GIB);
    assert_eq!(code(&shrunk), 1014);
    // A volume of a pool: which device that is, may be another after a reboot.
    let device = |w: &mut World| replica(w).images.values_mut().next().unwrap()[0].regular_file = false;
    assert_eq!(code(&in_place().with(device)), 1013, "a device that the definition names as a file");
    let whole = Update { in_place: true, candidates: Candidates::All, ..Update::default() };
    let mut world = in_place();
    let own = replica(&mut world).clone();
    let asked = SyncRequest { update: whole, ..SyncRequest::default() };
    assert_eq!(sync_request(&own.name, &own.lineage, &asked).unwrap_err().code.number(), 1007);
}

#[test]
fn an_image_that_is_anybody_elses_is_not_written_in_place() {
    let of_another = |w: &mut World| {
        let mut other = existing("other", 3, "/srv/other.img");
        other.uses.insert(IMAGE.to_owned());
        w.target.machines.push(other);
    };
    assert_eq!(code(&in_place().with(of_another)), 1014);
    let of_source = |w: &mut World| {
        let own = replica(w).images.values().next().unwrap()[0].clone();
        let source = w.image();
        (source.file, source.device_id) = (own.file, own.device_id);
    };
    assert_eq!(code(&in_place().with(of_source)), 1014);
}

#[test]
fn no_new_point_is_merged_into_what_another_machine_stands_on() {
    let by_path: fn(&mut ExistingMachine) = |other| _ = other.uses.insert(IMAGE.to_owned());
    let by_link: fn(&mut ExistingMachine) =
        |other| other.used_files.push(FileId { inode: 300, ..image(IMAGE, 4).file });
    for uses in [by_path, by_link] {
        let mut world = replicated(|_| ());
        let mut other = existing("test", 3, "/srv/test.qcow2");
        uses(&mut other);
        world.target.machines.push(other);
        let refused = world.plan();
        assert_eq!(code(&refused), 1014);
        assert!(refused.refusal().unwrap().message.contains("machine test"), "{:?}", refused.refusal());
        let kept = world.clone().with(|w| w.request.safety.keep = true);
        assert_eq!(code(&kept), 0, "{:?}", kept.refusal());
        let whole = world.with(|w| update(w, |update| update.candidates = Candidates::All));
        assert_eq!((code(&whole), whole.replaces.unwrap().files), (0, Vec::new()), "the old image stays");
    }
}

#[test]
fn in_place_no_old_point_is_kept() {
    let mut world = in_place();
    let own = replica(&mut world).clone();
    let asked = |in_place, lineage: &Lineage| {
        let (update, safety) = (Update { in_place, ..Update::default() }, Safety { keep: true, ..Safety::default() });
        sync_request(&own.name, lineage, &SyncRequest { update, safety, ..SyncRequest::default() })
    };
    assert_eq!(asked(true, &own.lineage).unwrap_err().code.number(), 1007);
    assert!(asked(false, &own.lineage).unwrap().safety.keep);
    // What completes a replica that is out of service is not held up: there is no point any more.
    interrupted(&mut world);
    assert!(!asked(false, &replica(&mut world).lineage).unwrap().safety.keep);
}

#[test]
fn a_replica_that_is_out_of_service_is_completed_in_place_or_replaced_whole() {
    let mut world = in_place();
    interrupted(&mut world);
    let own = replica(&mut world).clone();
    let made = |candidates| {
        let update = Update { candidates, ..Update::default() };
        let request = sync_request(&own.name, &own.lineage, &SyncRequest { update, ..SyncRequest::default() }).unwrap();
        world.clone().with(|w| w.request = request)
    };
    let completed = made(Candidates::Differing);
    assert_eq!(code(&completed), 0, "{:?}", completed.refusal());
    assert_eq!(completed.replica.as_ref().unwrap().incomplete, Some(Uuid::from_u128(5)));
    assert!(completed.disks[0].base.as_ref().unwrap().in_place);
    assert!(completed.describe().contains("neither old nor new"), "{}", completed.describe());
    let replaced = made(Candidates::All);
    assert!(code(&replaced) == 0 && replaced.disks[0].base.is_none(), "{:?}", replaced.refusal());
    // A definition that stays as it is must not name what was written in part and is not completed.
    let mut world = world.clone();
    world.source.xml = world.source.xml.replace("dev='vda'", "dev='vdz'");
    world.source.images = world.source.images.into_values().map(|chain| ("vdz".parse().unwrap(), chain)).collect();
    update(&mut world, |update| update.disks_only = true);
    assert_eq!(code(&world.plan()), 1014);
}
