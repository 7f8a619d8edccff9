//! Processes are killed, connections cut and things changed while a machine is copied: all is undone, and said.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;
mod oracle;

use std::os::unix::fs::FileExt;

use common::{MIB, number};
use kvm_clone_core::event::Phase;
use kvm_clone_engine::CloneResult;
use kvm_clone_lab::{DiskSpec, Host, MachineSpec, define_machine, fault};
use oracle::{IMAGES, Now, PATIENCE, SILENCE, Scene, State, at, clone_with_events};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_copy_leaves_nothing() {
    let Some(scene) = Scene::new("a_cancelled_copy_leaves_nothing") else { return };
    let (run, _gate) = scene.start_and_hold().await;
    run.cancel.cancel();
    assert_eq!(number(&run.fails().await), 1008);
    scene.assert_clean_and_clone_again().await;
}

/// Orders of the controller that are under way when it gives them up must not come true after the undo.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_at_any_moment_leaves_all_or_nothing() {
    let Some(scene) = Scene::new("a_cancel_at_any_moment_leaves_all_or_nothing") else { return };
    for phase in [Phase::Prepare, Phase::Copy, Phase::Finish, Phase::Commit] {
        for micros in [0, 500, 3000, 20_000] {
            match cancel_after(&scene, phase, micros).await {
                Ok(_) => {
                    assert_eq!(scene.assert_promise(), Now::New);
                    scene.remove_clone();
                }
                Err(error) => assert_eq!(number(&error), 1008, "{phase:?} {micros}: {error:?}"),
            }
            scene.assert_clean();
        }
    }
}

