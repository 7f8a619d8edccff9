//! UEFI firmware that libvirt chose, secure boot, and variables in places and formats of their own.

use super::reducing::{DIR, VARS, uefi, xml};
use super::*;

const UNNAMED: &str = "/b/nvram/small_clone_VARS.fd";

/// A machine whose firmware libvirt chose and, before 9.2, wrote nothing down of; with variables.
fn unnamed() -> World {
    let mut world = uefi("<loader secure='yes'/>");
    world.source.xml = world.source.xml.replace("<os>", "<os firmware='efi'>");
    let file = world.source.files.remove(VARS).unwrap();
    world.source.files.insert("/a/nvram/small_VARS.fd".to_owned(), file);
    world.target.paths_present.insert("/b/nvram".to_owned());
    world.target.nvram_dir = "/b/nvram".to_owned();
    world
}

#[test]
fn variables_that_no_definition_names_are_found() {
    let plan = unnamed().plan();
    assert_eq!(plan.files[0].path, UNNAMED, "{:?}", plan.refusal());
    assert!(xml(&plan).contains(&format!("<nvram>{UNNAMED}</nvram>")), "{}", xml(&plan));
    assert!(xml(&plan).contains("<loader secure='yes'/>"), "{}", xml(&plan));
    let wanted = |w: &World| wanted_paths(&w.request, &w.source, &w.target, &w.fresh).unwrap();
    assert!(["/b/nvram", UNNAMED].iter().all(|path| wanted(&unnamed()).contains(*path)));

    let none = unnamed().with(|w| {
        w.source.files.clear();
        w.target.paths_present.clear();
    });
    assert!(none.files.is_empty() && !xml(&none).contains("nvram"), "libvirt names and makes them");
    let stale = unnamed().with(|w| w.target.paths_present.extend([UNNAMED.to_owned()]));
    assert_eq!(code(&stale), 1004);
    for has_variables in [true, false] {
        let replaced = unnamed().with(|w| {
            let mut old = existing("small_clone", 5, "/images/old.img");
            old.uses.insert(UNNAMED.to_owned());
            w.target.machines.push(old);
            w.request.existing = Existing::Replace;
            if !has_variables {
                w.source.files.clear();
            }
        });
        assert!(xml(&replaced).contains("/b/nvram/small_clone-deadbeef_VARS.fd"), "{}", xml(&replaced));
    }
}

#[test]
fn variables_in_qcow2_need_a_libvirt_that_reads_them() {
    let vars = VARS.replace(".fd", ".qcow2");
    let mut world = uefi(&format!(
        "<loader readonly='yes' type='pflash' format='qcow2'>/fw/CODE.fd</loader><nvram template='/fw/VARS.qcow2' \
         templateFormat='qcow2' format='qcow2'>{vars}</nvram>"
    ));
    let mut file = world.source.files.remove(VARS).unwrap();
    file[0].format = ImageFormat::Qcow2;
    file[0].path.clone_from(&vars);
    world.source.files.insert(vars, file);
    let plan = world.clone().with(|w| w.target.libvirt_version = 9_002_000);
    assert!(
        xml(&plan).contains(&format!("<nvram format='qcow2'>{DIR}/small_clone_VARS.qcow2</nvram>")),
        "{}",
        xml(&plan)
    );
    assert_eq!((plan.files[0].size, code(&plan)), (540_672, 0), "byte for byte, as a file");
    let older = world.with(|w| w.target.libvirt_version = 9_001_000);
    assert_eq!(code(&older), 1013);
    assert!(older.refusal().unwrap().message.contains("takes for raw"));
}

#[test]
fn what_was_asked_of_firmware_outlives_the_choice() {
    let asked =
        "<firmware><feature enabled='yes' name='secure-boot'/><feature enabled='no' name='enrolled-keys'/></firmware>";
    let chosen = |path: &str, version: u64| {
        let os = format!(
            "{asked}<loader readonly='yes' secure='yes' type='pflash' format='raw'>{path}</loader>\
             <nvram template='/fw/CODE.fd'>{VARS}</nvram>"
        );
        let plan = uefi(&os).with(|w| {
            w.source.xml = w.source.xml.replace("<os>", "<os firmware='efi'>");
            w.target.libvirt_version = version;
        });
        assert!(xml(&plan).contains(asked), "{}", xml(&plan));
        (xml(&plan).to_owned(), plan.warnings.join("\n"))
    };
    let (same, said) = chosen("/fw/CODE.fd", 9_002_000);
    assert!(same.contains("format='raw'>/fw/CODE.fd</loader>") && same.contains("template="), "{same}");
    assert!(!said.contains("chosen again"), "{said}");
    let (missing, said) = chosen("/fw/GONE.fd", 9_002_000);
    assert!(missing.contains("<loader secure='yes'/>") && missing.contains("template="), "{missing}");
    assert!(said.contains("the target does not have it"), "{said}");
    let (older, said) = chosen("/fw/CODE.fd", 9_000_000);
    assert!(older.contains("<loader secure='yes'/>") && !older.contains("template="), "{older}");
    assert!(said.contains("its libvirt is older"), "{said}");
}
