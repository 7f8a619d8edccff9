//! Disks of every shape arrive as they were.

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{MIB, allocated, assert_same_contents};
use crate::oracle::{IMAGES, assert_boots, disk_path, qemu_img, run_in};
use kvm_clone_core::plan::{CloneRequest, DiskFormat as Format};
use kvm_clone_engine::CloneSettings;
use kvm_clone_lab::{
    DiskFormat, DiskSpec, Fill, FsKind, Host, HostSpec, Lab, Machine, MachineSpec, available, define_machine,
};

const TIB: u64 = 1 << 40;

/// Two hosts, and a way to clone `web1` and compare what arrived.
struct Pair {
    lab: Lab,
    alpha: Host,
    beta: Host,
}

impl Pair {
    fn new(test: &str, beta: HostSpec) -> Option<Self> {
        if !available(test) {
            return None;
        }
        let lab = Lab::new().unwrap();
        let mut hosts = lab.hosts(vec![HostSpec::named("alpha"), beta]).unwrap();
        let (beta, alpha) = (hosts.pop().unwrap(), hosts.pop().unwrap());
        beta.provide_guest().unwrap();
        Some(Self { lab, alpha, beta })
    }

    async fn clone(&self, source: &Machine) -> Machine {
        let client = crate::common::client(&self.lab).await;
        crate::common::clone(&client, "alpha", "beta", "web1").await.unwrap();
        let copy = self.beta.machine("web1_clone").unwrap();
        let xml = copy.xml().unwrap();
        for disk in source.disks() {
            let path = self.beta.path(&disk_path(&xml, &disk.target));
            let (from, format) = (self.alpha.path(&disk.path), disk.format.name());
            assert_same_contents(&from, format, &path, format);
            if disk.format == DiskFormat::Raw {
                let length = |path: &std::path::Path| std::fs::metadata(path).unwrap().len();
                assert_eq!(length(&from), length(&path), "{}", disk.target);
            }
        }
        copy
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_of_all_sizes_and_places_arrive() {
    let Some(pair) = Pair::new("disks_of_all_sizes_and_places_arrive", HostSpec::named("beta")) else { return };
    let fill = |seed| Fill::Random { seed, bytes: 3 * MIB };
    // Whole sectors that are no whole blocks; a length that is no whole sectors; two files of one name, outside of pools.
    let odd = "/srv/odd.img";
    std::fs::create_dir_all(pair.alpha.path("/srv")).unwrap();
    std::fs::write(pair.alpha.path(odd), (0..1_000_003u32).map(|n| n.to_le_bytes()[0] | 1).collect::<Vec<_>>())
        .unwrap();
    let machine = MachineSpec::named("web1")
        .disk(DiskSpec::raw("vda", 8 * MIB + 512).fill(fill(1)))
        .disk(DiskSpec::raw("vdb", 1_000_003).at(odd).existing())
        .disk(DiskSpec::raw("vdc", 8 * MIB).at("/srv/a/disk.img").fill(fill(2)))
        .disk(DiskSpec::raw("vdd", 8 * MIB).at("/srv/b/disk.img").fill(fill(3)))
        .disk(DiskSpec::qcow2("vde", 8 * MIB + 512).at("/srv/b/disk.qcow2").fill(fill(4)))
        .disk(DiskSpec::raw("vdf", 16 * MIB))
        .disk(DiskSpec::qcow2("vdg", 16 * MIB))
        .disk(DiskSpec::raw("vdh", 0));
    let source = define_machine(&pair.alpha, machine).unwrap();
    pair.clone(&source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tebibyte_with_little_in_it_is_copied_in_no_time() {
    let test = "a_tebibyte_with_little_in_it_is_copied_in_no_time";
    let Some(pair) = Pair::new(test, HostSpec::named("beta")) else { return };
    let raw = "/srv/huge.img";
    let huge = pair.alpha.path(raw);
    std::fs::create_dir_all(huge.parent().unwrap()).unwrap();
    let image = std::fs::File::create(&huge).unwrap();
    image.set_len(TIB).unwrap();
    for offset in [0, TIB / 3, TIB - 4096] {
        image.write_all_at(&[7; 4096], offset).unwrap();
    }
    let qcow2 = "/srv/huge.qcow2";
    qemu_img(&pair.alpha, &["convert", "-q", "-f", "raw", "-O", "qcow2", huge.to_str().unwrap()], qcow2);
    let machine = MachineSpec::named("web1")
        .disk(DiskSpec::raw("vda", TIB).at(raw).existing())
        .disk(DiskSpec::qcow2("vdb", TIB).at(qcow2).existing());
    let source = define_machine(&pair.alpha, machine).unwrap();
    let copy = pair.clone(&source).await;
    for target in ["vda", "vdb"] {
        let path = disk_path(&copy.xml().unwrap(), target);
        assert!(allocated(&pair.beta.path(&path)) < 4 * MIB, "{target} is not sparse");
    }
}

/// As qcow2 it takes what it holds; as a raw file it is longer than the target's file system lets any file be.
#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_tebibytes_arrive_as_qcow2_and_are_refused_as_raw_where_no_file_is_so_large() {
    let Some(pair) = Pair::new("sixty_four_tebibytes_arrive_as_qcow2", HostSpec::named("beta")) else { return };
    pair.beta.small_filesystem(IMAGES, FsKind::Ext4, 512 * MIB).unwrap();
    let path = "/srv/huge.qcow2";
    let huge = pair.alpha.path(path);
    std::fs::create_dir_all(huge.parent().unwrap()).unwrap();
    let size = (64 * TIB).to_string();
    run_in(&pair.alpha.path("/"), Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&huge).arg(&size));
    let writes = [(0, "0x11"), (32 * TIB + 65_536, "0x22"), (64 * TIB - 34 * MIB, "0x33")];
    for (offset, pattern) in writes {
        let write = format!("write -q -P {pattern} {offset} 34M");
        run_in(&pair.alpha.path("/"), Command::new("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(&huge));
    }
    let machine = MachineSpec::named("web1").disk(DiskSpec::qcow2("vda", 64 * TIB).at(path).existing());
    define_machine(&pair.alpha, machine).unwrap();
    let client = crate::common::client(&pair.lab).await;
    let clone = |format| {
        let request = CloneRequest { disk_format: format, ..CloneRequest::default() };
        let (client, settings) = (&client, CloneSettings::default());
        async move { crate::common::clone_with(client, "alpha", "beta", "web1", request, &settings).await }
    };
    let error = clone(Format::Raw).await.unwrap_err();
    assert_eq!(crate::common::number(&error), 1013, "{error:?}");
    assert!(error.help[0].contains("--disk-format qcow2"), "{error:?}");
    let left = pair.beta.shell(&format!("ls -A {IMAGES}")).unwrap();
    assert!(!left.contains("kvm-clone") && crate::common::machines(&pair.beta).is_empty(), "{left}");

    let started = Instant::now();
    clone(Format::Keep).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let copy = pair.beta.path(&disk_path(&pair.beta.machine("web1_clone").unwrap().xml().unwrap(), "vda"));
    assert!(allocated(&copy) < 120 * MIB, "{}", allocated(&copy));
    for (offset, pattern) in writes {
        let read = format!("read -q -P {pattern} {offset} 34M");
        run_in(&pair.alpha.path("/"), Command::new("qemu-io").args(["-f", "qcow2", "-r", "-c", &read]).arg(&copy));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_become_one_image_and_compressed_clusters_are_read() {
    let test = "chains_become_one_image_and_compressed_clusters_are_read";
    let Some(pair) = Pair::new(test, HostSpec::named("beta")) else { return };
    let size = 16 * MIB;
    let base = DiskSpec::raw("vda", size).at("/srv/base.img").fill(Fill::Random { seed: 5, bytes: 4 * MIB });
    define_machine(&pair.alpha, MachineSpec::named("base").disk(base)).unwrap();
    let root = pair.alpha.path("/");
    let dir = root.join("srv");
    let img = |words: &[&str]| run_in(&dir, Command::new("qemu-img").args(words));
    img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.img", "middle.qcow2"]);
    img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "middle.qcow2", "top.qcow2"]);
    for (file, offset) in [("middle.qcow2", "1M"), ("top.qcow2", "5M")] {
        let write = format!("write -P 0x5a {offset} 192k");
        run_in(&dir, Command::new("qemu-io").args(["-f", "qcow2", "-c", &write, file]));
    }
    // What lies above hides what lies below, also where it is zero.
    run_in(&dir, Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -z 0 64k", "top.qcow2"]));
    img(&["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "base.img", "compressed.qcow2"]);
    let machine = MachineSpec::named("web1")
        .disk(DiskSpec::qcow2("vda", size).at("/srv/top.qcow2").existing())
        .disk(DiskSpec::qcow2("vdb", size).at("/srv/compressed.qcow2").existing());
    let source = define_machine(&pair.alpha, machine).unwrap();
    let copy = pair.clone(&source).await;
    let path = pair.beta.path(&disk_path(&copy.xml().unwrap(), "vda"));
    let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(path).output().unwrap();
    assert!(!String::from_utf8_lossy(&info.stdout).contains("backing"), "the copy stands on something");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_starts_where_qemu_is_not_root() {
    let test = "a_copy_starts_where_qemu_is_not_root";
    let Some(pair) = Pair::new(test, HostSpec::named("beta").qemu_unprivileged()) else { return };
    let source = crate::common::make_machine(&pair.alpha, "web1", 4 * MIB);
    let copy = pair.clone(&source).await;
    let modes = pair.beta.shell(&format!("stat -c '%a %U' {IMAGES}/web1_clone-*")).unwrap();
    assert!(modes.lines().all(|line| line.starts_with("600 ")), "images belong to qemu alone: {modes}");
    assert_boots(&copy);
}
