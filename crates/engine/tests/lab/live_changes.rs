//! What others do to a running machine while it is copied: refused as long as its point is held, noticed where it came before.

use std::time::Duration;

use std::sync::Arc;

use crate::common::{MIB, machines, number};
use crate::oracle::strike::struck;
use crate::oracle::{Gate, Now, Run, Scene, State, records, wait_for};
use futures_util::future::BoxFuture;
use kvm_clone_core::journal::Step;
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{Boundary, CloneResult, CloneSettings, Moment, Then};
use kvm_clone_lab::{Host, Machine, fault};

const RESIZE: &str = "virsh -q blockresize web1 vda 20M";
const SNAPSHOT: &str = "virsh -q snapshot-create-as web1 s1 --disk-only --no-metadata";
const BACKUP: &str = "virsh -q backup-begin web1 /root/backup.xml";
const MIGRATE: &str = "virsh -q migrate --live --persistent --copy-storage-all --unsafe web1 qemu+ssh://beta/system";

fn scene(test: &str) -> Option<Scene> {
    let scene = Scene::running(test)?;
    let xml = "<domainbackup mode='pull'><server transport='unix' socket='/run/other.sock'/></domainbackup>";
    std::fs::write(scene.alpha.path("/root/backup.xml"), xml).unwrap();
    Some(scene)
}

/// Records that the guest has told of.
fn wrote(machine: &Machine) -> u64 {
    20 * machine.console().matches("guest: wrote").count() as u64
}

fn in_background(host: &Host, command: &'static str) -> std::thread::JoinHandle<Result<(), String>> {
    let host = host.clone();
    std::thread::spawn(move || host.shell(command).map(drop).map_err(|error| error.to_string()))
}

