//! Somebody starts the replica while its new point takes the place of the old one: it runs from the one or from the other, and what its
//! guest writes is lost nowhere.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{number, spec};
use crate::oracle::strike::struck_while;
use crate::standby::{NAME, Standby, discarding, image_contents, images};
use kvm_clone_core::Error;
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::SyncRequest;
use kvm_clone_engine::{Action, CloneResult, Moment, Prepared, Recovery, Then};
use kvm_clone_lab::{DiskSpec, MachineSpec, define_machine};

/// The replica is started so long after a step was begun; says whether it runs, and how the sync ended.
async fn start_after(standby: &Standby, step: Step, micros: u64) -> (bool, Result<CloneResult, Error>) {
    let prepared = standby.prepare(&SyncRequest::default()).await.unwrap();
    let (beta, starting) = (standby.beta.clone(), Arc::new(Mutex::new(None)));
    let begun = Arc::clone(&starting);
    let start = move || {
        let beta = beta.clone();
        let start = move || {
            std::thread::sleep(Duration::from_micros(micros));
            beta.machine(NAME).unwrap().start().is_ok()
        };
        *begun.lock().unwrap() = Some(std::thread::spawn(start));
        Ok(Then::Go)
    };
    let outcome = struck_while(prepared, (step, Moment::Intended), start).await;
    let begun = starting.lock().unwrap().take().unwrap();
    (begun.join().unwrap(), outcome)
}

/// What runs is what the next start would run: nobody is left with a disk that no definition names.
fn assert_runs_from_its_definition(standby: &Standby, about: &str) {
    let runs_from = standby.beta.exec(&["virsh", "-q", "domblklist", NAME]).unwrap();
    for (path, _) in images(&standby.beta, NAME).values() {
        assert!(runs_from.contains(path.as_str()), "{about}: {path} is not what it runs from: {runs_from}");
        standby.beta.exec(&["test", "-e", path]).unwrap();
    }
}