async fn cancel_after(scene: &Scene, phase: Phase, micros: u64) -> kvm_clone_core::Result<CloneResult> {
    let (client, cancel) = (scene.client().await, CancellationToken::new());
    let stop = cancel.clone();
    clone_with_events(&client, scene.request.clone(), at(phase, micros, move || stop.cancel()), cancel).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_agent_killed_at_any_moment_leaves_all_or_nothing() {
    let Some(scene) = Scene::new("a_target_agent_killed_at_any_moment_leaves_all_or_nothing") else { return };
    for phase in [Phase::Prepare, Phase::Finish, Phase::Commit, Phase::Clean] {
        for micros in [1000, 10_000] {
            let (client, beta) = (scene.client().await, scene.beta.clone());
            let events = at(phase, micros, move || drop(fault::kill(&beta, "kvm-clone-agent control")));
            let result = clone_with_events(&client, scene.request.clone(), events, CancellationToken::new()).await;
            drop(client);
            scene.sweep().await;
            match result {
                Ok(_) => {
                    assert_eq!(scene.assert_promise(), Now::New);
                    scene.assert_nothing_of_ours(2);
                    scene.remove_clone();
                }
                Err(error) => assert_ne!(number(&error), 1015, "{phase:?} {micros}: {error:?}"),
            }
            scene.assert_clean();
        }
    }
}

/// Strikes while the copy is held midway, then expects an undone failure of one of these codes.
async fn strike(test: &str, codes: &[u16], strike: impl FnOnce(&Scene)) {
    let Some(scene) = Scene::new(test) else { return };
    let (run, gate) = scene.start_and_hold().await;
    strike(&scene);
    gate.open();
    let error = run.fails().await;
    assert!(codes.contains(&number(&error)), "{error:?}");
    assert!(!error.message.is_empty());
    scene.assert_clean_and_clone_again().await;
}

fn kill(host: &Host, pattern: &str) {
    assert!(fault::kill(host, pattern).unwrap() > 0, "there is no {pattern}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_agent_is_killed() {
    strike("the_target_agent_is_killed", &[1002, 1006], |scene| kill(&scene.beta, "kvm-clone-agent control")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_agent_is_killed_at_the_target() {
    strike("a_lane_agent_is_killed_at_the_target", &[1006], |scene| kill(&scene.beta, "kvm-clone-agent lane")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_agent_is_killed() {
    strike("the_source_agent_is_killed", &[1002, 1006], |scene| kill(&scene.alpha, "kvm-clone-agent control")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_agent_is_killed_at_the_source() {
    strike("a_lane_agent_is_killed_at_the_source", &[1006], |scene| kill(&scene.alpha, "kvm-clone-agent lane")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ssh_connection_to_the_target_is_killed() {
    strike("the_ssh_connection_to_the_target_is_killed", &[1002, 1006], |scene| kill(&scene.beta, "sshd: root@")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_agent_that_hangs_is_ended_by_force() {
    let Some(scene) = Scene::new("a_lane_agent_that_hangs_is_ended_by_force") else { return };
    let (run, _gate) = scene.start_and_hold().await;
    assert!(fault::freeze(&scene.beta, "kvm-clone-agent lane").unwrap() > 0);
    run.cancel.cancel();
    assert_eq!(number(&run.fails().await), 1008);
    scene.assert_clean_and_clone_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_link_that_heals_is_undone() {
    strike("a_cut_link_that_heals_is_undone", &[1002, 1006, 1010], |scene| {
        scene.lab.cut(&scene.beta).unwrap();
        // The target's agent notices by itself and ends everything there; then the link is mended.
        fault::wait_gone(&scene.beta, "kvm-clone-agent", SILENCE * 4).unwrap();
        scene.lab.heal(&scene.beta).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_link_that_stays_cut_is_1015_and_says_what_is_left() {
    let Some(scene) = Scene::new("a_cut_link_that_stays_cut_is_1015_and_says_what_is_left") else { return };
    let (run, _gate) = scene.start_and_hold().await;
    scene.lab.cut(&scene.beta).unwrap();
    let error = run.fails().await;
    assert_eq!(number(&error), 1015, "{error:?}");
    assert_eq!(error.context["host"], "beta");
    assert!(["1002", "1006", "1010"].contains(&error.context["cause_code"].as_str()), "{error:?}");
    assert!(error.help.iter().any(|help| help.contains("kvm-clone recover beta")), "{error:?}");
    let staged = scene.beta.shell(&format!("ls {IMAGES}/.kvm-clone-*")).unwrap();
    assert!(staged.lines().all(|file| error.context["left"].contains(file)), "{staged} is not in {error:?}");

    fault::wait_gone(&scene.beta, "kvm-clone-agent", SILENCE * 4).unwrap();
    assert_eq!(scene.assert_promise(), Now::Old);
    scene.lab.heal(&scene.beta).unwrap();
    assert_eq!(scene.recover("journal.db").await.len(), 1);
    scene.assert_clean_and_clone_again().await;
}

/// The update of a package restarts the daemon; that is no reason to throw hours of copying away.
#[tokio::test(flavor = "multi_thread")]
async fn libvirt_may_be_restarted_on_both_hosts_during_the_copy() {
    let Some(scene) = Scene::new("libvirt_may_be_restarted_on_both_hosts_during_the_copy") else { return };
    let (run, gate) = scene.start_and_hold().await;
    for host in [&scene.alpha, &scene.beta] {
        kill(host, "libvirtd");
        fault::wait_gone(host, "libvirtd", PATIENCE).unwrap();
        host.shell("rm -f /run/libvirtd.pid; libvirtd -d >/dev/null 2>&1 </dev/null").unwrap();
        oracle::wait_for("libvirtd", || host.exec(&["virsh", "-q", "version"]).is_ok());
    }
    gate.open();
    let result = run.end().await.unwrap();
    assert!(!result.warnings.iter().any(|warning| warning.contains("pool")), "{:?}", result.warnings);
    assert_eq!(scene.assert_promise(), Now::New);
    scene.assert_nothing_of_ours(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_started_is_not_hindered_and_the_copy_undone() {
    let test = "a_source_that_is_started_is_not_hindered_and_the_copy_undone";
    let Some(scene) = Scene::new(test) else { return };
    let (run, gate) = scene.start_and_hold().await;
    scene.source.start().unwrap();
    let error = run.fails().await;
    assert_eq!(number(&error), 1014, "{error:?}");
    assert_eq!(scene.source.state().unwrap(), "running");
    gate.open();
    scene.source.destroy().unwrap();
    scene.assert_clean_and_clone_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_started_and_stopped_again_is_noticed() {
    let test = "a_source_that_was_started_and_stopped_again_is_noticed";
    let Some(mut scene) = Scene::new(test) else { return };
    let (run, gate) = scene.start_and_hold().await;
    let disk = scene.alpha.path(&scene.source.disks()[1].path);
    let image = std::fs::OpenOptions::new().write(true).open(disk).unwrap();
    image.write_all_at(b"x", 5 * MIB).unwrap();
    drop(image);
    gate.open();
    let error = run.fails().await;
    assert_eq!((number(&error), error.context["disk"].as_str()), (1014, "vdb"), "{error:?}");
    scene.alpha_before = State::of(&scene.alpha);
    scene.assert_clean_and_clone_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_file_at_the_final_path_stays_and_the_copy_is_refused() {
    let test = "a_foreign_file_at_the_final_path_stays_and_the_copy_is_refused";
    let Some(mut scene) = Scene::new(test) else { return };
    let (run, gate) = scene.start_and_hold().await;
    // The second disk's: the first one has its name already when this is noticed.
    let path = format!("{IMAGES}/web1_clone-vdb.img");
    std::fs::write(scene.beta.path(&path), b"somebody's").unwrap();
    let mut with_foreign = scene.beta_before.clone();
    with_foreign.files = State::of(&scene.beta).files;
    gate.open();
    let error = run.fails().await;
    assert_eq!((number(&error), error.context["path"].as_str()), (1004, path.as_str()), "{error:?}");
    assert_eq!(State::of(&scene.beta), with_foreign);
    scene.beta_before = with_foreign;
    scene.assert_clean();
    // And it is refused before anything is copied from now on.
    assert_eq!(number(&scene.clone().await.unwrap_err()), 1004);
    scene.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_machine_that_takes_the_name_stays_and_the_copy_is_refused() {
    let test = "a_foreign_machine_that_takes_the_name_stays_and_the_copy_is_refused";
    let Some(mut scene) = Scene::new(test) else { return };
    let (run, gate) = scene.start_and_hold().await;
    let disk = DiskSpec::raw("vda", MIB).at("/srv/theirs.img");
    define_machine(&scene.beta, MachineSpec::named("web1_clone").disk(disk)).unwrap();
    scene.remember();
    gate.open();
    assert_eq!(number(&run.fails().await), 1004);
    scene.assert_clean();
}
