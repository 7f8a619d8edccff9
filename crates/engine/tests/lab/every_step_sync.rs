//! Every step of a sync, failed at every moment, in every way. Looked at through its definition and before any recovery, the
//! replica is the old point or the new one; `recover` does not change which, and leaves nothing of ours.

use crate::common::spec;
use crate::oracle::child::Task;
use crate::oracle::strike::{At, agents_die, is_cut_off, loses_power, struck_while, sync_moments};
use crate::oracle::{IMAGES, Now, PATIENCE, assert_boots};
use crate::standby::{Contents, NAME, Standby};
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::SyncRequest;
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{CloneResult, Moment, Recovery, Then};
use kvm_clone_lab::{FsKind, fault};

/// A replica whose source has changed since.
struct Round<'a> {
    standby: &'a Standby,
    at: At,
    old: Contents,
    new: Contents,
}

impl<'a> Round<'a> {
    /// The source changes: both disks, blocks that were data and blocks that were not, and a block that becomes zero.
    fn begin(standby: &'a Standby, at: At, number: usize) -> Self {
        let old = standby.replica_contents();
        let byte = number + 1;
        let writes = [
            format!("write -P {byte} 1M 192k"),
            format!("write -P {byte} {}M 64k", 8 + number),
            format!("write -z {}k 64k", 64 * number),
        ];
        standby.write("vda", &writes.each_ref().map(String::as_str));
        standby.write("vdb", &[&format!("write -P {byte} 3M 64k")]);
        Self { standby, at, old, new: standby.source_contents() }
    }

    async fn struck(&self, fault: impl Fn() -> Result<Then> + Send + Sync + 'static) -> Result<CloneResult> {
        struck_while(self.standby.prepare(&SyncRequest::default()).await.unwrap(), self.at, fault).await
    }

    /// A controller in a process of its own syncs, and is gone at this moment; its agents notice.
    fn controller_dies(&self) {
        let mut controller = Task::in_lab(&self.standby.lab).sync().die_at(self.at.0, self.at.1).start();
        controller.says("dies");
        controller.kill();
        self.standby.await_dead_man();
    }

    fn now(&self) -> Now {
        assert_eq!(self.standby.source_contents(), self.new, "{:?}: the source was touched", self.at);
        match self.standby.replica_contents() {
            now if now == self.old => Now::Old,
            now if now == self.new => Now::New,
            mixture => panic!("{:?}: {mixture:?} is neither {:?} nor {:?}", self.at, self.old, self.new),
        }
    }

    /// The oracle: before any recovery, after it, and at the second try.
    async fn judge(&self, outcome: Option<&Result<CloneResult>>) -> Now {
        let (standby, at) = (self.standby, self.at);
        let before = self.now();
        println!("{at:?}: {before:?}, {:?}", outcome.map(|outcome| outcome.as_ref().map(|done| &done.warnings)));
        if let Some(Ok(_)) = outcome {
            assert_eq!(before, Now::New, "{at:?}: it said that it succeeded");
        }
        standby.recover(&format!("{at:?}")).await;
        assert_eq!(self.now(), before, "{at:?}: recover changed the outcome");
        if before == Now::Old {
            standby.sync().await.unwrap_or_else(|error| panic!("{at:?}: the second try: {error:?}"));
        }
        standby.assert_synced();
        // A power cut in the next round takes away only what that round did.
        standby.beta.exec(&["sync"]).unwrap();
        before
    }
}

