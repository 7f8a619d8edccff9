//! Machines whose process is there.

use super::*;
use crate::inventory::LiveMachine;

pub(super) fn running() -> World {
    let mut world = world();
    world.source.state = MachineState::Running;
    world.source.live = Some(LiveMachine {
        id: 7,
        disks: BTreeMap::from([("vda".parse().unwrap(), "/pool/small.qcow2".to_owned())]),
        sizes: BTreeMap::new(),
        job: None,
        libvirt_version: 9_000_000,
        qemu_version: 7_002_000,
        backup: true,
        virsh: true,
        storage_failed: false,
        scratch_available: 10 * GIB,
    });
    world
}

fn live(world: &mut World) -> &mut LiveMachine {
    world.source.live.as_mut().unwrap()
}

#[test]
fn what_runs_is_copied_as_of_one_moment() {
    for state in [MachineState::Running, MachineState::Paused, MachineState::Suspended] {
        let plan = running().with(|w| w.source.state = state);
        assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
        assert_eq!(plan.consistency, Consistency::Crash);
    }
    assert_eq!(world().plan().consistency, Consistency::Stopped);
}

#[test]
fn saved_memory_is_left_out_by_word() {
    let saved = |w: &mut World| w.source.managed_save = true;
    let refused = world().with(saved).refusal().unwrap();
    assert_eq!(refused.code.number(), 1013);
    assert!(refused.help.iter().any(|help| help.contains("--discard-managed-save")), "{refused:?}");
    let plan = world().with(|w| {
        saved(w);
        w.request.discard_managed_save = true;
    });
    assert_eq!((code(&plan), plan.consistency), (0, Consistency::Crash));
    assert!(plan.warnings.iter().any(|warning| warning.contains("power cut")), "{:?}", plan.warnings);
    // Nothing is left out where nothing was saved.
    assert_eq!(world().with(|w| w.request.discard_managed_save = true).consistency, Consistency::Stopped);
}

#[test]
fn what_cannot_be_copied_while_it_runs_has_another_way() {
    type Change = fn(&mut World);
    let cases: [(&str, Change, u16); 9] = [
        ("libvirt is too old", |w| live(w).libvirt_version = 7_001_000, 1013),
        ("qemu is too old", |w| live(w).qemu_version = 4_001_000, 1013),
        ("it says it cannot", |w| live(w).backup = false, 1013),
        ("no virsh", |w| live(w).virsh = false, 1013),
        ("a job", |w| live(w).job = Some("a backup".to_owned()), 1011),
        ("a disk attached", |w| drop(live(w).disks.insert("vdb".parse().unwrap(), "/b".to_owned())), 1013),
        ("another image", |w| drop(live(w).disks.insert("vda".parse().unwrap(), "/b".to_owned())), 1013),
        ("no scratch space", |w| live(w).scratch_available = 1 << 20, 1005),
        ("crashed", |w| w.source.state = MachineState::Crashed, 1013),
    ];
    for (what, change, expected) in cases {
        let plan = running().with(change);
        assert_eq!(code(&plan), expected, "{what}: {:?}", plan.refusal());
        assert!(!plan.refusal().unwrap().help.is_empty(), "{what}");
    }
}

#[test]
fn too_old_says_which_versions_there_are_and_which_are_needed() {
    let error = running().with(|w| live(w).libvirt_version = 6_010_002).refusal().unwrap();
    assert!(error.message.contains("libvirt 6.10.2"), "{error}");
    assert!(error.help[0].contains("libvirt 7.2.0 and qemu 4.2.0"), "{:?}", error.help);
    assert!(error.help[0].contains("virsh shutdown"), "{:?}", error.help);
    let error = running().with(|w| live(w).backup = false).refusal().unwrap();
    assert!(error.message.contains("say that they cannot back it up"), "{error}");
    assert!(error.help[0].contains("7.2.0") && error.help[0].contains("virsh shutdown"), "{:?}", error.help);
}

#[test]
fn a_transient_disk_is_copied_only_while_the_machine_is_stopped() {
    let transient = |w: &mut World| w.source.xml = w.source.xml.replace("<target dev", "<transient/><target dev");
    let plan = world().with(transient);
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
    assert!(plan.warnings.iter().any(|warning| warning.contains("transient")), "{:?}", plan.warnings);
    assert_eq!(code(&running().with(transient)), 1013);
}

#[test]
fn a_disk_that_is_left_out_of_a_running_machine_does_not_hinder() {
    let second = "<disk type='file' device='disk'><source file='/pool/b.img'/><target dev='vdb'/></disk></devices>";
    let plan = running().with(|w| {
        w.source.xml = w.source.xml.replace("</devices>", second);
        live(w).disks.insert("vdb".parse().unwrap(), "/pool/b.img".to_owned());
        w.request.reduction.disks.insert("vdb".parse().unwrap());
    });
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
}

#[test]
fn live_and_offline_are_words_of_the_user() {
    assert_eq!(code(&running().with(|w| w.request.presence = Presence::Offline)), 1013);
    assert_eq!(code(&running().with(|w| w.request.presence = Presence::Live)), 0);
    assert_eq!(code(&world().with(|w| w.request.presence = Presence::Live)), 1013);
    assert_eq!(code(&world().with(|w| w.request.presence = Presence::Offline)), 0);
}

#[test]
fn a_machine_that_was_started_again_is_another_one() {
    let before = running().source;
    let changed = |change: fn(&mut World)| {
        let mut now = running();
        change(&mut now);
        is_unchanged(&before, &now.source)
    };
    assert!(changed(|w| w.source.state = MachineState::Paused), "pausing changes no disk");
    assert!(!changed(|w| live(w).id = 8));
    assert!(!changed(|w| w.source.live = None));
    assert!(!changed(|w| drop(live(w).disks.insert("vdb".parse().unwrap(), "/b".to_owned()))));
}

#[test]
fn the_job_names_only_what_is_copied() {
    let scratch = [("vda".parse().unwrap(), "/pool/a&b.scratch".to_owned())];
    let xml = backup_xml("/run/x.sock", &scratch);
    assert!(xml.contains("<server transport='unix' socket='/run/x.sock'/>"), "{xml}");
    assert!(xml.contains("exportname='vda'") && xml.contains("a&amp;b.scratch"), "{xml}");
}
