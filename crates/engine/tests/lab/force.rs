//! `--force`: the old machine is replaced at once, or stays whole.

use crate::common::{MIB, number, silent, spec};
use crate::force_files::{BASE, LINKED, stand_on};
use crate::oracle::child::Task;
use crate::oracle::{IMAGES, Now, Scene, State, assert_boots, at, clone_with_events};
use kvm_clone_core::event::Phase;
use kvm_clone_core::plan::{CloneRequest, Existing};
use kvm_clone_engine::{Action, CloneSettings, Recovery};
use kvm_clone_lab::{DiskSpec, FsKind, MachineSpec, define_machine, fault};
use tokio_util::sync::CancellationToken;

pub fn uuid(scene: &Scene) -> String {
    scene.beta.exec(&["virsh", "domuuid", "web1_clone"]).unwrap().trim().to_owned()
}

/// The new machine stands where the old one stood, and nothing of the old one is left.
pub fn assert_replaced(scene: &Scene, old_uuid: &str) {
    assert_eq!(scene.assert_promise(), Now::New);
    assert_eq!(uuid(scene), old_uuid, "the new machine has the old one's UUID");
    let now = State::of(&scene.beta);
    for old in scene.beta_before.files.keys() {
        assert!(!now.files.contains_key(old), "{old} of the old machine is left");
    }
    assert!(now.autostart.is_empty(), "the new machine must not start by itself");
    scene.assert_nothing_of_ours(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_machine_is_replaced_whole() {
    let Some(scene) = Scene::new("the_old_machine_is_replaced_whole").map(Scene::replacing) else { return };
    let old = uuid(&scene);
    scene.clone().await.unwrap();
    assert_replaced(&scene, &old);
    assert_boots(&scene.beta.machine("web1_clone").unwrap());

    // One whose disk is gone already is replaced all the same.
    let scene = again(scene);
    let old = uuid(&scene);
    scene.beta.shell(&format!("rm {IMAGES}/web1_clone-vda.qcow2")).unwrap();
    scene.clone().await.unwrap();
    assert_replaced(&scene, &old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_leaves_the_old_machine_as_it_was() {
    let Some(scene) = Scene::new("a_failure_leaves_the_old_machine_as_it_was").map(Scene::replacing) else { return };
    let old = uuid(&scene);
    let (run, _gate) = scene.start_and_hold().await;
    run.cancel.cancel();
    assert_eq!(number(&run.fails().await), 1008);
    scene.assert_clean();
    for pattern in ["kvm-clone-agent lane", "kvm-clone-agent control"] {
        let (run, gate) = scene.start_and_hold().await;
        fault::kill(&scene.beta, pattern).unwrap();
        gate.open();
        run.fails().await;
        scene.sweep().await;
        scene.assert_clean();
    }
    assert_boots(&scene.beta.machine("web1_clone").unwrap());
    // The boot wrote nothing that would matter here, but may have touched the disk.
    let mut scene = scene;
    scene.remember();
    scene.clone().await.unwrap();
    assert_replaced(&scene, &old);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_the_old_machine_as_it_was() {
    let Some(scene) = Scene::new("a_full_disk_leaves_the_old_machine_as_it_was") else { return };
    scene.beta.small_filesystem(IMAGES, FsKind::Ext4, 128 * MIB).unwrap();
    let scene = scene.replacing();
    let (run, gate) = scene.start_and_hold().await;
    scene.beta.shell(&format!("cat /dev/zero >{IMAGES}/.kvm-clone-filler 2>/dev/null || true")).unwrap();
    gate.open();
    assert_eq!(number(&run.fails().await), 1005);
    scene.beta.shell(&format!("rm {IMAGES}/.kvm-clone-filler")).unwrap();
    scene.assert_clean_and_clone_again().await;
}

/// The commit is one call: whatever dies around it, one of the two machines stands, and stands whole.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_around_the_commit_leaves_old_or_new() {
    let test = "an_agent_killed_around_the_commit_leaves_old_or_new";
    let Some(mut scene) = Scene::new(test).map(Scene::replacing) else { return };
    for micros in [10_000, 20_000, 40_000] {
        let (client, beta, old) = (scene.client().await, scene.beta.clone(), uuid(&scene));
        let events = at(Phase::Commit, micros, move || drop(fault::kill(&beta, "kvm-clone-agent control")));
        let result = clone_with_events(&client, scene.request.clone(), events, CancellationToken::new()).await;
        drop(client);
        scene.sweep().await;
        match result {
            Ok(_) => {
                assert_replaced(&scene, &old);
                scene = again(scene);
            }
            Err(error) => {
                assert_ne!(number(&error), 1015, "{micros}: {error:?}");
                scene.assert_clean();
            }
        }
    }
}

/// The next round begins with an old machine again.
fn again(scene: Scene) -> Scene {
    scene.remove_clone();
    scene.replacing()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_before_or_after_the_commit_is_recovered() {
    let test = "a_controller_killed_before_or_after_the_commit_is_recovered";
    let Some(scene) = Scene::new(test).map(Scene::replacing) else { return };
    for (phase, action) in [("finish", Action::Undo), ("commit", Action::Undo), ("clean", Action::Finish)] {
        let old = uuid(&scene);
        let mut controller = Task::new(&scene).hold_at(phase).start();
        controller.says("held");
        controller.kill();
        scene.await_dead_man();
        scene.assert_promise_while_placing();
        let recovered = scene.recover("other.db").await;
        assert_eq!(recovered.iter().map(|entry| entry.action).collect::<Vec<_>>(), [action], "{phase}");
        match action {
            Action::Finish => assert_replaced(&scene, &old),
            _ => scene.assert_clean(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_since_the_plan_is_not_replaced() {
    let Some(scene) = Scene::new("what_changed_since_the_plan_is_not_replaced").map(Scene::replacing) else { return };
    let old = scene.beta.machine("web1_clone").unwrap();
    let (run, gate) = scene.start_and_hold().await;
    old.start().unwrap();
    gate.open();
    let error = run.fails().await;
    assert_eq!(number(&error), 1014, "{error:?}");
    assert_eq!(old.state().unwrap(), "running");
    old.destroy().unwrap();
    let mut scene = scene;
    scene.remember();

    // Another machine has come to use the old one's disk, which would be removed.
    let (run, gate) = scene.start_and_hold().await;
    let disk = DiskSpec::qcow2("vda", 16 * MIB).at(&format!("{IMAGES}/web1_clone-vda.qcow2")).existing();
    define_machine(&scene.beta, MachineSpec::named("other").disk(disk)).unwrap();
    scene.remember();
    gate.open();
    let error = run.fails().await;
    assert_eq!(number(&error), 1014, "{error:?}");
    scene.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_replacement_left_goes_before_the_next_one() {
    let test = "what_an_interrupted_replacement_left_goes_before_the_next_one";
    let Some(mut scene) = Scene::new(test).map(Scene::replacing) else { return };
    for phase in ["finish", "clean"] {
        let old = uuid(&scene);
        kill_at(&scene, phase);
        // Who only looks leaves it all.
        let client = scene.client().await;
        let (alpha, beta, name) = (spec("alpha"), spec("beta"), "web1".parse().unwrap());
        let plan = client.prepare(&alpha, &beta, &name, scene.request.clone(), Recovery::Look, silent());
        plan.await.unwrap();
        let seen = client.recover(&beta, Recovery::Look).await.unwrap();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(scene.beta.path(BASE).exists());
        drop(client);
        scene.clone().await.unwrap();
        assert_eq!((scene.assert_promise(), uuid(&scene)), (Now::New, old));
        scene.assert_nothing_of_ours(2);
        let images = scene.beta.names_in(IMAGES).unwrap();
        assert_eq!(images.iter().filter(|name| name.starts_with("web1_clone")).count(), 2, "{phase}: {images:?}");
        scene.begin_again();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_is_kept_from_starting_by_whoever_finishes_it() {
    let test = "the_copy_is_kept_from_starting_by_whoever_finishes_it";
    let Some(mut scene) = Scene::new(test).map(Scene::replacing) else { return };
    // Nothing of the old machine can be removed.
    let make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", BASE, LINKED];
    scene.beta.exec(&make).unwrap();
    stand_on(&scene, LINKED);
    scene.remember();
    // Before the definition, which libvirt cannot write here, it is noted …
    let definition = "/etc/libvirt/qemu/web1_clone.xml";
    scene.beta.exec(&["chattr", "+i", definition]).unwrap();
    kill_at(&scene, "undo");
    scene.beta.exec(&["chattr", "-i", definition]).unwrap();
    assert!(matches!(scene.markers().as_slice(), [marker] if marker.autostart_off && marker.replaced.is_empty()));
    scene.recover("other.db").await;
    scene.assert_clean();
    // … and who finds it noted after the definition, does it.
    kill_at(&scene, "clean");
    assert!(scene.markers().iter().all(|marker| !marker.autostart_off), "it is done");
    scene.beta.exec(&["virsh", "-q", "autostart", "web1_clone"]).unwrap();
    let noted = "sed -i 's/\"autostart_off\": false/\"autostart_off\": true/' /var/lib/kvm-clone/operations/*.json";
    scene.beta.shell(noted).unwrap();
    let recovered = scene.recover("other.db").await;
    assert_eq!(recovered.iter().map(|entry| entry.action).collect::<Vec<_>>(), [Action::Finish]);
    assert_eq!(State::of(&scene.beta).autostart, [""; 0]);
    scene.assert_nothing_of_ours(2);
}

/// Kills a controller at the beginning of a phase.
fn kill_at(scene: &Scene, phase: &str) {
    let mut controller = Task::new(scene).hold_at(phase).start();
    controller.says("held");
    controller.kill();
    scene.await_dead_man();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_turns_autostart_on_again_is_not_overruled_by_recover() {
    let test = "who_turns_autostart_on_again_is_not_overruled_by_recover";
    let Some(scene) = Scene::new(test).map(Scene::replacing) else { return };
    kill_at(&scene, "clean");
    assert_eq!(State::of(&scene.beta).autostart, [""; 0]);
    scene.beta.exec(&["virsh", "-q", "autostart", "web1_clone"]).unwrap();
    scene.recover("other.db").await;
    assert_eq!(State::of(&scene.beta).autostart, ["web1_clone.xml"]);
    scene.assert_nothing_of_ours(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_replaced_is_refused_before_anything_is_done() {
    let test = "what_cannot_be_replaced_is_refused_before_anything_is_done";
    let Some(scene) = Scene::new(test).map(Scene::replacing) else { return };
    let old = scene.beta.machine("web1_clone").unwrap();
    old.start().unwrap();
    assert_eq!(number(&scene.clone().await.unwrap_err()), 1014);
    old.destroy().unwrap();
    scene.beta.exec(&["virsh", "-q", "snapshot-create-as", "web1_clone", "s1"]).unwrap();
    assert_eq!(number(&scene.clone().await.unwrap_err()), 1013);

    // Onto itself, also where the host goes by two names.
    let client = scene.client().await;
    let request = CloneRequest {
        existing: Existing::Replace,
        new_name: Some("web1".parse().unwrap()),
        ..CloneRequest::default()
    };
    for to in ["alpha", "root@alpha"] {
        let settings = CloneSettings::default();
        let error =
            crate::common::clone_with(&client, "alpha", to, "web1", request.clone(), &settings).await.unwrap_err();
        assert_eq!(number(&error), 1007, "{to}: {error:?}");
    }
    drop(client);
    scene.assert_source_unharmed();
    scene.assert_nothing_of_ours(0);
}
