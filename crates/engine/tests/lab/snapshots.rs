//! Images that keep the snapshots inside them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::assert_same_contents;
use crate::oracle::strike::struck;
use crate::oracle::{Now, Scene, disk_path, run_in};
use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::CloneRequest;
use kvm_clone_engine::{CloneSettings, Moment, Then};

/// As no shell would take it.
const BITMAP: &str = "-odd name of a backup";

fn img(words: &[&str], image: &Path) {
    run_in(Path::new("/"), Command::new("qemu-img").args(words).arg(image));
}

fn info(image: &Path) -> String {
    let output = Command::new("qemu-img").args(["info", "--output=json", "-f", "qcow2"]).arg(image).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The image as of a snapshot, or as it is now, in a file of its own.
fn as_of(image: &Path, snapshot: Option<&str>, copy: PathBuf) -> PathBuf {
    std::fs::copy(image, &copy).unwrap();
    if let Some(name) = snapshot {
        // qemu applies none to an image with bitmaps.
        let remove = Command::new("qemu-img").args(["bitmap", "--remove", "--"]).arg(&copy).arg(BITMAP).output();
        remove.unwrap();
        img(&["snapshot", "-a", name], &copy);
    }
    copy
}

/// `vda` of the source gets two snapshots, with other contents before, between and after, and a bitmap of somebody else's.
fn with_snapshots(test: &str) -> Option<(Scene, PathBuf)> {
    let mut scene = Scene::new(test)?;
    let image = scene.alpha.path(&scene.source.disks()[0].path);
    for (pattern, name) in [("0x11", "first"), ("0x22", "second")] {
        let write = format!("write -P {pattern} 20M 3M");
        run_in(Path::new("/"), Command::new("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(&image));
        img(&["snapshot", "-c", name], &image);
    }
    run_in(Path::new("/"), Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -P 0x33 21M 4M"]).arg(&image));
    run_in(
        Path::new("/"),
        Command::new("qemu-img").args(["bitmap", "--add", "-f", "qcow2", "--"]).arg(&image).arg(BITMAP),
    );
    scene.request = CloneRequest { keep_snapshots: true, ..CloneRequest::default() };
    scene.remember();
    Some((scene, image))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_arrives_with_its_snapshots_and_without_foreign_bitmaps() {
    let Some((scene, image)) = with_snapshots("an_image_arrives_with_its_snapshots") else { return };
    let settings = CloneSettings { checksum: Some(Algorithm::Sha256), ..CloneSettings::default() };
    let client = scene.client().await;
    let result =
        crate::common::clone_with(&client, "alpha", "beta", "web1", scene.request.clone(), &settings).await.unwrap();
    drop(client);
    assert_eq!((result.disks[0].source.format.as_str(), result.disks[0].dest.format.as_str()), ("qcow2", "qcow2"));
    assert_eq!(scene.assert_promise(), Now::New);
    let xml = scene.beta.exec(&["virsh", "-q", "dumpxml", "web1_clone"]).unwrap();
    assert!(xml.contains("type='qcow2'"), "{xml}");
    let copy = scene.beta.path(&disk_path(&xml, "vda"));
    let plain = scene.lab.dir().join("plain");
    run_in(Path::new("/"), Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&image).arg(&plain));
    let sum = Command::new("sha256sum").arg(&plain).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    let told = &result.checksums[&"vda".parse().unwrap()].value;
    assert_eq!(Some(told.as_str()), sum.split(' ').next(), "of what a guest reads, not of the file that holds it");
    let there = info(&copy);
    assert!(there.contains("first") && there.contains("second"), "{there}");
    assert!(info(&image).contains(BITMAP), "the source keeps its bitmap");
    assert!(!there.contains(BITMAP), "{there}");
    for snapshot in [None, Some("first"), Some("second")] {
        let file = |side: &str| scene.lab.dir().join(format!("{side}.qcow2"));
        let (here, there) = (as_of(&image, snapshot, file("here")), as_of(&copy, snapshot, file("there")));
        assert_same_contents(&here, "qcow2", &there, "qcow2");
    }
    scene.assert_nothing_of_ours(2);
    assert_eq!(scene.beta.machine("web1_clone").unwrap().state().unwrap(), "shut off");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_snapshots_is_finished_twice_as_once_and_undone() {
    let Some((scene, _)) = with_snapshots("an_image_with_snapshots_is_finished_twice") else { return };
    struck(&scene, (Step::Finish, Moment::Acted), || Ok(Then::Again)).await.unwrap();
    assert_eq!(scene.assert_promise(), Now::New);
    scene.remove_clone();
    let failed = struck(&scene, (Step::Place, Moment::Acted), || Err(kvm_clone_core::Error::internal("struck"))).await;
    failed.unwrap_err();
    scene.assert_clean();
}
