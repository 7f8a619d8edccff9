//! Images that our own readers do not understand, broken ones, and those that both hosts reach.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use crate::common::*;
use crate::oracle::{Gate, Scene, State, disk_path, run_in};
use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::plan::CloneRequest;
use kvm_clone_core::{Code, Result};
use kvm_clone_engine::{CloneResult, CloneSettings, Recovery};
use kvm_clone_lab::{DiskSpec, Fill, FsKind, MachineSpec, define_machine, fault};

/// Disks of `scene`'s `web1`: target, format, file.
#[derive(Clone, Copy)]
struct Disk {
    target: &'static str,
    format: &'static str,
    file: &'static str,
}

const DISKS: [Disk; 8] = [
    Disk { target: "vda", format: "qcow2", file: "zstd.qcow2" },
    Disk { target: "vdb", format: "qcow2", file: "extended.qcow2" },
    Disk { target: "vdc", format: "qcow2", file: "data.qcow2" },
    Disk { target: "vdd", format: "qcow2", file: "dirty.qcow2" },
    Disk { target: "vde", format: "vmdk", file: "disk.vmdk" },
    Disk { target: "vdf", format: "vdi", file: "disk.vdi" },
    Disk { target: "vdg", format: "qcow2", file: "over.qcow2" },
    Disk { target: "vdh", format: "qcow2", file: "small.qcow2" },
];

/// `--pool default` of a scene whose `web1` has disks of every format.
fn with_every_format(test: &str) -> Option<(Scene, PathBuf)> {
    let scene = Scene::new(test)?;
    let base = DiskSpec::raw("vda", 16 * MIB).at("/srv/base.img").fill(Fill::Random { seed: 5, bytes: 6 * MIB });
    define_machine(&scene.alpha, MachineSpec::named("base").disk(base)).unwrap();
    let dir = scene.alpha.path("/srv");
    let img = |words: &[&str]| run_in(&dir, Command::new("qemu-img").args(words));
    let convert = |options: &[&str], file: &str| {
        img(&[&["convert", "-q", "-f", "raw"], options, &["base.img", file]].concat());
    };
    convert(&["-c", "-O", "qcow2", "-o", "compression_type=zstd"], "zstd.qcow2");
    convert(&["-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"], "extended.qcow2");
    let with_data = ["-O", "qcow2", "-o", "data_file=/srv/data.raw", "/srv/base.img", "/srv/data.qcow2"];
    scene.alpha.exec(&[&["qemu-img", "convert", "-q", "-f", "raw"][..], &with_data].concat()).unwrap();
    convert(&["-O", "qcow2", "-o", "lazy_refcounts=on"], "dirty.qcow2");
    convert(&["-O", "qcow2", "-o", "cluster_size=512,compat=0.10"], "small.qcow2");
    convert(&["-O", "vmdk"], "disk.vmdk");
    convert(&["-O", "vdi"], "disk.vdi");
    img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "zstd.qcow2", "over.qcow2"]);
    run_in(&dir, Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -P 0x5a 5M 192k", "over.qcow2"]));
    // Bit 0 of the incompatible features, in the last byte of the field at 72: the image was not closed.
    std::fs::OpenOptions::new().write(true).open(dir.join("dirty.qcow2")).unwrap().write_all_at(&[1], 79).unwrap();
    define(&scene, &DISKS);
    Some((scene, dir))
}

/// Gives `web1` these disks.
fn define(scene: &Scene, disks: &[Disk]) {
    let disk = |disk: &Disk| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{}'/><source file='/srv/{}'/>\
             <target dev='{}' bus='virtio'/></disk>",
            disk.format, disk.file, disk.target
        )
    };
    let xml = scene.alpha.exec(&["virsh", "-q", "dumpxml", "--inactive", "web1"]).unwrap();
    let (head, tail) = (xml.find("<disk ").unwrap(), xml.rfind("</disk>").unwrap() + "</disk>".len());
    let xml = format!("{}{}{}", &xml[..head], disks.iter().map(disk).collect::<String>(), &xml[tail..]);
    std::fs::write(scene.alpha.path("/root/machine.xml"), xml).unwrap();
    scene.alpha.exec(&["virsh", "-q", "define", "/root/machine.xml"]).unwrap();
}

