//! Every step of the copy of a machine that runs, failed at every moment. Looked at before any recovery: the guest goes on,
//! no job is left once the agents are gone, and the target has the old state or a machine of one moment. Then `recover`
//! leaves nothing of ours on either host, and a second try succeeds.

use std::sync::{Arc, Mutex};

use crate::common::{MIB, spec};
use crate::oracle::child::Task;
use crate::oracle::strike::{At, moments, steps, struck};
use crate::oracle::{IMAGES, Now, PATIENCE, Scene, wait_for};
use kvm_clone_core::journal::Step;
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{CloneResult, Moment, Recovery, Then};
use kvm_clone_lab::{FsKind, Host, fault};

/// What our jobs leave while they run.
fn traces(host: &Host) -> String {
    let job = host.exec(&["virsh", "-q", "domjobinfo", "web1"]).unwrap_or_default();
    let files = "ls -A /var/lib/libvirt/qemu/domain-*/ /var/lib/libvirt/images /var/lib/kvm-clone/points 2>/dev/null \
                 | grep -e kvm-clone- -e '[.]json$' || true";
    let job = if job.contains("None") { String::new() } else { job };
    job + &host.shell(files).unwrap()
}

/// The oracle. Once the agents are gone, nobody but `recover` is left to end a job: there must be none, unless it was the
/// source's agent that was killed, and nobody who could have ended it in its place.
async fn judge(scene: &Scene, at: At, outcome: Option<&Result<CloneResult>>) -> Now {
    scene.await_dead_man();
    wait_for("the end of the job", || traces(&scene.alpha).is_empty());
    let before = scene.assert_promise_while_placing();
    if let Some(outcome) = outcome {
        assert!(outcome.is_err() || before == Now::New, "{at:?}: {before:?}, {outcome:?}");
    }
    scene.recover("other.db").await;
    let client = scene.client_with("other.db").await;
    let left = client.recover(&spec("alpha"), Recovery::Act).await.unwrap();
    assert!(left.iter().all(|entry| entry.error.is_none()), "{left:?}");
    drop(client);
    assert_eq!(scene.assert_promise(), before, "{at:?}: recover changed the outcome");
    let copied = if before == Now::New { scene.source.disks().len() } else { 0 };
    scene.assert_nothing_of_ours(copied);
    assert_eq!(traces(&scene.alpha), "");
    if before == Now::New {
        scene.remove_clone();
    }
    before
}

async fn assert_second_try(scene: &Scene) {
    scene.clone().await.unwrap();
    assert_eq!(scene.assert_promise(), Now::New);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_running_machine_a_step_that_fails_is_undone() {
    let Some(scene) = Scene::running("of_a_running_machine_a_step_that_fails") else { return };
    for at in moments() {
        let outcome = struck(&scene, at, || Err(Error::internal("struck"))).await;
        let expected = if at.0 == Step::Clean { Now::New } else { Now::Old };
        assert_eq!(outcome.is_ok(), expected == Now::New, "{at:?}: {outcome:?}");
        if expected == Now::Old {
            scene.assert_nothing_of_ours(0);
        }
        assert_eq!(judge(&scene, at, Some(&outcome)).await, expected, "{at:?}");
    }
    assert_second_try(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_running_machine_a_step_that_is_done_twice_is_as_done_once() {
    let Some(scene) = Scene::running("of_a_running_machine_a_step_that_is_done_twice") else { return };
    for step in steps() {
        let at = (step, Moment::Acted);
        let outcome = struck(&scene, at, || Ok(Then::Again)).await;
        assert!(outcome.is_ok(), "{at:?}: {outcome:?}");
        judge(&scene, at, Some(&outcome)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_running_machine_a_controller_dies() {
    let Some(scene) = Scene::running("of_a_running_machine_a_controller_dies") else { return };
    for at in moments() {
        let mut controller = Task::new(&scene).die_at(at.0, at.1).start();
        controller.says("dies");
        controller.kill();
        judge(&scene, at, None).await;
    }
    assert_second_try(&scene).await;
}

async fn kill_an_agent(test: &str, host: fn(&Scene) -> &Host) {
    let Some(scene) = Scene::running(test) else { return };
    for at in moments() {
        let struck_host = host(&scene).clone();
        let outcome = struck(&scene, at, move || {
            fault::kill(&struck_host, "kvm-clone-agent").unwrap();
            Ok(Then::Go)
        })
        .await;
        judge(&scene, at, Some(&outcome)).await;
    }
    assert_second_try(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_running_machine_the_sources_agent_dies() {
    kill_an_agent("of_a_running_machine_the_sources_agent_dies", |scene| &scene.alpha).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_running_machine_the_targets_agent_dies() {
    kill_an_agent("of_a_running_machine_the_targets_agent_dies", |scene| &scene.beta).await;
}

/// The link to the source at one step and to the target at the next, the other way round at their second moments; healed
/// when the host has noticed.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_running_machine_a_network_is_cut() {
    let Some(scene) = Scene::running("of_a_running_machine_a_network_is_cut") else { return };
    for (index, at) in moments().enumerate() {
        let host = if (index / 2 + index) % 2 == 0 { &scene.alpha } else { &scene.beta };
        let (lab, cut_off) = (Arc::clone(&scene.lab), host.clone());
        let mended = Arc::new(Mutex::new(None));
        let mending = Arc::clone(&mended);
        let outcome = struck(&scene, at, move || {
            lab.cut(&cut_off).unwrap();
            let (lab, cut_off) = (Arc::clone(&lab), cut_off.clone());
            let mend = std::thread::spawn(move || {
                fault::wait_gone(&cut_off, "kvm-clone-agent", PATIENCE).unwrap();
                lab.heal(&cut_off).unwrap();
            });
            mending.lock().unwrap().replace(mend);
            Ok(Then::Go)
        })
        .await;
        mended.lock().unwrap().take().unwrap().join().unwrap();
        judge(&scene, at, Some(&outcome)).await;
    }
    assert_second_try(&scene).await;
}

/// The target's file system is full from this moment on, also of the blocks that only root may have.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_running_machine_the_target_fills_up() {
    let Some(mut scene) = Scene::running("of_a_running_machine_the_target_fills_up") else { return };
    scene.beta.small_filesystem(IMAGES, FsKind::Ext4, 128 * MIB).unwrap();
    scene.remember();
    let fill = format!("{IMAGES}/.kvm-clone-test-fill");
    for at in moments() {
        let (beta, path) = (scene.beta.clone(), fill.clone());
        let outcome = struck(&scene, at, move || {
            beta.shell(&format!("cat /dev/zero > {path} 2>/dev/null || true")).unwrap();
            Ok(Then::Go)
        })
        .await;
        scene.beta.shell(&format!("rm -f {fill}")).unwrap();
        judge(&scene, at, Some(&outcome)).await;
    }
    assert_second_try(&scene).await;
}

/// The target loses its power, keeps what was made durable, and boots again.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_running_machine_the_target_loses_power() {
    let scene = Scene::running("of_a_running_machine_the_target_loses_power").map(Scene::with_what_was_synced);
    let Some(scene) = scene else { return };
    for at in moments() {
        let beta = scene.beta.clone();
        let outcome = struck(&scene, at, move || {
            beta.crash().unwrap();
            Ok(Then::Go)
        })
        .await;
        if judge(&scene, at, Some(&outcome)).await == Now::New {
            // The next cut takes away only what the next round did.
            scene.beta.exec(&["sync"]).unwrap();
        }
    }
    assert_second_try(&scene).await;
}
