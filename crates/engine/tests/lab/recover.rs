//! The controller is killed: what it left is staging or the whole machine, and `recover` ends it from any controller.

use std::time::Duration;

use crate::common::{number, spec};
use crate::oracle::child::Task;
use crate::oracle::{Now, Scene};
use kvm_clone_engine::{Action, Recovery};

/// Kills the controller where it stands still, checks the promise, recovers with this journal, checks again.
async fn kill_and_recover(scene: &Scene, task: &Task, held: &str, journal: &str) {
    let mut controller = task.start();
    controller.says(held);
    controller.kill();
    scene.await_dead_man();
    let before = scene.assert_promise_while_placing();
    let recovered = scene.recover(journal).await;
    let now = scene.assert_promise();
    assert_eq!(before, now, "recover changed the outcome: {recovered:?}");
    let expected = if now == Now::New { Action::Finish } else { Action::Undo };
    assert!(recovered.iter().all(|entry| entry.action == expected), "{recovered:?}");
    if now == Now::New {
        scene.assert_nothing_of_ours(2);
        scene.remove_clone();
    }
    scene.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_at_any_phase_is_recovered_by_another() {
    let test = "a_controller_killed_at_any_phase_is_recovered_by_another";
    let Some(scene) = Scene::new(test) else { return };
    kill_and_recover(&scene, &Task::new(&scene).gate(), "midway", "other.db").await;
    for phase in ["prepare", "finish", "commit", "clean"] {
        kill_and_recover(&scene, &Task::new(&scene).hold_at(phase), "held", "other.db").await;
    }
    scene.assert_clean_and_clone_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_while_it_undoes_is_recovered_with_its_journal() {
    let test = "a_controller_killed_while_it_undoes_is_recovered_with_its_journal";
    let Some(scene) = Scene::new(test) else { return };
    kill_and_recover(&scene, &Task::new(&scene).cancel().hold_at("undo"), "held", "child.db").await;
    kill_and_recover(&scene, &Task::new(&scene).hold_at("commit"), "held", "child.db").await;
    scene.assert_clean_and_clone_again().await;
}

/// Moments between the phases, a few of them in each run; the journals of all rounds are one.
#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_at_a_random_moment_leaves_old_or_new() {
    let test = "a_controller_killed_at_a_random_moment_leaves_old_or_new";
    let Some(scene) = Scene::new(test) else { return };
    let seed: u64 = std::env::var("KVM_CLONE_TEST_SEED").map_or_else(|_| rand(), |seed| seed.parse().unwrap());
    let mut state = seed;
    for _ in 0..5 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_millis((state >> 33) % 1500);
        println!("KVM_CLONE_TEST_SEED={seed}: {moment:?}");
        let mut controller = Task::new(&scene).start();
        controller.says("phase prepare");
        controller.ends_within(moment);
        controller.kill();
        scene.await_dead_man();
        let before = scene.assert_promise_while_placing();
        scene.recover("other.db").await;
        assert_eq!(scene.assert_promise(), before);
        if before == Now::New {
            scene.assert_nothing_of_ours(2);
            scene.remove_clone();
        }
        scene.assert_clean();
    }
}

fn rand() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_le_bytes(bytes) >> 16
}

#[tokio::test(flavor = "multi_thread")]
async fn recover_only_looks_when_asked_to_and_leaves_running_operations_alone() {
    let test = "recover_only_looks_when_asked_to_and_leaves_running_operations_alone";
    let Some(scene) = Scene::new(test) else { return };
    let mut controller = Task::new(&scene).gate().start();
    controller.says("midway");
    let client = scene.client_with("other.db").await;
    for mode in [Recovery::Look, Recovery::Act] {
        let seen = client.recover(&spec("beta"), mode).await.unwrap();
        assert!(matches!(seen.as_slice(), [entry] if entry.action == Action::InProgress), "{seen:?}");
    }
    // A second clone of the machine is kept out meanwhile, and told by whom.
    let error = scene.clone().await.unwrap_err();
    assert_eq!(number(&error), 1011, "{error:?}");
    controller.kill();
    scene.await_dead_man();

    let seen = client.recover(&spec("beta"), Recovery::Look).await.unwrap();
    assert!(matches!(seen.as_slice(), [entry] if entry.action == Action::Undo && !entry.files.is_empty()), "{seen:?}");
    let again = client.recover(&spec("beta"), Recovery::Act).await.unwrap();
    assert_eq!(again[0].files, seen[0].files);
    assert!(client.recover(&spec("beta"), Recovery::Act).await.unwrap().is_empty());
    drop(client);
    scene.assert_clean_and_clone_again().await;
}

/// A reboot numbers devices anew; the finished images are known all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_reboots_after_the_kill_is_recovered() {
    let Some(scene) = Scene::new("a_target_that_reboots_after_the_kill_is_recovered") else { return };
    let mut controller = Task::new(&scene).hold_at("commit").start();
    controller.says("held");
    controller.kill();
    scene.beta.reboot().unwrap();
    assert_eq!(scene.assert_promise_while_placing(), Now::Old);
    assert_eq!(scene.recover("other.db").await.len(), 1);
    scene.assert_clean_and_clone_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_reboots_during_the_copy_is_undone_by_its_own_controller() {
    let test = "a_target_that_reboots_during_the_copy_is_undone_by_its_own_controller";
    let Some(scene) = Scene::new(test) else { return };
    let (run, gate) = scene.start_and_hold().await;
    scene.beta.reboot().unwrap();
    gate.open();
    let error = run.fails().await;
    assert!([1002, 1006, 1010].contains(&number(&error)), "{error:?}");
    scene.assert_clean_and_clone_again().await;
}
