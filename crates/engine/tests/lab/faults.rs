//! Processes are killed, connections cut and things changed while a machine is copied: all is undone, and said.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::common::{MIB, Seen, number, silent, spec};
use crate::oracle::{Gate, IMAGES, Now, PATIENCE, SILENCE, Scene, State, at, clone_with_events};
use kvm_clone_core::event::{Event, Phase};
use kvm_clone_core::retry::RetryPolicy;
use kvm_clone_engine::{Client, CloneResult, CloneSettings, Recovery, retrying};
use kvm_clone_lab::{DiskSpec, Host, MachineSpec, define_machine, fault};
use tokio_util::sync::CancellationToken;

/// Orders of the controller that are under way when it gives them up must not come true after the undo.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_at_any_moment_leaves_all_or_nothing() {
    let Some(scene) = Scene::new("a_cancel_at_any_moment_leaves_all_or_nothing") else { return };
    let (run, _gate) = scene.start_and_hold().await;
    run.cancel.cancel();
    assert_eq!(number(&run.fails().await), 1008);
    scene.assert_clean();
    for (phase, micros) in [(Phase::Prepare, 0), (Phase::Prepare, 5000), (Phase::Copy, 500), (Phase::Finish, 0)]
        .into_iter()
        .chain([(Phase::Finish, 10_000), (Phase::Finish, 30_000), (Phase::Commit, 0)])
    {
        match cancel_after(&scene, phase, micros).await {
            Ok(_) => {
                assert_eq!(scene.assert_promise(), Now::New);
                scene.remove_clone();
            }
            Err(error) => assert_eq!(number(&error), 1008, "{phase:?} {micros}: {error:?}"),
        }
        scene.assert_clean();
    }
    scene.assert_clean_and_clone_again().await;
}

