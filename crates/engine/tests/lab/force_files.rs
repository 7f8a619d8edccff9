//! `--force`: which files go with the old machine, and which stay.

use crate::common::{MIB, number, spec};
use crate::force::{assert_replaced, uuid};
use crate::oracle::child::Task;
use crate::oracle::{IMAGES, Now, PATIENCE, Scene, State, at, clone_with_events, wait_for};
use kvm_clone_core::event::Phase;
use kvm_clone_core::plan::Existing;
use kvm_clone_engine::Recovery;
use kvm_clone_lab::{DiskSpec, Host, MachineSpec, define_machine, fault};
use tokio_util::sync::CancellationToken;

/// Defines a machine with this image.
pub fn stand_on(scene: &Scene, image: &str) {
    let disk = DiskSpec::qcow2("vda", 16 * MIB).at(image).existing();
    define_machine(&scene.beta, MachineSpec::named("linked").disk(disk)).unwrap();
}

pub const BASE: &str = "/var/lib/libvirt/images/web1_clone-vda.qcow2";
pub const LINKED: &str = "/srv/linked.qcow2";
/// qemu-img names the format of a backing file since 6.1; older images have no such header extension, nor one of a type that
/// nobody knows.
const WITHOUT_FORMAT: &str = "qemu-img create -q -f qcow2 -F qcow2 -b /var/lib/libvirt/images/web1_clone-vda.qcow2 /srv/linked.qcow2; \
     printf 'KVM!' | dd of=/srv/linked.qcow2 bs=1 seek=112 conv=notrunc status=none";

/// Somebody of whom libvirt knows nothing reads the old machine's disk.
fn open_elsewhere(beta: &Host) {
    let open = "qemu-nbd -t -r -f qcow2 -k /run/other.sock";
    beta.shell(&format!("{open} {BASE} >/dev/null 2>&1 </dev/null & echo $! >/run/other.pid")).unwrap();
    wait_for("qemu-nbd", || beta.path("/run/other.sock").exists());
}

