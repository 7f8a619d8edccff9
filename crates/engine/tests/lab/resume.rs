//! What was interrupted goes on: nothing that is there is sent again, and nothing that is there is believed.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{MIB, number, silent, spec};
use crate::oracle::child::Task;
use crate::oracle::strike::{moments, sync_moments};
use crate::oracle::{Gate, IMAGES, Now, Scene, State, assert_boots};
use crate::standby::Standby;
use futures_util::future::BoxFuture;
use kvm_clone_core::journal::Step;
use kvm_clone_core::retry::RetryPolicy;
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{
    Boundary, Client, CloneResult, CloneSettings, Kept, Moment, Recovery, Resumed, Then, Way, retrying,
};
use kvm_clone_lab::{DiskSpec, FsKind, Host, HostSpec, MachineSpec, define_machine, fault};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What the disks of [`Scene::new`] hold.
const DATA: u64 = 18 * MIB;

/// The operation whose marker stands on a host.
fn interrupted(host: &Host) -> Uuid {
    let names = host.shell("ls /var/lib/kvm-clone/operations").unwrap();
    let ids: Vec<Uuid> = names.lines().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
    assert_eq!(ids.len(), 1, "{names}");
    ids[0]
}

/// Bytes that staging images take.
fn staged(host: &Host) -> u64 {
    let kib = host.shell(&format!("du -c {IMAGES}/.kvm-clone-* | tail -1 | cut -f1")).unwrap();
    kib.trim().parse::<u64>().unwrap() * 1024
}

/// The staging image of a disk.
fn staging(host: &Host, disk: &str) -> std::path::PathBuf {
    let path = host.shell(&format!("ls {IMAGES}/.kvm-clone-*-{disk}.staging")).unwrap();
    host.path(path.trim())
}

async fn resume_with(client: &Client, operation: Uuid, settings: &CloneSettings) -> Result<Resumed> {
    client.resume(operation, settings, silent(), CancellationToken::new()).await
}

async fn resume(client: &Client, operation: Uuid) -> Result<Resumed> {
    resume_with(client, operation, &CloneSettings::default()).await
}

fn copied(resumed: Result<Resumed>) -> CloneResult {
    match resumed.unwrap() {
        Resumed::Copied(result) => *result,
        Resumed::Finished(entry) => panic!("it stood already: {entry:?}"),
    }
}

/// A controller dies in the middle of the copy, with so much on its way.
fn killed_midway(scene: &Scene, bytes: u64) -> Uuid {
    let mut controller = Task::new(scene).gate_after(bytes).start();
    controller.says("midway");
    scene.await_staged_data();
    controller.kill();
    scene.await_dead_man();
    assert_eq!(scene.assert_promise(), Now::Old);
    interrupted(&scene.beta)
}