async fn cancel_after(scene: &Scene, phase: Phase, micros: u64) -> kvm_clone_core::Result<CloneResult> {
    let (client, cancel) = (scene.client().await, CancellationToken::new());
    let stop = cancel.clone();
    clone_with_events(&client, scene.request.clone(), at(phase, micros, move || stop.cancel()), cancel).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_agent_killed_at_any_moment_leaves_all_or_nothing() {
    let Some(scene) = Scene::new("a_target_agent_killed_at_any_moment_leaves_all_or_nothing") else { return };
    for (phase, micros) in [(Phase::Prepare, 5000), (Phase::Finish, 10_000), (Phase::Commit, 10_000), (Phase::Clean, 0)]
    {
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

/// Strikes while the copy is held midway, then expects an undone failure of one of these codes.
async fn strike(scene: &Scene, codes: &[u16], strike: impl FnOnce(&Scene)) {
    let (run, gate) = scene.start_and_hold().await;
    strike(scene);
    gate.open();
    let error = run.fails().await;
    assert!(codes.contains(&number(&error)), "{error:?}");
    scene.sweep().await;
    scene.assert_clean();
}

fn kill(host: &Host, pattern: &str) {
    assert!(fault::kill(host, pattern).unwrap() > 0, "there is no {pattern}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_during_the_copy_everything_is_undone() {
    let Some(scene) = Scene::new("whatever_is_killed_during_the_copy_everything_is_undone") else { return };
    for host in [&scene.alpha, &scene.beta] {
        strike(&scene, &[1006], |_| kill(host, "kvm-clone-agent lane")).await;
        strike(&scene, &[1002, 1006], |_| kill(host, "kvm-clone-agent control")).await;
        strike(&scene, &[1002, 1006], |_| kill(host, "sshd: root@")).await;
    }
    scene.assert_clean_and_clone_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_agent_that_hangs_is_ended_by_force() {
    let Some(scene) = Scene::new("a_lane_agent_that_hangs_is_ended_by_force") else { return };
    let (run, _gate) = scene.start_and_hold().await;
    assert!(fault::freeze(&scene.beta, "kvm-clone-agent lane").unwrap() > 0);
    run.cancel.cancel();
    assert_eq!(number(&run.fails().await), 1008);
    scene.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libvirt_that_hangs_keeps_no_agent() {
    let Some(scene) = Scene::new("a_libvirt_that_hangs_keeps_no_agent") else { return };
    let mut options = scene.options("journal.db");
    options.libvirt_timeout = Duration::from_secs(3);
    let client = Client::new(options).await.unwrap();
    let (source, target, request) = (spec("alpha"), spec("beta"), scene.request.clone());
    let prepared =
        client.prepare(&source, &target, &"web1".parse().unwrap(), request, Recovery::Act, silent()).await.unwrap();
    assert!(fault::freeze(&scene.beta, "libvirtd").unwrap() > 0);
    let ended = prepared.execute(&CloneSettings::default(), silent(), CancellationToken::new()).await;
    assert_eq!(number(&ended.unwrap_err()), 1010);
    drop(client);
    fault::wait_gone(&scene.beta, "kvm-clone-agent", PATIENCE).unwrap();
    fault::thaw(&scene.beta, "libvirtd").unwrap();
    scene.assert_clean_and_clone_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_link_that_heals_is_undone() {
    let Some(scene) = Scene::new("a_cut_link_that_heals_is_undone") else { return };
    strike(&scene, &[1002, 1006, 1010], |scene| {
        scene.lab.cut(&scene.beta).unwrap();
        // The target's agent notices by itself and ends everything there; then the link is mended.
        fault::wait_gone(&scene.beta, "kvm-clone-agent", PATIENCE).unwrap();
        scene.lab.heal(&scene.beta).unwrap();
    })
    .await;
    scene.assert_clean_and_clone_again().await;
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

    fault::wait_gone(&scene.beta, "kvm-clone-agent", PATIENCE).unwrap();
    assert_eq!(scene.assert_promise(), Now::Old);
    scene.lab.heal(&scene.beta).unwrap();
    assert_eq!(scene.recover("journal.db").await.len(), 1);
    scene.assert_clean_and_clone_again().await;
}

/// The source's agent, slow to notice that its link was cut, holds the machine's lock when the next try comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_link_was_cut_is_copied_by_the_next_try() {
    let Some(scene) = Scene::new("a_source_whose_link_was_cut_is_copied_by_the_next_try") else { return };
    let (gate, seen, cancel) = (Gate::after(4 * MIB), Seen::default(), CancellationToken::new());
    let (client, settings, name) = (scene.client().await, gate.settings(), "web1".parse().unwrap());
    let policy = RetryPolicy { attempts: 2, base_delay: Duration::from_millis(200), max_delay: SILENCE };
    let events = seen.sink();
    let clone = retrying(&policy, &events, &cancel, async |_| {
        let (alpha, beta) = (spec("alpha"), spec("beta"));
        let prepared = client.prepare(&alpha, &beta, &name, scene.request.clone(), Recovery::Act, seen.sink()).await?;
        prepared.execute(&settings, seen.sink(), cancel.clone()).await
    });
    let strike = async {
        gate.reached().await;
        assert!(fault::freeze(&scene.alpha, "kvm-clone-agent control").unwrap() > 0);
        scene.lab.cut(&scene.alpha).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.lab.heal(&scene.alpha).unwrap();
        tokio::time::sleep(SILENCE * 3).await;
        assert_ne!(crate::oracle::held_locks(&scene.alpha), "", "the next try met no lock");
        fault::thaw(&scene.alpha, "kvm-clone-agent control").unwrap();
        gate.open();
    };
    let (cloned, ()) = tokio::join!(clone, strike);
    cloned.unwrap();
    let tries = seen.0.lock().unwrap().iter().filter(|event| matches!(event, Event::Retry { .. })).count();
    assert_eq!(tries, 1);
    drop(client);
    assert_eq!(scene.assert_promise(), Now::New);
    scene.assert_nothing_of_ours(2);
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
        crate::oracle::wait_for("libvirtd", || host.exec(&["virsh", "-q", "version"]).is_ok());
    }
    gate.open();
    let result = run.end().await.unwrap();
    assert!(!result.warnings.iter().any(|warning| warning.contains("pool")), "{:?}", result.warnings);
    assert_eq!(scene.assert_promise(), Now::New);
    scene.assert_nothing_of_ours(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_does_not_stand_still_is_noticed_and_not_hindered() {
    let test = "a_source_that_does_not_stand_still_is_noticed_and_not_hindered";
    let Some(mut scene) = Scene::new(test) else { return };
    let (run, _gate) = scene.start_and_hold().await;
    scene.source.start().unwrap();
    let error = run.fails().await;
    assert_eq!(number(&error), 1014, "{error:?}");
    assert_eq!(scene.source.state().unwrap(), "running");
    scene.source.destroy().unwrap();
    scene.assert_clean();

    // Somebody wrote a byte and is gone again.
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
async fn what_appears_at_the_target_during_the_copy_stays_and_the_copy_is_refused() {
    let test = "what_appears_at_the_target_during_the_copy_stays_and_the_copy_is_refused";
    let Some(mut scene) = Scene::new(test) else { return };
    let (run, gate) = scene.start_and_hold().await;
    // The second disk's: the first one has its name already when this is noticed.
    let path = format!("{IMAGES}/web1_clone-vdb.img");
    std::fs::write(scene.beta.path(&path), b"somebody's").unwrap();
    scene.remember();
    gate.open();
    let error = run.fails().await;
    assert_eq!((number(&error), error.context["path"].as_str()), (1004, path.as_str()), "{error:?}");
    scene.assert_clean();
    // And it is refused before anything is copied from now on.
    assert_eq!(number(&scene.clone().await.unwrap_err()), 1004);
    scene.assert_clean();
    std::fs::remove_file(scene.beta.path(&path)).unwrap();
    scene.remember();

    let (run, gate) = scene.start_and_hold().await;
    let disk = DiskSpec::raw("vda", MIB).at("/srv/theirs.img");
    define_machine(&scene.beta, MachineSpec::named("web1_clone").disk(disk)).unwrap();
    scene.remember();
    gate.open();
    assert_eq!(number(&run.fails().await), 1004);
    scene.assert_clean();
}