fn close_elsewhere(beta: &Host) {
    beta.shell("kill $(cat /run/other.pid)").unwrap();
    fault::wait_gone(beta, "qemu-nbd", PATIENCE).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_disk_somebody_has_open_is_not_replaced() {
    let test = "a_machine_whose_disk_somebody_has_open_is_not_replaced";
    let Some(scene) = Scene::new(test).map(Scene::replacing) else { return };
    open_elsewhere(&scene.beta);
    let error = scene.clone().await.unwrap_err();
    assert_eq!((number(&error), error.context["path"].as_str()), (1014, BASE), "{error:?}");
    scene.assert_clean();
    close_elsewhere(&scene.beta);
    // Who opens it during the copy is found by the last look.
    let (run, gate) = scene.start_and_hold().await;
    open_elsewhere(&scene.beta);
    gate.open();
    let error = run.fails().await;
    assert_eq!((number(&error), error.context["path"].as_str()), (1014, BASE), "{error:?}");
    scene.assert_clean();
    close_elsewhere(&scene.beta);
    let old = uuid(&scene);
    scene.clone().await.unwrap();
    assert_replaced(&scene, &old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_somebody_opens_after_the_commit_stays_until_it_is_closed() {
    let test = "a_disk_that_somebody_opens_after_the_commit_stays_until_it_is_closed";
    let Some(scene) = Scene::new(test).map(Scene::replacing) else { return };
    let (client, beta, old) = (scene.client().await, scene.beta.clone(), uuid(&scene));
    let opens = at(Phase::Clean, 0, move || open_elsewhere(&beta));
    let result = clone_with_events(&client, scene.request.clone(), opens, CancellationToken::new()).await.unwrap();
    assert!(result.warnings.iter().any(|warning| warning.contains(BASE)), "{:?}", result.warnings);
    let client = scene.client_with("other.db").await;
    let refused = client.recover(&spec("beta"), Recovery::Act).await.unwrap();
    assert!(matches!(refused[0].error.as_ref(), Some(error) if number(error) == 1014), "{refused:?}");
    assert_eq!(State::of(&scene.beta).files.get(BASE), scene.beta_before.files.get(BASE));
    close_elsewhere(&scene.beta);
    scene.recover("other.db").await;
    assert_replaced(&scene, &old);
}

/// A node in `/dev` is no file of the machine's, whatever its definition calls the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_the_old_machine_stays() {
    let test = "a_device_of_the_old_machine_stays";
    let Some(scene) = Scene::new(test).map(Scene::replacing) else { return };
    let device = scene.beta.block_device("lv-old", 8 * MIB).unwrap();
    let volume = "/srv/pool/lv-volume";
    scene.beta.shell(&format!("mkdir -p /srv/pool; cp -a {device} {volume}")).unwrap();
    for (verb, rest) in [("pool-define-as", &["pool", "dir", "--target", "/srv/pool"][..]), ("pool-start", &["pool"])] {
        scene.beta.exec(&[&["virsh", "-q", verb], rest].concat()).unwrap();
    }
    for (target, kind, source) in
        [("vdb", "file", format!("file='{device}'")), ("vdc", "volume", "pool='pool' volume='lv-volume'".to_owned())]
    {
        let xml = format!(
            "<disk type='{kind}' device='disk'><driver name='qemu' type='raw'/><source {source}/><target dev='{target}'/></disk>"
        );
        scene.beta.shell(&format!("echo \"{xml}\" >/tmp/disk.xml")).unwrap();
        scene.beta.exec(&["virsh", "-q", "attach-device", "web1_clone", "/tmp/disk.xml", "--config"]).unwrap();
    }
    let result = scene.clone().await.unwrap();
    assert!(!result.warnings.iter().any(|warning| warning.contains("cleaning up failed")), "{:?}", result.warnings);
    for node in [device.as_str(), volume] {
        scene.beta.exec(&["test", "-b", node]).unwrap();
    }
    assert!(!State::of(&scene.beta).files.contains_key(BASE), "its file goes");
    assert_eq!(scene.assert_promise(), Now::New);
    scene.assert_nothing_of_ours(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_other_machines_stand_on_is_not_removed() {
    let test = "a_disk_that_other_machines_stand_on_is_not_removed";
    let Some(scene) = Scene::new(test).map(Scene::replacing) else { return };
    let base = format!("{IMAGES}/web1_clone-vda.qcow2");
    let overlay = "/srv/linked.qcow2";
    let make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, overlay];
    scene.beta.exec(&make).unwrap();
    let disk = DiskSpec::qcow2("vda", 16 * MIB).at(overlay).existing();
    define_machine(&scene.beta, MachineSpec::named("linked").disk(disk)).unwrap();
    let sum = State::of(&scene.beta).files[&base].clone();
    scene.clone().await.unwrap();
    assert_eq!(State::of(&scene.beta).files.get(&base), Some(&sum), "the linked machine's base is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_another_machine_reaches_some_other_way_is_not_removed() {
    let test = "a_disk_that_another_machine_reaches_some_other_way_is_not_removed";
    let Some(mut scene) = Scene::new(test).map(Scene::replacing) else { return };
    scene.beta.shell(&format!("ln -s {IMAGES} /srv/by-link")).unwrap();
    let by_link = "/srv/by-link/web1_clone-vda.qcow2";
    let overlay = format!("qemu-img create -q -f qcow2 -F qcow2 -b {by_link} {LINKED}");
    let data =
        format!("qemu-img create -q -f qcow2 -o data_file=/srv/data.raw {LINKED} 16M; ln -f {BASE} /srv/data.raw");
    for (image, made) in [(by_link, "true"), (LINKED, &overlay), (LINKED, &data), (LINKED, WITHOUT_FORMAT)] {
        scene.beta.shell(made).unwrap();
        stand_on(&scene, image);
        let sum = State::of(&scene.beta).files[BASE].clone();
        let result = scene.clone().await.unwrap();
        assert_eq!(State::of(&scene.beta).files.get(BASE), Some(&sum), "{made}");
        let warned = result.warnings.iter().any(|warning| warning.contains("all its files stay"));
        assert_eq!(warned, made == WITHOUT_FORMAT, "{:?}", result.warnings);
        scene.beta.exec(&["virsh", "-q", "undefine", "linked"]).unwrap();
        scene.beta.shell("rm -f /srv/linked.qcow2 /srv/data.raw").unwrap();
        scene.begin_again();
    }
    scene.clone().await.unwrap();
    assert!(!State::of(&scene.beta).files.contains_key(BASE), "it is nobody's now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_plugged_into_a_running_machine_is_not_removed() {
    let test = "a_disk_that_was_plugged_into_a_running_machine_is_not_removed";
    let Some(scene) = Scene::new(test).map(Scene::replacing) else { return };
    let own = DiskSpec::qcow2("vda", 16 * MIB).at("/srv/rescue.qcow2");
    let rescue = define_machine(&scene.beta, MachineSpec::named("rescue").disk(own)).unwrap();
    rescue.start().unwrap();
    // As virsh does unless it is told otherwise: what the next start takes does not know of it.
    let plug = ["virsh", "-q", "attach-disk", "rescue", BASE, "vdb", "--subdriver", "qcow2", "--mode", "readonly"];
    scene.beta.exec(&plug).unwrap();
    assert!(!rescue.xml().unwrap().contains(BASE), "{}", rescue.xml().unwrap());
    let sum = State::of(&scene.beta).files[BASE].clone();
    scene.clone().await.unwrap();
    assert_eq!(State::of(&scene.beta).files.get(BASE), Some(&sum), "the running machine's disk is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_of_a_copy_goes_with_it() {
    let Some(mut scene) = Scene::new("what_was_kept_of_a_copy_goes_with_it") else { return };
    let kept = |scene: &Scene| {
        scene.beta.shell("ls /var/lib/kvm-clone/manifests /var/lib/kvm-clone/seals").unwrap().lines().count()
    };
    scene.clone().await.unwrap();
    let first = kept(&scene);
    scene.request.existing = Existing::Replace;
    scene.clone().await.unwrap();
    assert_eq!(kept(&scene), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn recover_removes_nothing_that_another_machine_may_stand_on() {
    let test = "recover_removes_nothing_that_another_machine_may_stand_on";
    let Some(scene) = Scene::new(test).map(Scene::replacing) else { return };
    let mut controller = Task::new(&scene).hold_at("clean").start();
    controller.says("held");
    controller.kill();
    scene.await_dead_man();
    scene.beta.shell(WITHOUT_FORMAT).unwrap();
    stand_on(&scene, LINKED);
    let sum = State::of(&scene.beta).files[BASE].clone();
    let client = scene.client_with("other.db").await;
    let refused = client.recover(&spec("beta"), Recovery::Act).await.unwrap();
    assert!(matches!(refused[0].error.as_ref(), Some(error) if number(error) == 1014), "{refused:?}");
    assert_eq!(State::of(&scene.beta).files.get(BASE), Some(&sum), "the linked machine's base is gone");
    // As the error's help says.
    scene.beta.exec(&["qemu-img", "rebase", "-u", "-b", BASE, "-F", "qcow2", LINKED]).unwrap();
    scene.recover("other.db").await;
    assert_eq!(State::of(&scene.beta).files.get(BASE), Some(&sum), "the linked machine's base is gone");
    scene.assert_nothing_of_ours(2);
}