/// qemu refuses at once, libvirt after it has waited for the end of the job for 30 s.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_point_is_held_others_are_refused_and_the_copy_is_that_point() {
    let Some(scene) = scene("while_a_point_is_held_others_are_refused") else { return };
    let gate = Gate::after(MIB);
    let run = scene.start(gate.settings()).await;
    gate.reached().await;
    let held = wrote(&scene.source);
    let tries = [RESIZE, SNAPSHOT, BACKUP, MIGRATE].map(|command| (command, in_background(&scene.alpha, command)));
    for (command, running) in tries {
        let refused = running.join().unwrap().expect_err(command);
        assert!(refused.contains("in use") || refused.contains("state change lock"), "{command}: {refused}");
    }
    assert!(wrote(&scene.source) > held + 40, "the guest goes on");
    gate.open();
    run.end().await.unwrap();
    assert_eq!(scene.assert_promise(), Now::New);
    let xml = scene.beta.exec(&["virsh", "-q", "dumpxml", "web1_clone"]).unwrap();
    let last = records::assert_one_point(scene.lab.dir(), &scene.beta, &xml);
    assert!(last <= held + 20, "record {last} came after the point, when {held} were told");
    scene.assert_nothing_of_ours(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_waits_for_our_job_gets_its_turn() {
    let Some(scene) = scene("a_snapshot_that_waits_for_our_job") else { return };
    let gate = Gate::after(MIB);
    let run = scene.start(gate.settings()).await;
    gate.reached().await;
    let snapshot = in_background(&scene.alpha, SNAPSHOT);
    std::thread::sleep(Duration::from_secs(1));
    assert!(!snapshot.is_finished(), "it waits");
    gate.open();
    run.end().await.unwrap();
    snapshot.join().unwrap().unwrap();
    let xml = scene.beta.exec(&["virsh", "-q", "dumpxml", "web1_clone"]).unwrap();
    scene.assert_whole(&xml);
    records::assert_goes_on(&scene.source);
    assert!(scene.alpha.exec(&["virsh", "-q", "domblklist", "web1"]).unwrap().contains("web1-vda.s1"));
}

/// A clone of whose source somebody makes something else after the plan, and before libvirt begins the job.
async fn changed_before_the_point(scene: &Scene, command: &'static str) -> Error {
    let alpha = scene.alpha.clone();
    let changed: Result<CloneResult> = struck(scene, (Step::Point, Moment::Intended), move || {
        alpha.shell(command).unwrap();
        Ok(Then::Go)
    })
    .await;
    let error = changed.expect_err(command);
    assert!(!error.help.is_empty(), "{error:?}");
    assert!(!machines(&scene.beta).contains(&"web1_clone".to_owned()), "{command}");
    scene.assert_nothing_of_ours(0);
    error
}

async fn assert_copied(scene: &mut Scene) {
    scene.remember();
    scene.clone().await.unwrap();
    assert_eq!(scene.assert_promise(), Now::New);
    scene.begin_again();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_before_the_point_is_noticed_and_undone() {
    let Some(mut scene) = scene("what_changes_before_the_point") else { return };
    for (command, expected, words) in
        [(RESIZE, 1014, "another size of disk vda"), (SNAPSHOT, 1014, "another image under disk vda, vdb, vdc")]
    {
        let error = changed_before_the_point(&scene, command).await;
        assert_eq!(number(&error), expected, "{command}: {error:?}");
        assert!(error.message.contains(words), "{error:?}");
        // The next copy is of what it is now.
        assert_copied(&mut scene).await;
    }
    let error = changed_before_the_point(&scene, BACKUP).await;
    assert_eq!(number(&error), 1011, "{error:?}");
    let job = || scene.alpha.exec(&["virsh", "-q", "domjobinfo", "web1"]).unwrap();
    assert!(job().contains("Backup"), "somebody else's job goes on");
    scene.alpha.exec(&["virsh", "-q", "domjobabort", "web1"]).unwrap();
    wait_for("the end of the job", || job().contains("None"));
    assert_copied(&mut scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_moves_away_before_the_point_is_no_copy() {
    let Some(scene) = scene("a_machine_that_moves_away") else { return };
    for disk in scene.source.disks() {
        let (format, size) = (disk.format.name(), disk.size.to_string());
        scene.beta.exec(&["qemu-img", "create", "-q", "-f", format, &disk.path, &size]).unwrap();
    }
    let error = changed_before_the_point(&scene, MIGRATE).await;
    assert_eq!(number(&error), 1014, "{error:?}");
    assert_eq!(scene.beta.machine("web1").unwrap().state().unwrap(), "running");
    assert_eq!(scene.source.state().unwrap(), "shut off");
}

const PROCESS: &str = "guest=web1";

/// Right before libvirt is asked for the job, the machine's process hangs, and a call that waits for it has the machine.
#[derive(Debug)]
struct Busy(Host);

impl Boundary for Busy {
    fn pass(&self, step: Step, moment: Moment) -> BoxFuture<'_, Result<Then>> {
        if (step, moment) == (Step::Point, Moment::Intended) {
            tokio::task::block_in_place(|| {
                assert!(fault::freeze(&self.0, PROCESS).unwrap() > 0);
                drop(in_background(&self.0, "virsh -q qemu-monitor-command web1 --hmp 'info status'"));
                std::thread::sleep(Duration::from_millis(500));
            });
        }
        Box::pin(async { Ok(Then::Go) })
    }
}

/// A clone whose job libvirt has been asked for, and keeps waiting behind another call.
async fn start_behind_another_call(scene: &Scene) -> Run {
    let settings = CloneSettings { boundary: Arc::new(Busy(scene.alpha.clone())), ..CloneSettings::default() };
    let run = scene.start(settings).await;
    let notes = || scene.alpha.shell("ls /var/lib/kvm-clone/points 2>/dev/null || true").unwrap();
    wait_for("the note of the point", || notes().contains(".json"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    run
}

/// The process goes on, and libvirt begins what it was asked for.
async fn assert_no_job_stays(scene: &Scene, run: Run) -> Error {
    assert!(!run.has_ended(), "it ended while a job could still come up");
    assert!(fault::thaw(&scene.alpha, PROCESS).unwrap() > 0);
    let error = run.fails().await;
    scene.sweep().await;
    scene.assert_clean();
    std::thread::sleep(Duration::from_secs(2));
    let job = scene.alpha.exec(&["virsh", "-q", "domjobinfo", "web1"]).unwrap();
    assert!(job.contains("None"), "{job}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_comes_up_after_the_copy_was_stopped_is_ended() {
    let Some(scene) = scene("a_job_that_comes_up_after_the_copy_was_stopped") else { return };
    let run = start_behind_another_call(&scene).await;
    run.cancel.cancel();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(number(&assert_no_job_stays(&scene, run).await), 1008);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_comes_up_after_the_controller_was_lost_is_ended_under_the_lock() {
    let Some(scene) = scene("a_job_that_comes_up_after_the_controller_was_lost") else { return };
    let run = start_behind_another_call(&scene).await;
    scene.lab.cut(&scene.alpha).unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    scene.lab.heal(&scene.alpha).unwrap();
    assert_ne!(crate::oracle::held_locks(&scene.alpha), "", "the next operation is let in");
    let error = assert_no_job_stays(&scene, run).await;
    assert!([1002, 1006, 1009, 1010].contains(&number(&error)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_source_that_is_lost_the_target_is_cleaned_and_only_the_source_is_named() {
    let Some(scene) = scene("of_a_source_that_is_lost_the_target_is_cleaned") else { return };
    let gate = Gate::after(MIB);
    let run = scene.start(gate.settings()).await;
    gate.reached().await;
    scene.alpha.halt().unwrap();
    gate.open();
    let error = run.fails().await;
    assert_eq!(number(&error), 1015, "{error:?}");
    assert_eq!(
        (error.context["host"].as_str(), error.context["left"].as_str()),
        ("alpha", "a backup job on machine web1")
    );
    let recover: Vec<_> = error.help.iter().filter(|help| help.contains("kvm-clone recover")).collect();
    assert!(matches!(recover.as_slice(), [help] if help.contains("recover alpha")), "{error:?}");
    assert_eq!(State::of(&scene.beta), scene.beta_before);
    crate::common::assert_nothing_left(&scene.beta);
    assert_eq!(crate::oracle::held_locks(&scene.beta), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_target_that_is_lost_the_source_is_cleaned_and_only_the_target_is_named() {
    let Some(scene) = scene("of_a_target_that_is_lost_the_source_is_cleaned") else { return };
    let gate = Gate::after(MIB);
    let run = scene.start(gate.settings()).await;
    gate.reached().await;
    scene.beta.halt().unwrap();
    gate.open();
    let error = run.fails().await;
    assert_eq!((number(&error), error.context["host"].as_str()), (1015, "beta"), "{error:?}");
    assert!(!error.context["left"].contains("backup job"), "{error:?}");
    let job = scene.alpha.exec(&["virsh", "-q", "domjobinfo", "web1"]).unwrap();
    assert!(job.contains("None"), "{job}");
    scene.assert_source_unharmed();
}