async fn clone(scene: &Scene) -> Result<CloneResult> {
    let client = client(&scene.lab).await;
    clone_with(&client, "alpha", "beta", "web1", CloneRequest::default(), &CloneSettings::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_only_qemu_reads_arrive() {
    let Some((mut scene, dir)) = with_every_format("images_that_only_qemu_reads_arrive") else { return };
    scene.alpha_before = State::of(&scene.alpha);
    clone(&scene).await.unwrap();
    let xml = scene.beta.exec(&["virsh", "-q", "dumpxml", "--inactive", "web1_clone"]).unwrap();
    for disk in &DISKS {
        let copy = scene.beta.path(&disk_path(&xml, disk.target));
        let (file, format) = if disk.file == "over.qcow2" { (disk.file, disk.format) } else { ("base.img", "raw") };
        assert_same_contents(&dir.join(file), format, &copy, "qcow2");
    }
    scene.assert_source_unharmed();
    scene.assert_nothing_of_ours(DISKS.len());
    assert!(fault::find(&scene.alpha, "qemu-nbd").unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_qemus_end_with_the_copy_and_hinder_no_start() {
    let Some((mut scene, _)) = with_every_format("readers_of_qemus_end_with_the_copy") else { return };
    scene.alpha_before = State::of(&scene.alpha);
    let gate = Gate::after(MIB);
    let run = scene.start(gate.settings()).await;
    gate.reached().await;
    assert!(!fault::find(&scene.alpha, "qemu-nbd").unwrap().is_empty());
    // Another writer gets its lock: neither the agents nor what they started hold the image.
    let write = ["qemu-io", "-f", "vmdk", "-c", "write -P 0x11 0 4k", "/srv/disk.vmdk"];
    scene.alpha.exec(&write).unwrap();
    fault::kill(&scene.alpha, "kvm-clone-agent").unwrap();
    gate.open();
    run.fails().await;
    fault::wait_gone(&scene.alpha, "qemu-nbd", crate::oracle::PATIENCE).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_file_that_changes_is_noticed() {
    let Some((scene, _)) = with_every_format("a_data_file_that_changes_is_noticed") else { return };
    let gate = Gate::after(MIB);
    let run = scene.start(gate.settings()).await;
    gate.reached().await;
    scene.alpha.shell("printf x | dd of=/srv/data.raw bs=1 seek=9000000 conv=notrunc").unwrap();
    gate.open();
    assert_eq!(run.fails().await.code, Code::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_image_is_named_before_anything_is_copied() {
    let Some((mut scene, dir)) = with_every_format("a_broken_image_is_named") else { return };
    // The first entry of the first L2 table leads far behind the end of the file.
    let file = dir.join("small.qcow2");
    let image = std::fs::OpenOptions::new().read(true).write(true).open(&file).unwrap();
    let read = |at: u64| {
        let mut bytes = [0; 8];
        image.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let l2 = read(read(40)) & 0x00ff_ffff_ffff_fe00;
    image.write_all_at(&0x8000_00ff_0000_0000_u64.to_be_bytes(), l2).unwrap();
    scene.remember();
    let error = clone(&scene).await.unwrap_err();
    assert_eq!(error.code, Code::Verification, "{error}");
    assert!(error.to_string().contains("/srv/small.qcow2"), "{error}");
    scene.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_none_is_named() {
    let Some(mut scene) = Scene::new("an_image_that_is_none_is_named") else { return };
    scene.alpha.shell("mkdir -p /srv && head -c 1M /dev/urandom > /srv/none").unwrap();
    for format in ["qcow2", "vmdk", "vdi"] {
        define(&scene, &[Disk { target: "vda", format, file: "none" }]);
        scene.remember();
        let error = clone(&scene).await.unwrap_err();
        assert_eq!(error.code, Code::Verification, "{format}: {error}");
        assert!(error.to_string().contains("/srv/none"), "{error}");
        scene.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_missing_are_told_all_at_once() {
    let Some(mut scene) = Scene::new("images_that_are_missing_are_told_all_at_once") else { return };
    let behind = "mkdir -p /srv && cd /srv && qemu-img create -q -f qcow2 base.qcow2 1M && \
                  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2 && rm base.qcow2";
    scene.alpha.shell(behind).unwrap();
    let disk = |target, file| Disk { target, format: "qcow2", file };
    define(&scene, &[disk("vda", "gone.qcow2"), disk("vdb", "over.qcow2")]);
    let volume = "<disk type='volume' device='disk'><source pool='nopool' volume='v'/><target dev='vdc'/></disk>";
    let xml = scene.alpha.exec(&["virsh", "-q", "dumpxml", "--inactive", "web1"]).unwrap();
    let xml = xml.replace("</devices>", &format!("{volume}</devices>"));
    std::fs::write(scene.alpha.path("/root/machine.xml"), xml).unwrap();
    scene.alpha.exec(&["virsh", "-q", "define", "/root/machine.xml"]).unwrap();
    scene.remember();
    let client = client(&scene.lab).await;
    let (name, request) = ("web1".parse().unwrap(), CloneRequest::default());
    let prepared =
        client.prepare(&spec("alpha"), &spec("beta"), &name, request, Recovery::Look, silent()).await.unwrap();
    let errors: Vec<_> = prepared.plan().checks.iter().filter_map(|check| check.error()).cloned().collect();
    for (error, (disk, words)) in
        errors.iter().zip([("vda", "/srv/gone.qcow2"), ("vdb", "/srv/base.qcow2"), ("vdc", "nopool")])
    {
        assert_eq!((number(error), error.context["disk"].as_str()), (1005, disk), "{error:?}");
        assert!(error.message.contains(words) && error.help.iter().any(|help| help.contains("--exclude")), "{error:?}");
    }
    assert_eq!(errors.len(), 3, "{errors:?}");
    drop((prepared, client));
    scene.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_both_hosts_reach_is_refused() {
    let Some(mut scene) = Scene::new("storage_that_both_hosts_reach_is_refused") else { return };
    scene.alpha.small_filesystem("/srv", FsKind::Ext4, 64 * MIB).unwrap();
    scene.alpha.share_filesystem("/srv", &scene.beta).unwrap();
    scene.alpha.exec(&["qemu-img", "create", "-q", "-f", "qcow2", "/srv/shared.qcow2", "16M"]).unwrap();
    define(&scene, &[Disk { target: "vda", format: "qcow2", file: "shared.qcow2" }]);
    scene.remember();
    let error = clone(&scene).await.unwrap_err();
    assert_eq!(error.code, Code::Unsupported, "{error}");
    assert!(error.to_string().contains("/srv/shared.qcow2"), "{error}");
    scene.assert_source_unharmed();
}

#[tokio::test(flavor = "multi_thread")]
async fn checksums_are_those_that_everybodys_programs_say() {
    let Some((scene, dir)) = with_every_format("checksums_are_those") else { return };
    define(&scene, &[DISKS[0], DISKS[4]]);
    let client = client(&scene.lab).await;
    for (algorithm, program) in
        [(Algorithm::Blake3, "b3sum"), (Algorithm::Sha256, "sha256sum"), (Algorithm::Md5, "md5sum")]
    {
        let settings = CloneSettings { checksum: Some(algorithm), ..CloneSettings::default() };
        let result = clone_with(&client, "alpha", "beta", "web1", CloneRequest::default(), &settings).await.unwrap();
        let said = Command::new(program).arg(dir.join("base.img")).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        for sum in result.checksums.values() {
            assert_eq!(sum.algorithm, algorithm.word());
            assert!(said.starts_with(&format!("{} ", sum.value)), "{algorithm}: {said} {sum:?}");
        }
        assert_eq!(result.checksums.len(), 2);
        for disk in &result.disks {
            assert_eq!((disk.source.size, disk.source.blocks), (16 * MIB, 256));
            assert!(disk.source.data_blocks >= 96, "{disk:?}");
            assert_eq!(disk.source.data_blocks, disk.dest.data_blocks, "{disk:?}");
        }
        assert!(fault::find(&scene.alpha, "qemu-nbd").unwrap().is_empty());
        scene.remove_clone();
    }
}