async fn start_around(test: &str, step: Step, delays: &[u64]) {
    let Some(standby) = Standby::new(test).await else { return };
    for (round, micros) in delays.iter().enumerate() {
        let about = format!("{micros} µs after {step:?} was begun");
        let old = standby.replica_contents();
        standby.write("vda", &[&format!("write -P {} 1M 256k", round + 1)]);
        let (runs, outcome) = start_after(&standby, step, *micros).await;
        if let Err(error) = &outcome {
            assert!(matches!(number(error), 1014 | 1011), "{about}: {error:?}");
        }
        if runs {
            assert_runs_from_its_definition(&standby, &about);
            standby.beta.machine(NAME).unwrap().destroy().unwrap();
        }
        standby.recover(&about).await;
        let expected = if outcome.is_ok() { standby.source_contents() } else { old };
        assert_eq!(standby.replica_contents(), expected, "{about}: started: {runs}, {outcome:?}");
        standby.sync_with(&SyncRequest::default(), &discarding()).await.unwrap();
        standby.assert_synced();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_started_around_the_commit_holds_the_old_point_or_the_new_one() {
    let delays = [0, 2_000, 5_000, 10_000, 20_000];
    start_around("a_replica_that_is_started_around_the_commit", Step::Define, &delays).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_started_as_it_is_settled_keeps_what_it_runs_from() {
    start_around("a_replica_that_is_started_as_it_is_settled", Step::Settle, &[0, 1_000, 2_000, 4_000, 8_000]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_started_from_its_overlay_keeps_it_until_it_is_stopped() {
    let Some(standby) = Standby::new("a_replica_that_was_started_from_its_overlay").await else { return };
    let prepared = changed(&standby).await;
    let result = struck_while(prepared, (Step::Settle, Moment::Intended), start(&standby)).await.unwrap();
    let said = result.warnings.join("\n");
    assert!(said.contains("in use") || said.contains("keeps the images"), "{said}");
    assert_keeps_what_it_runs_from(&standby, "it was merged").await;
}

/// A sync of a source that has changed since.
async fn changed(standby: &Standby) -> Prepared {
    standby.write("vda", &["write -P 9 1M 256k"]);
    standby.prepare(&SyncRequest::default()).await.unwrap()
}

/// Until it is stopped; then it is recovered, and is what its source is.
async fn assert_keeps_what_it_runs_from(standby: &Standby, about: &str) {
    assert_runs_from_its_definition(standby, about);
    standby.beta.machine(NAME).unwrap().destroy().unwrap();
    standby.recover("the machine is stopped").await;
    standby.assert_synced();
}

fn start(standby: &Standby) -> impl Fn() -> Result<Then, Error> + Send + Sync + 'static {
    let beta = standby.beta.clone();
    move || {
        beta.machine(NAME).unwrap().start().unwrap();
        Ok(Then::Go)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_started_from_its_new_point_is_not_taken_back() {
    let Some(standby) = Standby::new("a_replica_that_was_started_from_its_new_point").await else { return };
    let prepared = changed(&standby).await;
    let start = start(&standby);
    let start_and_fail = move || start().and(Err(Error::transfer("struck")));
    let error = struck_while(prepared, (Step::Define, Moment::Acted), start_and_fail).await.unwrap_err();
    assert_eq!(number(&error), 1015, "{error:?}");
    assert_keeps_what_it_runs_from(&standby, "it was not taken back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_definition_is_gone_while_it_is_merged_is_not_undone() {
    let Some(standby) = Standby::new("a_replica_whose_definition_is_gone_while_it_is_merged").await else { return };
    let prepared = changed(&standby).await;
    // While it runs the merge comes to nothing; how far it came nobody knows.
    let result = struck_while(prepared, (Step::Flatten, Moment::Intended), start(&standby)).await.unwrap();
    assert!(result.warnings.iter().any(|warning| warning.contains("cleaning up failed")), "{:?}", result.warnings);
    standby.beta.machine(NAME).unwrap().destroy().unwrap();
    let xml = standby.beta.exec(&["virsh", "-q", "dumpxml", "--inactive", NAME]).unwrap();
    std::fs::write(standby.beta.path("/root/standby.xml"), xml).unwrap();
    standby.beta.exec(&["virsh", "-q", "undefine", NAME]).unwrap();

    let client = standby.client().await;
    let left = client.recover(&spec("beta"), Recovery::Act).await.unwrap();
    let error = left[0].error.as_ref().unwrap();
    assert_eq!((number(error), left[0].action), (1015, Action::Undo), "{left:?}");
    standby.beta.exec(&["virsh", "-q", "define", "/root/standby.xml"]).unwrap();
    standby.recover("it is defined again").await;
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn recover_merges_nothing_into_what_another_machine_came_to_stand_on() {
    let Some(standby) = Standby::new("recover_merges_nothing_into_what_another_machine").await else { return };
    let (base, format) = images(&standby.beta, NAME)["vda"].clone();
    let prepared = changed(&standby).await;
    struck_while(prepared, (Step::Flatten, Moment::Intended), start(&standby)).await.unwrap();
    standby.beta.machine(NAME).unwrap().destroy().unwrap();
    let linked = "/srv/linked.qcow2";
    standby.beta.exec(&["qemu-img", "create", "-q", "-f", "qcow2", "-F", &format, "-b", &base, linked]).unwrap();
    let disk = DiskSpec::qcow2("vda", 32 << 20).at(linked).existing();
    let other = define_machine(&standby.beta, MachineSpec::named("linked").disk(disk)).unwrap();
    let before = image_contents(&standby.beta, linked, "qcow2");

    let client = standby.client().await;
    let left = client.recover(&spec("beta"), Recovery::Act).await.unwrap();
    assert_eq!(number(left[0].error.as_ref().unwrap()), 1014, "{left:?}");
    assert_eq!(image_contents(&standby.beta, linked, "qcow2"), before);
    other.undefine().unwrap();
    standby.recover("nobody stands on it").await;
    standby.assert_synced();
}
