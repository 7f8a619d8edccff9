//! Two operations never work on one machine at once, from however many controllers, also when one of them was asleep.

use crate::common::{MIB, number, spec};
use crate::oracle::child::Task;
use crate::oracle::{Gate, Now, Run, Scene, State};
use kvm_clone_core::Error;
use kvm_clone_core::domain::Identity;
use kvm_clone_core::plan::{CloneRequest, Existing};
use kvm_clone_engine::CloneSettings;
use kvm_clone_lab::{DiskSpec, Fill, MachineSpec, define_machine};

fn named(name: &str) -> CloneRequest {
    CloneRequest { new_name: Some(name.parse().unwrap()), ..CloneRequest::default() }
}

fn assert_locked(error: &Error) {
    assert_eq!(number(error), 1011, "{error:?}");
    assert!(error.transient && !error.help.is_empty());
    assert!(error.context["holder"].contains("pid"), "{error:?}");
}

/// Starts both at once and holds whoever gets to copying; gives the errors of those that did not.
async fn race(scene: &Scene, runs: [([&'static str; 3], CloneRequest); 2]) -> Vec<Error> {
    let gate = Gate::after(MIB);
    let mut running = Vec::new();
    for (number, (words, request)) in runs.into_iter().enumerate() {
        let client = scene.client_with(&format!("{number}.db")).await;
        running.push(Run::between(client, words, request, gate.settings()));
    }
    crate::oracle::wait_for("one of the two to end", || running.iter().any(Run::has_ended));
    gate.open();
    let mut errors = Vec::new();
    for run in running {
        if let Err(error) = run.end().await {
            errors.push(error);
        }
    }
    errors
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_want_one_source_or_one_new_name_one_wins() {
    let Some(mut scene) = Scene::new("of_two_that_want_one_source_or_one_new_name_one_wins") else { return };
    let disk = || DiskSpec::qcow2("vda", 16 * MIB).fill(Fill::Random { seed: 3, bytes: 8 * MIB });
    define_machine(&scene.alpha, MachineSpec::named("web2").disk(disk())).unwrap();
    scene.remember();
    let (one, two) = (["alpha", "beta", "web1"], ["alpha", "beta", "web2"]);
    for (number, runs) in
        [(1, [(one, named("one")), (one, named("two"))]), (2, [(one, named("new")), (two, named("new"))])]
    {
        let errors = race(&scene, runs).await;
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_locked(&errors[0]);
        assert_eq!(crate::common::machines(&scene.beta).len(), number);
        scene.assert_source_unharmed();
    }
    for host in [&scene.alpha, &scene.beta] {
        crate::common::assert_nothing_left(host);
        assert_eq!(crate::oracle::held_locks(host), "");
    }
}

/// Each would replace what the other copies.
#[tokio::test(flavor = "multi_thread")]
async fn copies_in_opposite_directions_do_not_destroy_each_other() {
    let test = "copies_in_opposite_directions_do_not_destroy_each_other";
    let Some(mut scene) = Scene::new(test) else { return };
    let disk = DiskSpec::qcow2("vda", 16 * MIB).fill(Fill::Random { seed: 4, bytes: 8 * MIB });
    define_machine(&scene.beta, MachineSpec::named("web1").uuid(scene.source.uuid()).disk(disk)).unwrap();
    scene.alpha.provide_guest().unwrap();
    scene.remember();
    let replica = || CloneRequest { identity: Identity::Kept, existing: Existing::Replace, ..CloneRequest::default() };
    let errors = race(&scene, [(["alpha", "beta", "web1"], replica()), (["beta", "alpha", "web1"], replica())]).await;
    assert!(!errors.is_empty(), "both replaced each other's source");
    errors.iter().for_each(assert_locked);
    // At most one host has changed, and each has one whole machine.
    let changed = [State::of(&scene.alpha) != scene.alpha_before, State::of(&scene.beta) != scene.beta_before];
    assert!(changed != [true, true]);
    assert_eq!(changed.contains(&true), errors.len() == 1);
    for host in [&scene.alpha, &scene.beta] {
        crate::common::assert_nothing_left(host);
        assert_eq!(crate::common::machines(host), ["web1"]);
        assert_eq!(crate::oracle::held_locks(host), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_under_two_names_is_one_host() {
    let Some(scene) = Scene::new("one_host_under_two_names_is_one_host") else { return };
    let client = scene.client().await;
    let clone = |to: &'static str, request| {
        let client = client.clone();
        async move { crate::common::clone_with(&client, "alpha", to, "web1", request, &CloneSettings::default()).await }
    };
    let result = clone("root@alpha", named("copy1")).await.unwrap();
    assert_eq!(result.dest_host, "root@alpha");
    clone("alpha", named("copy2")).await.unwrap();
    let replica = CloneRequest { identity: Identity::Kept, ..CloneRequest::default() };
    assert_eq!(number(&clone("root@alpha", replica).await.unwrap_err()), 1007);
    drop(client);
    let now = State::of(&scene.alpha);
    assert!(scene.alpha_before.files.iter().all(|(path, sum)| now.files.get(path) == Some(sum)));
    assert_eq!(crate::common::machines(&scene.alpha).len(), 3);
    crate::common::assert_nothing_left(&scene.alpha);
    assert_eq!(crate::oracle::held_locks(&scene.alpha), "");
}

/// Stopped past the silence time; meanwhile somebody else recovers and clones under the same name. Then it goes on.
async fn sleeper(scene: &Scene, task: &Task, asleep: &str) {
    let controller = task.start();
    controller.says(asleep);
    controller.signal("-STOP");
    scene.await_dead_man();
    scene.recover("other.db").await;
    scene.assert_clean();
    scene.clone().await.unwrap();
    assert_eq!(scene.assert_promise(), Now::New);
    let whole = State::of(&scene.beta);

    controller.go();
    controller.signal("-CONT");
    let last = controller.says("error");
    assert!(last.starts_with("error 10"), "{last}");
    assert!(!last.starts_with("error 1015"), "nothing of it was left to be undone: {last}");
    drop(controller);
    assert_eq!(State::of(&scene.beta), whole);
    assert_eq!(scene.assert_promise(), Now::New);
    scene.sweep().await;
    scene.assert_nothing_of_ours(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_slept_can_do_nothing_more() {
    let Some(scene) = Scene::new("a_controller_that_slept_can_do_nothing_more") else { return };
    sleeper(&scene, &Task::new(&scene).gate(), "midway").await;
    scene.remove_clone();
    sleeper(&scene, &Task::new(&scene).hold_at("commit"), "held").await;
}

/// A lane agent of a dead operation keeps the next one out until it has ended: it could still write.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_of_a_dead_operation_keeps_the_next_one_out() {
    let test = "a_writer_of_a_dead_operation_keeps_the_next_one_out";
    let Some(scene) = Scene::new(test) else { return };
    let mut controller = Task::new(&scene).gate().start();
    controller.says("midway");
    assert!(kvm_clone_lab::fault::freeze(&scene.beta, "kvm-clone-agent lane").unwrap() > 0);
    controller.kill();
    kvm_clone_lab::fault::wait_gone(&scene.beta, "kvm-clone-agent control", crate::oracle::PATIENCE).unwrap();
    let client = scene.client().await;
    let error = scene.clone().await.unwrap_err();
    assert_eq!(number(&error), 1011, "{error:?}");
    let seen = client.recover(&spec("beta"), kvm_clone_engine::Recovery::Act).await.unwrap();
    assert_eq!(seen[0].action, kvm_clone_engine::Action::InProgress);
    drop(client);
    kvm_clone_lab::fault::thaw(&scene.beta, "kvm-clone-agent lane").unwrap();
    scene.await_dead_man();
    scene.recover("other.db").await;
    scene.assert_clean_and_clone_again().await;
}
