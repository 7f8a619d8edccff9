//! Power cuts of the target: what was said to be done stays done, what was not leaves the old state.

use crate::oracle::child::Task;
use crate::oracle::{Now, Scene, assert_boots};

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_right_after_the_success_loses_nothing() {
    let Some(scene) = Scene::on_what_was_synced("a_power_cut_right_after_the_success_loses_nothing") else { return };
    scene.clone().await.unwrap();
    scene.beta.crash().unwrap();
    assert_eq!(scene.assert_promise(), Now::New);
    assert!(scene.recover("other.db").await.is_empty());
    scene.assert_nothing_of_ours(2);
    assert_boots(&scene.beta.machine("web1_clone").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_right_after_a_replacement_loses_nothing() {
    let Some(scene) =
        Scene::on_what_was_synced("a_power_cut_right_after_a_replacement_loses_nothing").map(Scene::replacing)
    else {
        return;
    };
    scene.beta.exec(&["sync"]).unwrap();
    scene.clone().await.unwrap();
    scene.beta.crash().unwrap();
    assert_eq!(scene.assert_promise(), Now::New);
    scene.assert_nothing_of_ours(2);
}

/// At each phase the host loses its power with the controller; whatever stands then is whole, and recover ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_on_the_way_leaves_old_or_new() {
    let Some(scene) = Scene::on_what_was_synced("a_power_cut_on_the_way_leaves_old_or_new") else { return };
    for (task, held) in [
        (Task::new(&scene).gate(), "midway"),
        (Task::new(&scene).hold_at("finish"), "held"),
        (Task::new(&scene).hold_at("commit"), "held"),
        (Task::new(&scene).hold_at("clean"), "held"),
    ] {
        let mut controller = task.start();
        controller.says(held);
        scene.beta.crash().unwrap();
        controller.kill();
        let before = scene.assert_promise_while_placing();
        scene.recover("other.db").await;
        assert_eq!(scene.assert_promise(), before);
        if before == Now::New {
            scene.assert_nothing_of_ours(2);
            scene.remove_clone();
        }
        scene.assert_clean();
    }
    scene.assert_clean_and_clone_again().await;
}
