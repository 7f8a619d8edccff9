//! What is left out, what is chosen anew, and the files beside the disks.

use super::*;
use crate::domain::Reduction;

type Change = fn(&mut World);

pub(super) fn xml(plan: &ClonePlan) -> &str {
    plan.target_xml.as_deref().unwrap_or_else(|| panic!("{:?}", plan.refusal()))
}

/// A machine with everything that belongs to its host.
fn bound() -> World {
    let mut world = world();
    world.add_device(
        "<hostdev mode='subsystem' type='pci'><source><address bus='2'/></source></hostdev><filesystem type='mount'><source dir='/a'/></filesystem>\
         <disk type='network' device='disk'><source protocol='rbd' name='p/i'/><target dev='vdb'/></disk>",
    );
    let tuning = "<vcpu cpuset='0-1'>1</vcpu><cputune><vcpupin vcpu='0' cpuset='64'/></cputune><numatune/>\
                  <memoryBacking><hugepages/><locked/></memoryBacking>";
    world.source.xml = world.source.xml.replace("<vcpu>1</vcpu>", tuning);
    world
}

#[test]
fn what_is_left_out_is_gone_and_said() {
    assert_eq!(code(&bound().plan()), 1013);
    let plan = bound().with(|w| {
        w.request.reduction = Reduction {
            disks: BTreeSet::from(["vdb".parse().unwrap()]),
            host_devices: true,
            shared_directories: true,
            tuning: true,
        };
    });
    // But that it was left out is noted for the next sync.
    let (before, after) = (xml(&plan).split_once("<kvm-clone:policy").unwrap(), "</kvm-clone:lineage>");
    let machine = before.0.to_owned() + before.1.split_once(after).unwrap().1;
    assert!(before.1.contains("<kvm-clone:excluded disk='vdb'/>"), "{}", before.1);
    for gone in ["hostdev", "filesystem", "vdb", "cputune", "numatune", "hugepages", "cpuset"] {
        assert!(!machine.contains(gone), "{gone}: {machine}");
    }
    assert!(machine.contains("<locked/>"), "what was not asked for stays");
    let said = plan.warnings.join("\n");
    for word in [
        "<hostdev>",
        "0000:02:00.0",
        "a <filesystem> of type \"mount\" is left out: /a",
        "disk vdb",
        "<cputune>",
        "huge pages",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn each_refusal_names_the_option_that_helps() {
    let help = |device: &str| {
        let plan = world().with(|w| w.add_device(device));
        plan.refusal().unwrap().help.join(" ")
    };
    assert!(help("<hostdev/>").contains("--drop-hostdev"));
    assert!(help("<filesystem type='mount'><source dir='/a'/></filesystem>").contains("--drop-fs"));
    let disk = "<disk type='nvme' device='disk'><source/><target dev='vdb'/></disk>";
    assert!(help(disk).contains("--exclude"));
}

#[test]
fn leaving_out_the_disk_that_is_booted_from_is_said() {
    let plan = world().with(|w| {
        w.request.reduction.disks.insert("vda".parse().unwrap());
    });
    assert!(plan.warnings.iter().any(|warning| warning.contains("boots from disk vda")), "{:?}", plan.warnings);
}

#[test]
fn a_disk_that_is_not_there_cannot_be_left_out() {
    let mut world = world();
    world.request.reduction.disks.insert("vdz".parse().unwrap());
    let error = plan_clone(&world.request, &world.source, &world.target, &world.fresh).unwrap_err();
    assert_eq!(error.code.number(), 1007);
    assert!(error.help[0].contains("vda"));
}

#[test]
fn a_machine_type_that_is_not_there_becomes_a_close_one_by_word() {
    let with = |source: &str, there: &[&str], any: bool| {
        let mut w = world();
        w.source.xml = w.source.xml.replace("pc-q35-7.2", source);
        w.target.capabilities[0].machines = there.iter().map(ToString::to_string).collect();
        w.request.any_machine = any;
        w.plan()
    };
    let refused = with("pc-q35-9.0", &["pc-q35-7.2"], false).refusal().unwrap();
    assert!(refused.code.number() == 1013 && refused.help.iter().any(|help| help.contains("--machine auto")));
    for (source, there, chosen) in [
        ("pc-q35-9.0", &["q35", "pc-q35-7.2", "pc-q35-8.2", "pc-q35-8.10", "pc-i440fx-9.0"][..], "pc-q35-8.10"),
        ("pc-q35-2.4", &["pc-q35-7.2", "pc-q35-6.0"], "pc-q35-6.0"),
        ("pc-q35-7.2", &["pc-q35-7.2", "pc-q35-7.1"], "pc-q35-7.2"),
    ] {
        let plan = with(source, there, true);
        assert!(xml(&plan).contains(&format!("machine='{chosen}'")), "{source}: {}", xml(&plan));
        let told = plan.warnings.iter().any(|warning| warning.contains("machine type"));
        assert_eq!(told, source != chosen, "{:?}", plan.warnings);
    }
    assert_eq!(code(&with("pc-i440fx-9.0", &["pc-q35-7.2"], true)), 1013, "no relative is there");
}

pub(super) const VARS: &str = "/var/lib/libvirt/qemu/nvram/small_VARS.fd";
pub(super) const DIR: &str = "/var/lib/libvirt/qemu/nvram";

pub(super) fn uefi(os: &str) -> World {
    let mut world = world();
    world.source.xml = world.source.xml.replace("</os>", &format!("{os}</os>"));
    world.target.paths_present = BTreeSet::from([DIR.to_owned(), "/fw/CODE.fd".to_owned()]);
    world.target.nvram_dir = DIR.to_owned();
    let mut file = image(VARS, 0);
    file.format = ImageFormat::Raw;
    file.file.length = 540_672;
    world.source.files.insert(VARS.to_owned(), vec![file]);
    world
}

#[test]
fn firmware_variables_are_carried_to_a_file_of_their_own() {
    let flash = "<loader readonly='yes' type='pflash'>/fw/CODE.fd</loader>";
    for nvram in [
        format!("<nvram template='/fw/VARS.fd'>{VARS}</nvram>"),
        format!("<nvram type='file' format='raw'><source file='{VARS}'/></nvram>"),
    ] {
        let plan = uefi(&format!("{flash}{nvram}")).plan();
        let new = format!("{DIR}/small_clone_VARS.fd");
        assert!(xml(&plan).contains(&new) && !xml(&plan).contains(VARS), "{}", xml(&plan));
        assert!(!xml(&plan).contains("/fw/VARS.fd"), "the target does not have that template");
        assert_eq!(plan.files.len(), 1);
        assert_eq!((plan.files[0].path.as_str(), plan.files[0].size), (new.as_str(), 540_672));
        assert!(plan.describe().contains("nvram"), "{}", plan.describe());
    }
}

#[test]
fn variables_that_are_not_there_yet_are_made_by_libvirt() {
    let mut world = uefi(&format!("<nvram>{VARS}</nvram>"));
    world.source.files.clear();
    let plan = world.plan();
    assert!(plan.files.is_empty() && xml(&plan).contains("small_clone_VARS.fd"), "{}", xml(&plan));
    let none = uefi("<loader readonly='yes' type='pflash'>/fw/CODE.fd</loader>").plan();
    assert!(none.files.is_empty() && !xml(&none).contains("nvram"));
}

#[test]
fn firmware_that_libvirt_chose_is_chosen_again_where_it_is_missing() {
    let os = format!("<loader secure='yes' type='pflash'>/fw/OTHER.fd</loader><nvram>{VARS}</nvram>");
    let refused = uefi(&os).plan();
    assert_eq!(code(&refused), 1005, "firmware that somebody chose by name must be there");
    let plan = uefi(&os).with(|w| w.source.xml = w.source.xml.replace("<os>", "<os firmware='efi'>"));
    assert!(!xml(&plan).contains("OTHER.fd"), "{}", xml(&plan));
    assert!(plan.warnings.iter().any(|warning| warning.contains("OTHER.fd")), "{:?}", plan.warnings);
}

#[test]
fn the_source_does_not_say_where_the_target_puts_files() {
    let named = |path: &str| {
        uefi(&format!("<nvram>{path}</nvram>")).with(|w| {
            let file = w.source.files.remove(VARS).unwrap();
            w.source.files.insert(path.to_owned(), file);
            w.target.paths_present.extend(["/etc/profile.d", "/images"].map(str::to_owned));
        })
    };
    let own = format!("{DIR}/small_clone_VARS.fd");
    assert_eq!(named("/etc/profile.d/x.sh").files[0].path, own);
    assert_eq!(named("/images/small_VARS.sh").files[0].path, "/images/small_clone_VARS.fd");
    assert_eq!(named("/images/small_VARS.qcow2").files[0].path, "/images/small_clone_VARS.qcow2");
}

#[test]
fn variables_never_meet_others() {
    let os = format!("<nvram>{VARS}</nvram>");
    let new = format!("{DIR}/small_clone_VARS.fd");
    let cases: [(&str, Change, u16); 3] = [
        ("a file of that name", |w| w.target.paths_present.extend([format!("{DIR}/small_clone_VARS.fd")]), 1004),
        ("no such directory", |w| w.target.paths_present.clear(), 1005),
        ("a chain", |w| w.source.files.values_mut().for_each(|chain| chain.push(image("/b", 0))), 1013),
    ];
    for (what, change, expected) in cases {
        assert_eq!(code(&uefi(&os).with(change)), expected, "{what}");
    }
    let mut world = uefi(&os);
    let mut old = existing("small_clone", 5, "/images/old.img");
    old.uses.insert(new.clone());
    world.target.machines.push(old);
    world.request.existing = Existing::Replace;
    let plan = world.plan();
    assert_ne!(plan.files[0].path, new, "the old machine's stays until the new one is there");
}
