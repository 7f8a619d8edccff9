//! What becomes of images in CD-ROM and floppy drives.

use super::*;

type Change = fn(&mut World);

const ISO: &str = "/iso/debian.iso";
const DRIVE: &str = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/iso/debian.iso' \
                     startupPolicy='optional'/><target dev='sdb' bus='sata'/><readonly/></disk>";

/// The machine `small` with a DVD that the target lacks, which is asked for.
fn with_dvd() -> World {
    let mut world = world();
    world.add_device(DRIVE);
    let mut dvd = image(ISO, 3);
    (dvd.format, dvd.file.length) = (ImageFormat::Raw, 4 * GIB);
    world.source.files.insert(ISO.to_owned(), vec![dvd]);
    world.request.copy_media = true;
    world
}

#[test]
fn a_medium_is_copied_by_word_into_the_pool_of_the_disks() {
    let plan = with_dvd().plan();
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
    let (file, path) = (&plan.files[0], "/images/small_clone-sdb.iso");
    assert_eq!((file.path.as_str(), file.name.as_str(), file.size), (path, "sdb", 4 * GIB));
    assert_eq!(file.pool.as_deref(), Some("default"));
    assert_eq!(plan.bytes_total, 7 * GIB);
    let definition = plan.definition.as_ref().unwrap();
    assert!(
        definition.contains("<source file='/images/small_clone-sdb.iso' startupPolicy='optional'/>"),
        "{definition}"
    );
    assert!(definition.contains("<readonly/>") && !definition.contains(ISO), "{definition}");
    assert!(!plan.warnings.iter().any(|warning| warning.contains("ejected")), "{:?}", plan.warnings);
    assert!(plan.describe().contains("to   /images/small_clone-sdb.iso (pool default)"), "{}", plan.describe());

    let unsaid = with_dvd().with(|w| w.request.copy_media = false);
    assert!(unsaid.files.is_empty() && unsaid.warnings.iter().any(|warning| warning.contains("ejected")));
    let there = with_dvd().with(|w| w.target.paths_present = BTreeSet::from([ISO.to_owned()]));
    assert!(there.files.is_empty() && there.definition.unwrap().contains(ISO), "what is there is taken");
}

#[test]
fn media_follow_the_pool_of_the_disks_and_take_space_there() {
    let plan = with_dvd().with(|w| {
        w.target.pools.push(pool("fast", "/fast"));
        w.request.pool = Some("fast".parse().unwrap());
    });
    assert_eq!(plan.files[0].path, "/fast/small_clone-sdb.iso");
    let full = with_dvd().with(|w| w.target.pools[0].available = 7 * GIB);
    assert_eq!(code(&full), 1005, "disks and media share the space");
    let alone = with_dvd().with(|w| w.request.reduction.disks = BTreeSet::from(["vda".parse().unwrap()]));
    assert_eq!((code(&alone), alone.files[0].path.as_str()), (0, "/images/small_clone-sdb.iso"));
}

#[test]
fn media_that_cannot_be_copied_are_refused() {
    let cases: [(&str, Change, u16); 6] = [
        (
            "not there",
            |w| {
                w.source.files.clear();
                w.source.xml = w.source.xml.replace(" startupPolicy='optional'", "");
            },
            1005,
        ),
        ("not there, and libvirt starts without it", |w| w.source.files.clear(), 0),
        ("a chain", |w| w.source.files.values_mut().for_each(|chain| chain.push(image("/b", 0))), 1013),
        ("a device", |w| w.source.files.values_mut().for_each(|chain| chain[0].regular_file = false), 1013),
        ("a file in the way", |w| w.target.paths_present.extend(["/images/small_clone-sdb.iso".to_owned()]), 1004),
        ("not there, and not asked for", |w| (w.request.copy_media, w.source.files) = (false, BTreeMap::new()), 0),
    ];
    for (what, change, expected) in cases {
        let plan = with_dvd().with(change);
        assert_eq!(code(&plan), expected, "{what}: {:?}", plan.refusal());
        assert!(plan.refusal().is_none_or(|error| !error.help.is_empty()), "{what} has no way out");
    }
}

#[test]
fn an_optional_medium_that_is_missing_is_ejected_as_libvirt_would() {
    let plan = with_dvd().with(|w| w.source.files.clear());
    assert!(plan.files.is_empty() && !plan.definition.unwrap().contains(ISO));
    assert!(plan.warnings.iter().any(|warning| warning.contains("is ejected from sdb")), "{:?}", plan.warnings);
}

#[test]
fn a_floppy_of_the_same_host_becomes_one_of_its_own() {
    let mut world = world();
    world.add_device("<disk type='file' device='floppy'><source file='/f.img'/><target dev='fda'/></disk>");
    let mut floppy = image("/f.img", 0);
    (floppy.format, floppy.file.length) = (ImageFormat::Raw, 1_474_560);
    world.source.files.insert("/f.img".to_owned(), vec![floppy]);
    world.request.copy_media = true;
    world.target.host = world.source.host.clone();
    world.target.paths_present = BTreeSet::from(["/f.img".to_owned()]);
    let plan = world.plan();
    assert_eq!(plan.files[0].path, "/images/small_clone-fda.img");
    assert!(!plan.definition.unwrap().contains("/f.img"));
}

#[test]
fn a_machine_that_is_replaced_keeps_its_medium_until_then() {
    let plan = with_dvd().with(|w| {
        let mut old = existing("small_clone", 5, "/images/old.img");
        old.uses.insert("/images/small_clone-sdb.iso".to_owned());
        w.target.machines.push(old);
        w.request.existing = Existing::Replace;
    });
    assert_eq!(plan.files[0].path, "/images/small_clone-sdb-deadbeef.iso");
    let is_ours = |path: &str| {
        let xml = world().source.xml.replace("<!--more-->", &DRIVE.replace(ISO, path));
        let domain = Domain::parse(&xml).unwrap();
        is_copied_medium(&"small_clone".parse().unwrap(), &domain.disks()[1])
    };
    assert!(is_ours("/images/small_clone-sdb.iso") && is_ours("/images/small_clone-sdb-deadbeef.iso"));
    for other in [ISO, "/images/small_clone-sdb-mine.iso", "/images/small_clone-sdc.iso", "/images/small_clone.iso"] {
        assert!(!is_ours(other), "{other}");
    }
}
