//! `--force`: what is replaced, what is removed, and what is refused.

use super::*;

type Change = fn(&mut ExistingMachine);

const OLD: &str = "/images/small_clone-vda.qcow2";

/// A clone over the machine `small_clone`, which has the very file that the copy would be.
fn force() -> World {
    let mut world = world();
    world.request.existing = Existing::Replace;
    world.target.machines = vec![existing("small_clone", 5, OLD)];
    world.target.paths_present = BTreeSet::from([OLD.to_owned()]);
    world
}

#[test]
fn the_new_machine_takes_over_the_uuid_and_a_file_of_its_own() {
    let plan = force().plan();
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
    let replaced = plan.replaces.as_ref().unwrap();
    assert_eq!((replaced.uuid, replaced.files.as_slice()), (Uuid::from_u128(5), [OLD.to_owned()].as_slice()));
    assert_eq!(plan.new_uuid, Uuid::from_u128(5));
    assert_eq!(plan.disks[0].path, "/images/small_clone-vda-deadbeef.qcow2");
    assert!(plan.definition.as_ref().unwrap().contains("<uuid>00000000-0000-0000-0000-000000000005</uuid>"));
    insta::assert_snapshot!(plan.describe());
}

#[test]
fn force_without_anything_there_is_an_ordinary_clone() {
    let plan = force().with(|w| {
        w.target.machines.clear();
        w.target.paths_present.clear();
    });
    assert_eq!((code(&plan), plan.replaces), (0, None));
    assert_eq!(plan.disks[0].path, OLD);
}

#[test]
fn force_does_not_touch_a_file_of_nobody() {
    let stranger = force().with(|w| w.target.machines = vec![existing("small_clone", 5, "/elsewhere")]);
    assert_eq!(code(&stranger), 1004);
    let other = "/images/small_clone-vda-deadbeef.qcow2".to_owned();
    assert_eq!(code(&force().with(|w| _ = w.target.paths_present.insert(other))), 1004);
}

#[test]
fn a_machine_that_holds_more_than_its_disks_is_not_replaced() {
    let cases: [(&str, Change, u16); 5] = [
        ("running", |old| old.state = MachineState::Running, 1014),
        ("paused", |old| old.state = MachineState::Paused, 1014),
        ("managed save", |old| old.managed_save = true, 1013),
        ("snapshots", |old| old.snapshots = 1, 1013),
        ("checkpoints", |old| old.checkpoints = 1, 1013),
    ];
    for (what, change, expected) in cases {
        let plan = force().with(|w| change(&mut w.target.machines[0]));
        assert_eq!(code(&plan), expected, "{what}");
        assert_eq!(plan.replaces, None, "{what}");
    }
}

#[test]
fn a_uuid_to_be_kept_must_be_the_replaced_ones() {
    let kept = |uuid: Uuid| {
        force().with(|w| {
            w.request.uuid = Identity::Kept;
            w.target.machines[0].uuid = uuid;
        })
    };
    assert_eq!(code(&kept(Uuid::from_u128(5))), 1004);
    assert_eq!(code(&kept(world().source.uuid)), 0);
}

/// A machine with a disk of its own.
fn other() -> ExistingMachine {
    let file = Some(FileId { device: 9, inode: 901, length: 1, born: None });
    let mut other = existing("other", 6, "/other");
    other.disk_files = vec![DiskFile { path: "/other".to_owned(), file }];
    other
}

#[test]
fn a_file_that_another_machine_reaches_by_another_path_stays() {
    let old = force().target.machines[0].disk_files[0].file.unwrap();
    let files = |change: &dyn Fn(&mut ExistingMachine)| {
        let plan = force().with(|w| {
            let mut other = other();
            change(&mut other);
            w.target.machines.push(other);
        });
        plan.replaces.unwrap().files
    };
    assert_eq!(files(&|_| {}), [OLD.to_owned()], "nobody else's");
    assert!(files(&|other| other.used_files.push(FileId { length: 7, ..old })).is_empty());
    assert!(files(&|other| other.disk_files[0].file = Some(old)).is_empty());
    assert_eq!(files(&|other| other.used_files.push(FileId { device: 8, ..old })), [OLD.to_owned()]);
}

#[test]
fn what_another_machine_may_stand_on_stays() {
    let plan = force().with(|w| {
        let mut other = other();
        other.unseen.push("/other: no format of the file behind it".to_owned());
        w.target.machines.push(other);
    });
    assert_eq!(code(&plan), 0);
    assert!(plan.warnings.iter().any(|warning| warning.contains("all its files stay")), "{:?}", plan.warnings);
    assert!(plan.replaces.unwrap().files.is_empty());
    // Its own images are its own affair.
    let own = force().with(|w| w.target.machines[0].unseen.push("/x".to_owned()));
    assert_eq!(own.replaces.unwrap().files, [OLD.to_owned()]);
}

#[test]
fn files_that_others_use_stay() {
    let used_by_other = force().with(|w| {
        let mut other = other();
        other.uses.insert(OLD.to_owned());
        w.target.machines.push(other);
    });
    assert!(used_by_other.replaces.unwrap().files.is_empty());
    let missing = force().with(|w| w.target.machines[0].disk_files[0].file = None);
    assert!(missing.replaces.unwrap().files.is_empty());
    let backing_of_source = force().with(|w| {
        w.target.host = w.source.host.clone();
        w.source
            .images
            .get_mut(&"vda".parse().unwrap())
            .unwrap()
            .push(ImageFacts { file: FileId { device: 1, inode: 101, length: 1, born: None }, ..image("/base", 1) });
        w.target.machines[0].disk_files.push(DiskFile { path: "/base".to_owned(), file: None });
    });
    assert_eq!(code(&backing_of_source), 1014);
}

#[test]
fn an_image_of_the_source_is_never_removed() {
    let shared = |device: u64, inode: u64, length: u64, same_host: bool| {
        code(&force().with(|w| {
            w.target.machines[0].disk_files[0].file = Some(FileId { device, inode, length, born: None });
            if same_host {
                w.target.host = w.source.host.clone();
            }
        }))
    };
    assert_eq!(shared(1, 100, 4 * GIB, true), 1014, "one file under two names");
    assert_eq!(shared(77, 100, 4 * GIB, false), 1014, "one file on storage of two hosts");
    assert_eq!(shared(2, 100, 4 * GIB, true), 0, "another file system");
    assert_eq!(shared(77, 100, 5, false), 1014, "one that grew between two looks");
    assert_eq!(shared(1, 101, 4 * GIB, false), 0, "another file");
}