/// The clone stands, and nothing was sent that was there.
fn assert_resumed(scene: &Scene, result: &CloneResult, there: u64) {
    assert_eq!(scene.assert_promise(), Now::New);
    scene.assert_nothing_of_ours(2);
    assert!(result.resumed && result.way == Way::Full, "{result:?}");
    // Tables and headers of the images are no content.
    assert!(result.bytes_kept + MIB >= there && result.bytes_kept >= MIB, "{} of {there}", result.bytes_kept);
    assert!(result.bytes_transferred + result.bytes_kept < DATA + MIB, "{result:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_whose_controller_was_killed_goes_on() {
    let Some(scene) = Scene::new("a_clone_whose_controller_was_killed_goes_on") else { return };
    // In the first disk, a qcow2 image; and in the second one, a raw file.
    for bytes in [4 * MIB, 15 * MIB] {
        let operation = killed_midway(&scene, bytes);
        let there = staged(&scene.beta);
        let client = scene.client_with("child.db").await;
        let result = copied(resume(&client, operation).await);
        assert_eq!(result.operation_id, operation);
        assert_resumed(&scene, &result, there);
        assert_boots(&scene.beta.machine("web1_clone").unwrap());
        assert_eq!(number(&resume(&client, operation).await.unwrap_err()), 1007, "it is complete");
        scene.remove_clone();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_is_not_believed() {
    let Some(scene) = Scene::new("what_is_staged_is_not_believed") else { return };
    let operation = killed_midway(&scene, 15 * MIB);
    let change = |disk: &str, offset: u64| {
        let file = OpenOptions::new().write(true).open(staging(&scene.beta, disk)).unwrap();
        file.write_all_at(&[0x5a; 700], offset).unwrap();
    };
    // Data of a guest in the one; in the other what was data, and what is a hole at the source.
    change("vda", 4 * 65536 + 1000);
    change("vdb", 1000);
    change("vdb", 22 * MIB + 300);
    let result = copied(resume(&scene.client_with("child.db").await, operation).await);
    assert!(result.bytes_kept > MIB, "{result:?}");
    assert_eq!(scene.assert_promise(), Now::New);
    scene.assert_nothing_of_ours(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_have_their_final_names_and_owner_are_taken_back() {
    let test = "images_that_have_their_final_names_and_owner_are_taken_back";
    let Some(scene) = Scene::on(test, HostSpec::named("beta").qemu_unprivileged()) else { return };
    let mut controller = Task::new(&scene).hold_at("commit").start();
    controller.says("held");
    controller.kill();
    scene.await_dead_man();
    let owner = |file: &str| scene.beta.shell(&format!("stat -c %U {IMAGES}/{file}")).unwrap();
    let before = owner("web1_clone-vda.qcow2");
    assert_ne!(before.trim(), "root");
    let result = copied(resume(&scene.client_with("child.db").await, interrupted(&scene.beta)).await);
    assert!(result.bytes_kept >= DATA && result.bytes_transferred < MIB, "{result:?}");
    assert_eq!(scene.assert_promise(), Now::New);
    assert_eq!(owner("web1_clone-vda.qcow2"), before);
    scene.assert_nothing_of_ours(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_became_a_disk_of_another_machine_is_not_taken_back() {
    let test = "an_image_that_became_a_disk_of_another_machine_is_not_taken_back";
    let Some(mut scene) = Scene::new(test) else { return };
    let mut controller = Task::new(&scene).hold_at("commit").start();
    controller.says("held");
    controller.kill();
    scene.await_dead_man();
    let image = format!("{IMAGES}/web1_clone-vda.qcow2");
    let disk = DiskSpec::qcow2("vda", 64 * MIB).at(&image).existing();
    define_machine(&scene.beta, MachineSpec::named("rescued").disk(disk)).unwrap();
    scene.remember();
    let (client, operation) = (scene.client_with("child.db").await, interrupted(&scene.beta));
    let error = resume(&client, operation).await.unwrap_err();
    assert_eq!((number(&error), error.context["vm"].as_str()), (1014, "rescued"), "{error:?}");
    assert!(kvm_clone_engine::is_resumable(&error), "{error:?}");
    assert_eq!(State::of(&scene.beta), scene.beta_before, "nothing was touched");
    // As the error says: its disk stays, and the other one, which is nobody's, goes.
    scene.recover("child.db").await;
    let now = State::of(&scene.beta);
    assert_eq!(now.files.get(&image), scene.beta_before.files.get(&image));
    assert!(!now.files.contains_key(&format!("{IMAGES}/web1_clone-vdb.img")), "{now:#?}");
    assert_eq!(now.machines, scene.beta_before.machines);
    scene.assert_nothing_of_ours(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_counts_as_room() {
    let test = "what_is_staged_counts_as_room";
    let Some(scene) = Scene::new(test) else { return };
    scene.beta.small_filesystem(IMAGES, FsKind::Ext4, 40 * MIB).unwrap();
    let operation = killed_midway(&scene, 15 * MIB);
    // Less than the whole copy needs, with its margin.
    let free = "df --output=avail -B1 /var/lib/libvirt/images | tail -1";
    let free: u64 = scene.beta.shell(free).unwrap().trim().parse().unwrap();
    assert!(free < DATA, "{free}");
    copied(resume(&scene.client_with("child.db").await, operation).await);
    assert_eq!(scene.assert_promise(), Now::New);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_of_no_use_begins_anew() {
    let Some(scene) = Scene::new("an_image_that_is_of_no_use_begins_anew") else { return };
    let operation = killed_midway(&scene, 15 * MIB);
    let of = |disk: &str| OpenOptions::new().write(true).open(staging(&scene.beta, disk)).unwrap();
    of("vda").write_all_at(b"no qcow2 image", 0).unwrap();
    of("vdb").set_len(MIB).unwrap();
    let result = copied(resume(&scene.client_with("child.db").await, operation).await);
    assert_eq!(result.bytes_kept, 0);
    assert_eq!(result.warnings.iter().filter(|warning| warning.contains("begins anew")).count(), 2, "{result:?}");
    assert_eq!(scene.assert_promise(), Now::New);
    scene.assert_nothing_of_ours(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changed_meanwhile_is_copied_as_it_is() {
    let Some(mut scene) = Scene::new("a_source_that_changed_meanwhile_is_copied_as_it_is") else { return };
    let operation = killed_midway(&scene, 15 * MIB);
    let writes = ["write -P 7 0 128k", "write -z 6M 1M", "write -P 8 40M 64k"];
    crate::standby::write(&scene.alpha, "web1", "vda", &writes);
    crate::standby::write(&scene.alpha, "web1", "vdb", &["write -z 0 1M", "write -P 9 2M 64k"]);
    scene.remember();
    let result = copied(resume(&scene.client_with("child.db").await, operation).await);
    assert!(result.bytes_kept > MIB, "{result:?}");
    assert_eq!(scene.assert_promise(), Now::New);
    scene.assert_nothing_of_ours(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_of_the_target_it_goes_on() {
    let test = "after_a_power_cut_of_the_target_it_goes_on";
    let Some(scene) = Scene::on_what_was_synced(test) else { return };
    for bytes in [4 * MIB, 15 * MIB] {
        let mut controller = Task::new(&scene).gate_after(bytes).start();
        controller.says("midway");
        scene.await_staged_data();
        // It would undo all as soon as the target is back.
        controller.signal("-STOP");
        scene.beta.crash().unwrap();
        controller.kill();
        scene.alpha.reboot().unwrap();
        assert_eq!(scene.assert_promise(), Now::Old);
        let operation = interrupted(&scene.beta);
        let result = copied(resume(&scene.client_with("child.db").await, operation).await);
        assert!(result.resumed, "{result:?}");
        // What it says to have done is durable, whatever was there before.
        scene.beta.crash().unwrap();
        assert_eq!(scene.assert_promise(), Now::New);
        scene.assert_nothing_of_ours(2);
        scene.remove_clone();
        scene.beta.exec(&["sync"]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_was_interrupted_at_any_moment_goes_on() {
    let Some(scene) = Scene::new("a_clone_that_was_interrupted_at_any_moment_goes_on") else { return };
    for (step, moment) in moments() {
        let mut controller = Task::new(&scene).die_at(step, moment).start();
        controller.says("dies");
        controller.kill();
        scene.await_dead_man();
        let client = scene.client_with("child.db").await;
        let before = scene.assert_promise_while_placing();
        if (step, moment) == (Step::Mark, Moment::Intended) || (step, moment) == (Step::Clean, Moment::Acted) {
            // It has made nothing yet, or has left nothing.
            client.recover(&spec("beta"), Recovery::Act).await.unwrap();
        } else {
            let resumed = resume(&client, interrupted(&scene.beta)).await;
            match resumed.unwrap_or_else(|error| panic!("{step} {moment:?}: {error:?}")) {
                Resumed::Copied(result) => {
                    assert_eq!(before, Now::Old, "{step} {moment:?}");
                    let whole = step > Step::Copy || (step, moment) == (Step::Copy, Moment::Acted);
                    assert!(!whole || result.bytes_kept >= DATA, "{step} {moment:?}: {result:?}");
                }
                Resumed::Finished(_) => assert_eq!(before, Now::New, "{step} {moment:?}"),
            }
            assert_eq!(scene.assert_promise(), Now::New, "{step} {moment:?}");
        }
        if scene.assert_promise() == Now::New {
            scene.assert_nothing_of_ours(2);
            scene.remove_clone();
        }
        scene.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_goes_on_and_the_old_machine_stays_until_then() {
    let test = "a_replacement_goes_on_and_the_old_machine_stays_until_then";
    let Some(mut scene) = Scene::new(test).map(Scene::replacing) else { return };
    for step in [Step::Copy, Step::Place, Step::Define] {
        let mut controller = Task::new(&scene).die_at(step, Moment::Acted).start();
        controller.says("dies");
        controller.kill();
        scene.await_dead_man();
        let before = scene.assert_promise_while_placing();
        assert_eq!(before, if step == Step::Define { Now::New } else { Now::Old });
        let resumed = resume(&scene.client_with("child.db").await, interrupted(&scene.beta)).await.unwrap();
        assert_eq!(matches!(resumed, Resumed::Finished(_)), before == Now::New);
        assert_eq!(scene.assert_promise(), Now::New, "{step}");
        scene.assert_nothing_of_ours(2);
        scene.begin_again();
    }
}

/// A replica whose source has changed by more than what the gate lets pass.
async fn outdated(test: &str) -> Option<Standby> {
    let standby = Standby::new(test).await?;
    standby.write("vda", &["write -P 7 8M 6M", "write -z 1M 512k"]);
    standby.write("vdb", &["write -P 8 4M 2M"]);
    Some(standby)
}

async fn client_of_the_dead(standby: &Standby) -> Client {
    let mut options = crate::common::options(&standby.lab);
    options.journal = standby.lab.dir().join("child.db");
    options.silence = crate::oracle::SILENCE;
    Client::new(options).await.unwrap()
}

/// A controller dies in the middle of a sync, having staged more than a mebibyte.
fn sync_killed_midway(standby: &Standby) -> Uuid {
    let mut controller = Task::in_lab(&standby.lab).sync().gate().start();
    controller.says("midway");
    crate::oracle::wait_for("data in an overlay", || staged(&standby.beta) > MIB);
    controller.kill();
    standby.await_dead_man();
    interrupted(&standby.beta)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_whose_controller_was_killed_goes_on_in_its_overlays() {
    let test = "a_sync_whose_controller_was_killed_goes_on_in_its_overlays";
    let Some(standby) = outdated(test).await else { return };
    let old = standby.replica_contents();
    let operation = sync_killed_midway(&standby);
    assert_eq!(standby.replica_contents(), old);
    // The source goes on, too: what was staged of it is not right any more, and something else is.
    standby.write("vda", &["write -P 9 8M 256k", "write -z 9M 256k", "write -P 3 30M 64k"]);
    let there = staged(&standby.beta);
    let result = copied(resume(&client_of_the_dead(&standby).await, operation).await);
    standby.assert_synced();
    assert!(result.resumed && result.way == Way::Compare, "{result:?}");
    assert!(result.bytes_kept + 2 * MIB >= there && result.bytes_kept >= MIB / 2, "{} of {there}", result.bytes_kept);
    assert!(result.bytes_transferred + result.bytes_kept < 9 * MIB, "{result:?}");
    // And the next one knows what is there.
    assert_eq!(standby.sync().await.unwrap().way, Way::Untouched);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_was_interrupted_at_any_moment_goes_on() {
    let Some(standby) = outdated("a_sync_that_was_interrupted_at_any_moment_goes_on").await else { return };
    for (round, (step, moment)) in sync_moments().enumerate() {
        standby.write("vda", &[&format!("write -P {} 2M 192k", round + 1)]);
        let mut controller = Task::in_lab(&standby.lab).sync().die_at(step, moment).start();
        controller.says("dies");
        controller.kill();
        standby.await_dead_man();
        if (step, moment) == (Step::Mark, Moment::Intended) {
            standby.sync().await.unwrap();
        } else if (step, moment) != (Step::Clean, Moment::Acted) {
            let resumed = resume(&client_of_the_dead(&standby).await, interrupted(&standby.beta)).await;
            let resumed = resumed.unwrap_or_else(|error| panic!("{step} {moment:?}: {error:?}"));
            let finished = step > Step::Define || (step, moment) == (Step::Define, Moment::Acted);
            assert_eq!(matches!(resumed, Resumed::Finished(_)), finished, "{step} {moment:?}");
        }
        standby.assert_synced();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_changed_meanwhile_is_not_gone_on_with() {
    let test = "a_replica_that_was_changed_meanwhile_is_not_gone_on_with";
    let Some(standby) = outdated(test).await else { return };
    let operation = sync_killed_midway(&standby);
    crate::standby::write(&standby.beta, crate::standby::NAME, "vdb", &["write -P 3 5M 64k"]);
    let changed = standby.replica_contents();
    let client = client_of_the_dead(&standby).await;
    let error = resume(&client, operation).await.unwrap_err();
    assert_eq!(number(&error), 1014, "{error:?}");
    assert_eq!(standby.replica_contents(), changed);
    // What was staged is still there, for recover.
    assert_eq!(client.recover(&spec("beta"), Recovery::Act).await.unwrap().len(), 1);
    assert_eq!(standby.replica_contents(), changed);
    assert_eq!(number(&resume(&client, operation).await.unwrap_err()), 1007);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_interrupted_is_not_resumed() {
    let Some(scene) = Scene::new("what_is_not_interrupted_is_not_resumed") else { return };
    let client = scene.client_with("child.db").await;
    let unknown = resume(&client, Uuid::now_v7()).await.unwrap_err();
    assert_eq!(number(&unknown), 1007, "{unknown:?}");
    // Somebody works on it.
    let mut controller = Task::new(&scene).gate().start();
    controller.says("midway");
    scene.await_staged_data();
    let operation = interrupted(&scene.beta);
    let locked = resume(&client, operation).await.unwrap_err();
    assert_eq!(number(&locked), 1011, "{locked:?}");
    controller.kill();
    scene.await_dead_man();
    // With another journal nobody knows how to go on.
    let other = scene.client_with("other.db").await;
    assert_eq!(number(&resume(&other, operation).await.unwrap_err()), 1007);
    other.recover(&spec("beta"), Recovery::Act).await.unwrap();
    drop(other);
    // The target says that it was undone; from then on the journal does.
    assert_eq!(number(&resume(&client, operation).await.unwrap_err()), 1014);
    assert_eq!(number(&resume(&client, operation).await.unwrap_err()), 1007);
    drop(client);
    scene.assert_clean_and_clone_again().await;
}

/// Fails for good when a step is to be done.
#[derive(Debug)]
struct Fails(Step);

impl Boundary for Fails {
    fn pass(&self, step: Step, moment: Moment) -> BoxFuture<'_, Result<Then>> {
        let fails = (step, moment) == (self.0, Moment::Intended);
        Box::pin(async move { if fails { Err(Error::verification("a test said so")) } else { Ok(Then::Go) } })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_or_is_stopped_after_it_went_on_is_undone() {
    let test = "what_fails_or_is_stopped_after_it_went_on_is_undone";
    let Some(scene) = Scene::new(test) else { return };
    for step in [Step::Mark, Step::Stage, Step::Finish] {
        let operation = killed_midway(&scene, 4 * MIB);
        let client = scene.client_with("child.db").await;
        let settings = CloneSettings { boundary: Arc::new(Fails(step)), ..CloneSettings::default() };
        let error = resume_with(&client, operation, &settings).await.unwrap_err();
        assert_eq!(number(&error), 1012, "{error:?}");
        drop(client);
        scene.assert_clean();
    }
    let operation = killed_midway(&scene, 4 * MIB);
    let client = scene.client_with("child.db").await;
    let (gate, cancel) = (Gate::after(MIB), CancellationToken::new());
    let (settings, stop) = (gate.settings(), cancel.clone());
    let stopping = async {
        gate.reached().await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(client.resume(operation, &settings, silent(), cancel), stopping);
    assert_eq!(number(&ended.unwrap_err()), 1008);
    drop(client);
    scene.assert_clean_and_clone_again().await;
}

/// Tries as the command does: what a try has left is for the next one.
async fn tried(scene: &Scene, first: &CloneSettings, attempts: u32) -> Result<CloneResult> {
    let client = scene.client().await;
    let policy = RetryPolicy { attempts, base_delay: Duration::from_millis(500), max_delay: Duration::from_secs(2) };
    let mut kept = Kept::default();
    let (events, cancel) = (silent(), CancellationToken::new());
    let ended = retrying(&policy, &events, &cancel, async |last| {
        let settings = CloneSettings { keep_staging: !last, ..first.clone() };
        kept.note(match kept.operation() {
            Some(operation) => {
                let settings = CloneSettings { keep_staging: !last, ..CloneSettings::default() };
                resume_with(&client, operation, &settings).await.map(|resumed| copied(Ok(resumed)))
            }
            None => crate::common::clone_with(&client, "alpha", "beta", "web1", scene.request.clone(), &settings).await,
        })
    });
    let ended = ended.await;
    kept.give_up(&client, ended).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_cut_for_a_while_is_no_new_beginning() {
    let test = "a_network_that_is_cut_for_a_while_is_no_new_beginning";
    let Some(scene) = Scene::new(test) else { return };
    let gate = Gate::after(15 * MIB);
    let settings = gate.settings();
    let cutting = async {
        gate.reached().await;
        scene.await_staged_data();
        let there = staged(&scene.beta);
        scene.lab.cut(&scene.beta).unwrap();
        // Until the target's agents have taken their controller for gone.
        tokio::task::block_in_place(|| fault::wait_gone(&scene.beta, "kvm-clone-agent", crate::oracle::PATIENCE))
            .unwrap();
        scene.lab.heal(&scene.beta).unwrap();
        there
    };
    let (result, there) = tokio::join!(tried(&scene, &settings, 10), cutting);
    assert_resumed(&scene, &result.unwrap(), there);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_there_is_no_further_try_nothing_is_left() {
    let Some(scene) = Scene::new("when_there_is_no_further_try_nothing_is_left") else { return };
    let gate = Gate::after(4 * MIB);
    let settings = gate.settings();
    let killing = async {
        gate.reached().await;
        scene.await_staged_data();
        fault::kill(&scene.beta, "kvm-clone-agent").unwrap();
        gate.open();
    };
    let (ended, ()) = tokio::join!(tried(&scene, &settings, 1), killing);
    let error = ended.unwrap_err();
    assert!(error.transient && !error.context.contains_key("resumable"), "{error:?}");
    scene.sweep().await;
    scene.assert_clean();
    // One that was kept for a try that never comes is undone as well.
    let gate = Gate::after(4 * MIB);
    let settings = CloneSettings { keep_staging: true, ..gate.settings() };
    let client = scene.client().await;
    let cloning = crate::common::clone_with(&client, "alpha", "beta", "web1", scene.request.clone(), &settings);
    let killing = async {
        gate.reached().await;
        scene.await_staged_data();
        fault::kill(&scene.beta, "kvm-clone-agent").unwrap();
        gate.open();
    };
    let (ended, ()) = tokio::join!(cloning, killing);
    let mut kept = Kept::default();
    let ended = kept.note(ended);
    assert_eq!(kept.operation(), Some(interrupted(&scene.beta)));
    kept.give_up(&client, ended).await.unwrap_err();
    drop(client);
    scene.assert_clean_and_clone_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_goes_on_towards_a_new_point_and_says_so() {
    let test = "a_running_machine_goes_on_towards_a_new_point_and_says_so";
    let Some(scene) = Scene::running(test) else { return };
    let mut controller = Task::new(&scene).gate().start();
    controller.says("midway");
    scene.await_staged_data();
    controller.kill();
    scene.await_dead_man();
    assert_eq!(scene.assert_promise(), Now::Old);
    let operation = interrupted(&scene.beta);
    let result = copied(resume(&scene.client_with("child.db").await, operation).await);
    assert!(result.warnings.iter().any(|warning| warning.contains("new one")), "{:?}", result.warnings);
    assert_eq!(scene.assert_promise(), Now::New);
    scene.assert_nothing_of_ours(3);
}
