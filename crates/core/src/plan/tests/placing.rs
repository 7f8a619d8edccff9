//! Which pool and file the disks become.

use super::*;

type Change = fn(&mut World);

#[test]
fn the_pool_is_chosen_in_order() {
    let fast = |w: &mut World| {
        w.image().pool = Some("fast".to_owned());
        w.target.pools.push(pool("fast", "/fast/"));
    };
    let path = |change: &dyn Fn(&mut World)| world().with(|w| change(w)).disks.first().map(|disk| disk.path.clone());
    assert_eq!(path(&|_| ()).unwrap(), "/images/small_clone-vda.qcow2");
    assert_eq!(path(&|w| fast(w)).unwrap(), "/fast/small_clone-vda.qcow2");
    assert_eq!(path(&|w| w.image().pool = Some("gone".to_owned())).unwrap(), "/images/small_clone-vda.qcow2");
    let asked = |w: &mut World| {
        fast(w);
        w.request.pool = Some("default".parse().unwrap());
    };
    assert_eq!(path(&asked).unwrap(), "/images/small_clone-vda.qcow2");
    let logical = |w: &mut World| {
        fast(w);
        w.target.pools[1].kind = "logical".to_owned();
    };
    assert_eq!(path(&logical).unwrap(), "/images/small_clone-vda.qcow2");
}

#[test]
fn a_pool_that_cannot_be_used_is_refused() {
    let cases: [(&str, Change, &str); 6] = [
        ("none", |w| w.target.pools.clear(), "no pool \"default\""),
        ("not there", |w| w.request.pool = Some("fast".parse().unwrap()), "no pool \"fast\""),
        ("inactive", |w| w.target.pools[0].active = false, "not active"),
        ("logical", |w| w.target.pools[0].kind = "logical".to_owned(), "does not hold files"),
        ("full", |w| w.target.pools[0].available = 4 * GIB, "4.0 GiB free"),
        ("full with margin", |w| w.target.pools[0].available = 4 * GIB + 4 * GIB * 15 / 100 - 1, "needs 4.5 GiB"),
    ];
    for (what, change, words) in cases {
        let error = world().with(change).refusal().expect(what);
        assert_eq!(error.code.number(), 1005, "{what}");
        assert!(error.message.contains(words), "{what}: {error}");
    }
    let exactly = world().with(|w| w.target.pools[0].available = 4 * GIB + 4 * GIB * 15 / 100);
    assert_eq!(code(&exactly), 0);
    let no_margin = world().with(|w| {
        w.target.pools[0].available = 4 * GIB;
        w.request.space_margin_percent = 0;
    });
    assert_eq!(code(&no_margin), 0);
}

#[test]
fn space_is_summed_over_a_pool() {
    let two = |available: u64| {
        world().with(|w| {
            w.add_disk("vdb", vec![image("/elsewhere/small.qcow2", 4)]);
            w.target.pools[0].available = available;
        })
    };
    assert_eq!(code(&two(9 * GIB)), 1005);
    let plan = two(10 * GIB);
    assert_eq!(code(&plan), 0);
    let paths: Vec<_> = plan.disks.iter().map(|disk| disk.path.as_str()).collect();
    assert_eq!(paths, ["/images/small_clone-vda.qcow2", "/images/small_clone-vdb.qcow2"]);
}

#[test]
fn a_chain_becomes_one_image_never_larger_than_the_disk() {
    let plan = world().with(|w| {
        w.source.images.insert("vda".parse().unwrap(), vec![image("/top", 8), image("/middle", 8), image("/base", 8)]);
    });
    let paths: Vec<_> = plan.disks[0].chain.iter().map(|link| link.path.as_str()).collect();
    assert_eq!(paths, ["/top", "/middle", "/base"]);
    assert_eq!(plan.bytes_total, 10 * GIB);
    assert!(plan.warnings.iter().any(|warning| warning.contains("chain of 3 images")));
}

#[test]
fn the_format_is_kept_or_asked_for() {
    let raw = world().with(|w| {
        w.source.xml = w.source.xml.replace("type='qcow2'", "type='raw'");
        w.image().format = ImageFormat::Raw;
    });
    assert_eq!(raw.disks[0].path, "/images/small_clone-vda.img");
    let changed = world().with(|w| w.request.disk_format = DiskFormat::Raw);
    assert_eq!((&changed.disks[0].source_format, &changed.disks[0].format), (&ImageFormat::Qcow2, &ImageFormat::Raw));
    assert!(changed.definition.unwrap().contains("type='raw'"));
}

#[test]
fn a_file_that_is_there_is_never_overwritten() {
    let path = "/images/small_clone-vda.qcow2";
    let there = world().with(|w| w.target.paths_present = BTreeSet::from([path.to_owned()]));
    let named = world().with(|w| w.target.machines = vec![existing("other", 5, path)]);
    for plan in [there, named] {
        let error = plan.refusal().unwrap();
        assert_eq!(error.code.number(), 1004);
        assert!(error.message.contains(path));
    }
}

#[test]
fn every_path_that_a_plan_depends_on_is_asked_for() {
    let mut world = world();
    world.add_device("<disk device='cdrom'><source file='/iso/a.iso'/><target dev='sdb'/></disk>");
    world.source.xml = world.source.xml.replace("</os>", "<kernel>/boot/k</kernel></os>");
    let paths = wanted_paths(&world.request, &world.source, &world.target, &world.fresh).unwrap();
    let expected = [
        "/boot/k",
        "/images/small.qcow2",
        "/images/small_clone-vda-deadbeef.qcow2",
        "/images/small_clone-vda.qcow2",
        "/iso/a.iso",
        "/pool/small.qcow2",
    ];
    assert_eq!(paths.into_iter().collect::<Vec<_>>(), expected);
}
