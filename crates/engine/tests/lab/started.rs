//! Somebody starts the replica while its new point takes the place of the old one: it runs from the one or from the other, and what its
//! guest writes is lost nowhere.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{number, spec};
use crate::oracle::strike::struck_while;
use crate::standby::{NAME, Standby, discarding, images};
use kvm_clone_core::Error;
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::SyncRequest;
use kvm_clone_engine::{Action, Moment, Recovery, Then};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_started_around_the_commit_holds_the_old_point_or_the_new_one() {
    let Some(standby) = Standby::new("a_replica_that_is_started_around_the_commit").await else { return };
    for (round, micros) in [0, 2_000, 6_000, 10_000, 15_000, 25_000].into_iter().enumerate() {
        let about = format!("{micros} µs after the commit was begun");
        let old = standby.replica_contents();
        standby.write("vda", &[&format!("write -P {} 1M 256k", round + 1)]);
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
        let outcome = struck_while(prepared, (Step::Define, Moment::Intended), start).await;
        let begun = starting.lock().unwrap().take().unwrap();
        let runs = begun.join().unwrap();
        if let Err(error) = &outcome {
            assert!(matches!(number(error), 1014 | 1011), "{about}: {error:?}");
        }
        if runs {
            standby.beta.machine(NAME).unwrap().destroy().unwrap();
        }
        standby.recover(&about).await;
        let now = standby.replica_contents();
        let expected = if outcome.is_ok() { standby.source_contents() } else { old };
        assert_eq!(now, expected, "{about}: started: {runs}, {outcome:?}");
        standby.sync_with(&SyncRequest::default(), &discarding()).await.unwrap();
        standby.assert_synced();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_started_from_its_overlay_keeps_it_until_it_is_stopped() {
    let Some(standby) = Standby::new("a_replica_that_was_started_from_its_overlay").await else { return };
    standby.write("vda", &["write -P 9 1M 256k"]);
    let prepared = standby.prepare(&SyncRequest::default()).await.unwrap();
    let beta = standby.beta.clone();
    let start = move || {
        beta.machine(NAME).unwrap().start().unwrap();
        Ok(Then::Go)
    };
    let result = struck_while(prepared, (Step::Settle, Moment::Intended), start).await.unwrap();
    let said = result.warnings.join("\n");
    assert!(said.contains("in use") || said.contains("runs from the overlay"), "{said}");
    let runs_from = standby.beta.exec(&["virsh", "-q", "domblklist", NAME]).unwrap();
    for (path, _) in images(&standby.beta, NAME).values() {
        assert!(runs_from.contains(path.as_str()), "{path} is not what it runs from: {runs_from}");
        standby.beta.exec(&["test", "-e", path]).unwrap();
    }
    standby.beta.machine(NAME).unwrap().destroy().unwrap();
    standby.recover("the machine is stopped").await;
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_definition_is_gone_while_it_is_merged_is_not_undone() {
    let Some(standby) = Standby::new("a_replica_whose_definition_is_gone_while_it_is_merged").await else { return };
    standby.write("vda", &["write -P 9 1M 256k"]);
    let prepared = standby.prepare(&SyncRequest::default()).await.unwrap();
    let fail = || Err(Error::transfer("the merge was cut short"));
    let result = struck_while(prepared, (Step::Flatten, Moment::Acted), fail).await.unwrap();
    assert!(result.warnings.iter().any(|warning| warning.contains("cut short")), "{:?}", result.warnings);
    let xml = standby.beta.exec(&["virsh", "-q", "dumpxml", "--inactive", NAME]).unwrap();
    std::fs::write(standby.beta.path("/root/standby.xml"), xml).unwrap();
    standby.beta.exec(&["virsh", "-q", "undefine", NAME]).unwrap();

    let client = standby.client().await;
    let left = client.recover(&spec("beta"), Recovery::Act).await.unwrap();
    let error = left[0].error.as_ref().unwrap();
    assert_eq!((number(error), left[0].action), (1015, Action::OutOfService), "{left:?}");
    standby.beta.exec(&["virsh", "-q", "define", "/root/standby.xml"]).unwrap();
    standby.recover("it is defined again").await;
    standby.assert_synced();
}
