//! Every step, failed at every moment, in every way. Looked at before any recovery: the source is what it was, and the
//! target has the old state or the whole new machine. Then `recover` leaves nothing of ours, and a second try succeeds.

use std::sync::{Arc, Mutex};

use crate::common::MIB;
use crate::oracle::child::Task;
use crate::oracle::strike::{At, agents_die, loses_power, moments, moments_and_boundaries, steps, struck};
use crate::oracle::{IMAGES, Now, PATIENCE, Scene, assert_boots};
use kvm_clone_core::journal::Step;
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{CloneResult, Moment, Then};
use kvm_clone_lab::{FsKind, fault};

/// The oracle: before any recovery, after it, and at the second try.
async fn judge(scene: &mut Scene, at: At, outcome: Option<&Result<CloneResult>>) -> Now {
    let before = scene.assert_promise_while_placing();
    println!("{at:?}: {before:?}, {outcome:?}");
    if let Some(Ok(_)) = outcome {
        assert_eq!(before, Now::New, "{at:?}: it said that it succeeded");
    }
    scene.recover("other.db").await;
    assert_eq!(scene.assert_promise(), before, "{at:?}: recover changed the outcome");
    scene.sweep().await;
    if before == Now::Old {
        scene.assert_clean();
        scene.clone().await.unwrap_or_else(|error| panic!("{at:?}: the second try: {error}"));
        assert_eq!(scene.assert_promise(), Now::New, "{at:?}");
    }
    scene.assert_nothing_of_ours(2);
    scene.begin_again();
    before
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_is_undone_with_all_before_it() {
    let Some(mut scene) = Scene::new("a_step_that_fails_is_undone").map(Scene::replacing) else { return };
    for at in moments_and_boundaries() {
        let outcome = struck(&scene, at, || Err(Error::internal("struck"))).await;
        let expected = if at.0 == Step::Clean { Now::New } else { Now::Old };
        assert_eq!(outcome.is_ok(), expected == Now::New, "{at:?}: {outcome:?}");
        // What was undone needs no recovery.
        if expected == Now::Old {
            scene.assert_clean();
        }
        assert_eq!(judge(&mut scene, at, Some(&outcome)).await, expected, "{at:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_done_twice_is_as_done_once() {
    let Some(mut scene) = Scene::new("a_step_that_is_done_twice").map(Scene::replacing) else { return };
    for step in steps() {
        let at = (step, Moment::Acted);
        let outcome = struck(&scene, at, || Ok(Then::Again)).await;
        assert!(outcome.is_ok(), "{at:?}: {outcome:?}");
        judge(&mut scene, at, Some(&outcome)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_at_any_moment_leaves_old_or_new() {
    let Some(mut scene) = Scene::new("a_controller_that_dies_at_any_moment").map(Scene::replacing) else { return };
    for at in moments_and_boundaries() {
        let mut controller = Task::new(&scene).die_at(at.0, at.1).start();
        controller.says("dies");
        controller.kill();
        scene.await_dead_man();
        judge(&mut scene, at, None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_at_any_moment_leaves_old_or_new() {
    let Some(mut scene) = Scene::new("an_agent_that_dies_at_any_moment").map(Scene::replacing) else { return };
    for (index, at) in moments().enumerate() {
        // Each host at each step.
        let host = if index % 2 == 0 { &scene.beta } else { &scene.alpha };
        let outcome = struck(&scene, at, agents_die(host)).await;
        judge(&mut scene, at, Some(&outcome)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_cut_at_any_moment_leaves_old_or_new() {
    let Some(mut scene) = Scene::new("a_network_that_is_cut_at_any_moment") else { return };
    for at in moments() {
        let (lab, beta) = (Arc::clone(&scene.lab), scene.beta.clone());
        // It is mended when the target has noticed, or only after the controller has given up.
        let stays_cut = at.1 == Moment::Acted && [Step::Stage, Step::Place, Step::Define].contains(&at.0);
        let mended = Arc::new(Mutex::new(None));
        let mending = Arc::clone(&mended);
        let outcome = struck(&scene, at, move || {
            lab.cut(&beta).unwrap();
            let (lab, beta) = (Arc::clone(&lab), beta.clone());
            let mend = std::thread::spawn(move || {
                fault::wait_gone(&beta, "kvm-clone-agent", PATIENCE).unwrap();
                if !stays_cut {
                    lab.heal(&beta).unwrap();
                }
            });
            mending.lock().unwrap().replace(mend);
            Ok(Then::Go)
        })
        .await;
        mended.lock().unwrap().take().unwrap().join().unwrap();
        scene.lab.heal(&scene.beta).unwrap();
        judge(&mut scene, at, Some(&outcome)).await;
    }
}

/// The link to the source, mended when the source has noticed. One moment of each step,
/// the first and the second in turn, so that no test takes a minute.
async fn cut_the_source(test: &str, steps: std::ops::RangeInclusive<Step>) {
    let Some(mut scene) = Scene::new(test) else { return };
    let one_of_each = moments().enumerate().filter(|(index, _)| (index / 2 + index) % 2 == 1);
    for (_, at) in one_of_each.filter(|(_, (step, _))| steps.contains(step)) {
        let (lab, alpha) = (Arc::clone(&scene.lab), scene.alpha.clone());
        let mended = Arc::new(Mutex::new(None));
        let mending = Arc::clone(&mended);
        let outcome = struck(&scene, at, move || {
            lab.cut(&alpha).unwrap();
            let (lab, alpha) = (Arc::clone(&lab), alpha.clone());
            let mend = std::thread::spawn(move || {
                fault::wait_gone(&alpha, "kvm-clone-agent", PATIENCE).unwrap();
                lab.heal(&alpha).unwrap();
            });
            mending.lock().unwrap().replace(mend);
            Ok(Then::Go)
        })
        .await;
        mended.lock().unwrap().take().unwrap().join().unwrap();
        judge(&mut scene, at, Some(&outcome)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_cut_off_before_the_copy_is_undone() {
    cut_the_source("a_source_that_is_cut_off", Step::Mark..=Step::Point).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_cut_off_from_the_copy_on_leaves_old_or_new() {
    cut_the_source("a_source_that_is_cut_off", Step::Copy..=Step::Clean).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_fills_up_at_any_moment_leaves_old_or_new() {
    let test = "a_target_that_fills_up_at_any_moment";
    let Some(mut scene) = Scene::new(test) else { return };
    scene.beta.small_filesystem(IMAGES, FsKind::Ext4, 128 * MIB).unwrap();
    let fill = format!("{IMAGES}/.kvm-clone-test-fill");
    for at in moments() {
        let (beta, path) = (scene.beta.clone(), fill.clone());
        let outcome = struck(&scene, at, move || {
            // Also the blocks that only root may have.
            beta.shell(&format!("cat /dev/zero > {path} 2>/dev/null || true")).unwrap();
            Ok(Then::Go)
        })
        .await;
        scene.beta.shell(&format!("rm -f {fill}")).unwrap();
        judge(&mut scene, at, Some(&outcome)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_without_power_at_any_moment_has_old_or_new() {
    let test = "a_target_without_power_at_any_moment_has_old_or_new";
    let Some(mut scene) = Scene::on_what_was_synced(test) else { return };
    let mut last = Now::Old;
    for at in moments() {
        let outcome = struck(&scene, at, loses_power(&scene.beta)).await;
        last = judge(&mut scene, at, Some(&outcome)).await;
    }
    assert_eq!(last, Now::New, "after the last step the machine stands");
    scene.clone().await.unwrap();
    assert_boots(&scene.beta.machine("web1_clone").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_be_reached_in_the_end_says_so() {
    let Some(scene) = Scene::new("a_host_that_cannot_be_reached_in_the_end") else { return };
    let (lab, beta) = (Arc::clone(&scene.lab), scene.beta.clone());
    let at = (Step::Define, Moment::Acted);
    let outcome = struck(&scene, at, move || {
        lab.cut(&beta).unwrap();
        Err(Error::internal("struck"))
    })
    .await;
    let error = outcome.unwrap_err();
    assert_eq!(crate::common::number(&error), 1015, "{error:?}");
    assert_eq!(scene.assert_promise(), Now::New, "it stands, and the error says so: {error:?}");
    assert!(error.context["left"].contains("machine web1_clone"), "{error:?}");
}