/// What must have come of a step that failed, where the controller lives and the hosts do.
fn expected(at: At) -> Now {
    if at.0 > Step::Define { Now::New } else { Now::Old }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_a_sync_that_fails_is_undone_with_all_before_it() {
    let Some(standby) = Standby::new("a_step_of_a_sync_that_fails").await else { return };
    for (number, at) in sync_moments().enumerate() {
        let round = Round::begin(&standby, at, number);
        let outcome = round.struck(|| Err(Error::internal("struck"))).await;
        assert_eq!(outcome.is_ok(), expected(at) == Now::New, "{at:?}: {outcome:?}");
        assert_eq!(round.judge(Some(&outcome)).await, expected(at), "{at:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_a_sync_that_is_done_twice_is_as_done_once() {
    let Some(standby) = Standby::new("a_step_of_a_sync_that_is_done_twice").await else { return };
    for (number, step) in Step::ALL.into_iter().filter(|step| !step.is_in_place()).enumerate() {
        let round = Round::begin(&standby, (step, Moment::Acted), number);
        let outcome = round.struck(|| Ok(Then::Again)).await;
        let done = outcome.as_ref().unwrap_or_else(|error| panic!("{step}: {error:?}"));
        assert!(!done.warnings.iter().any(|warning| warning.contains("failed")), "{step}: {:?}", done.warnings);
        assert_eq!(round.judge(Some(&outcome)).await, Now::New);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_while_it_syncs_leaves_the_old_point_or_the_new_one() {
    let Some(standby) = Standby::new("a_controller_that_dies_while_it_syncs").await else { return };
    for (number, at) in sync_moments().enumerate() {
        let round = Round::begin(&standby, at, number);
        round.controller_dies();
        round.judge(None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_sync_finishes_what_a_dead_controller_left() {
    let Some(standby) = Standby::new("the_next_sync_finishes").await else { return };
    for (number, step) in [Step::Copy, Step::Place, Step::Define, Step::Flatten, Step::Settle].into_iter().enumerate() {
        let round = Round::begin(&standby, (step, Moment::Acted), number);
        round.controller_dies();
        round.now();
        standby.write("vdb", &["write -P 250 5M 64k"]);
        standby.sync().await.unwrap();
        standby.assert_synced();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_in_a_sync_leaves_the_old_point_or_the_new_one() {
    let Some(standby) = Standby::new("an_agent_that_dies_in_a_sync").await else { return };
    for (number, at) in sync_moments().enumerate() {
        let round = Round::begin(&standby, at, number);
        // Each host at each step.
        let host = if number % 2 == 0 { &standby.beta } else { &standby.alpha };
        let outcome = round.struck(agents_die(host)).await;
        round.judge(Some(&outcome)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_cut_in_a_sync_leaves_the_old_point_or_the_new_one() {
    let Some(standby) = Standby::new("a_network_that_is_cut_in_a_sync").await else { return };
    for (number, at) in sync_moments().enumerate().filter(|(number, _)| number % 2 == 1) {
        let round = Round::begin(&standby, at, number);
        let outcome = round.struck(is_cut_off(&standby.lab, &standby.beta)).await;
        fault::wait_gone(&standby.beta, "kvm-clone-agent", PATIENCE).unwrap();
        standby.lab.heal(&standby.beta).unwrap();
        round.judge(Some(&outcome)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_fills_up_in_a_sync_has_the_old_point_or_the_new_one() {
    let Some(standby) = Standby::on_small_storage("a_target_that_fills_up_in_a_sync", FsKind::Ext4).await else {
        return;
    };
    let fill = format!("{IMAGES}/.kvm-clone-test-fill");
    for (number, at) in sync_moments().enumerate() {
        let round = Round::begin(&standby, at, number);
        let (beta, path) = (standby.beta.clone(), fill.clone());
        let outcome = round
            .struck(move || {
                // Also the blocks that only root may have.
                beta.shell(&format!("cat /dev/zero > {path} 2>/dev/null || true")).unwrap();
                Ok(Then::Go)
            })
            .await;
        let full = round.now();
        standby.beta.shell(&format!("rm -f {fill}")).unwrap();
        assert_eq!(round.judge(Some(&outcome)).await, full);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_without_power_in_a_sync_has_the_old_point_or_the_new_one() {
    let Some(standby) = Standby::on_what_was_synced("a_target_without_power_in_a_sync").await else { return };
    for (number, at) in sync_moments().enumerate() {
        let round = Round::begin(&standby, at, number);
        let outcome = round.struck(loses_power(&standby.beta)).await;
        round.judge(Some(&outcome)).await;
    }
}

/// Not only the same bytes: a guest finds its disks in it, at the moments in which a definition names overlays, merged or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_boots_while_its_overlays_wait_to_be_merged() {
    let Some(standby) = Standby::new("a_replica_boots").await else { return };
    for (number, step) in [Step::Define, Step::Flatten].into_iter().enumerate() {
        let round = Round::begin(&standby, (step, Moment::Acted), number);
        round.controller_dies();
        assert_eq!(round.now(), Now::New);
        assert_boots(&standby.beta.machine(NAME).unwrap());
        let client = standby.client().await;
        let left = client.recover(&spec("beta"), Recovery::Act).await.unwrap();
        assert!(left.iter().all(|entry| entry.error.is_none()), "{left:?}");
        standby.sync_with(&SyncRequest::default(), &crate::standby::discarding()).await.unwrap();
        standby.assert_synced();
    }
}
