//! Operations seen and stopped by their id: what is beside the journal holds at the moments that count.

use std::sync::{Arc, Mutex};

use crate::common::{number, silent, spec};
use crate::oracle::child::Task;
use crate::oracle::{PATIENCE, Scene};
use crate::standby::Standby;
use futures_util::future::BoxFuture;
use kvm_clone_core::journal::{Status, Step};
use kvm_clone_core::plan::SyncRequest;
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{Boundary, CloneSettings, Moment, Operation, Operations, Outcome, Recovery, Shown, Then};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

/// Cancels the operation that runs, by its id, at a moment of a step, and passes on what is said.
#[derive(Clone)]
struct CancelAt {
    at: (Step, Moment),
    operations: Operations,
    said: UnboundedSender<Result<Operation>>,
}

impl std::fmt::Debug for CancelAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a cancel at {:?}", self.at)
    }
}

impl CancelAt {
    async fn new(standby: &Standby, step: Step, moment: Moment) -> (Self, Said) {
        let operations = Operations::open(&standby.lab.dir().join("journal.db")).await.unwrap();
        let (said, heard) = unbounded_channel();
        (Self { at: (step, moment), operations, said }, Said(heard))
    }

    fn settings(&self) -> CloneSettings {
        CloneSettings { boundary: Arc::new(self.clone()), ..CloneSettings::default() }
    }

    async fn cancel(&self) {
        let running = self.operations.list(Shown::Active).await.unwrap();
        let [one] = running.as_slice() else { panic!("{running:?}") };
        let said = self.operations.cancel(&one.id.into()).await;
        let _ = self.said.send(said);
    }
}

struct Said(UnboundedReceiver<Result<Operation>>);

impl Said {
    async fn hear(mut self) -> Result<Operation> {
        tokio::time::timeout(PATIENCE, self.0.recv()).await.unwrap().unwrap()
    }
}

impl Boundary for CancelAt {
    fn pass(&self, step: Step, moment: Moment) -> BoxFuture<'_, Result<Then>> {
        Box::pin(async move {
            if (step, moment) == self.at && step < Step::Define {
                // It stands here until it is stopped.
                let beside = self.clone();
                tokio::spawn(async move { beside.cancel().await });
                std::future::pending::<()>().await;
            } else if (step, moment) == self.at {
                self.cancel().await;
            }
            Ok(Then::Go)
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_is_cancelled_by_its_id_and_leaves_the_old_point() {
    let Some(standby) = Standby::new("a_sync_is_cancelled_by_its_id").await else { return };
    let before = standby.replica_contents();
    standby.write("vda", &["write -P 7 1M 64k"]);
    let (cancel, said) = CancelAt::new(&standby, Step::Place, Moment::Intended).await;
    let error = standby.sync_with(&SyncRequest::default(), &cancel.settings()).await.unwrap_err();
    assert_eq!(number(&error), 1008, "{error:?}");
    let cancelled = said.hear().await.unwrap();
    assert_eq!((cancelled.status, cancelled.kind.word()), (Status::Cancelled, "sync"));
    assert_eq!(standby.replica_contents(), before);
    crate::common::assert_nothing_left(&standby.beta);
    standby.sync().await.unwrap();
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_not_cancelled_and_that_is_said() {
    let Some(standby) = Standby::new("what_is_committed_is_not_cancelled").await else { return };
    standby.write("vda", &["write -P 7 1M 64k"]);
    let (cancel, said) = CancelAt::new(&standby, Step::Flatten, Moment::Intended).await;
    standby.sync_with(&SyncRequest::default(), &cancel.settings()).await.unwrap();
    let refused = said.hear().await.unwrap_err();
    assert_eq!(number(&refused), 1014, "{refused:?}");
    assert!(refused.message.contains("committed"), "{refused:?}");
    standby.assert_synced();
    let ended = cancel.operations.list(Shown::Recent).await.unwrap();
    assert!(ended.iter().all(|operation| operation.status == Status::Completed), "{ended:?}");
}

/// Looks at its own operation, and has everything recovered, at the moments at which the target does not know of it.
struct RecoverAt {
    scene: Arc<Scene>,
    seen: Arc<Mutex<Vec<Status>>>,
}

impl std::fmt::Debug for RecoverAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a recovery meanwhile")
    }
}

impl Boundary for RecoverAt {
    fn pass(&self, step: Step, moment: Moment) -> BoxFuture<'_, Result<Then>> {
        Box::pin(async move {
            if [(Step::Mark, Moment::Intended), (Step::Clean, Moment::Acted)].contains(&(step, moment)) {
                let client = self.scene.client().await;
                client.recover(&spec("beta"), Recovery::Act).await?;
                let operations = operations(&self.scene, "journal.db").await;
                let seen = operations.list(Shown::Active).await?;
                self.seen.lock().unwrap().extend(seen.iter().map(|one| one.status));
            }
            Ok(Then::Go)
        })
    }
}

async fn operations(scene: &Scene, journal: &str) -> Operations {
    Operations::open(&scene.lab.dir().join(journal)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn recover_does_not_close_an_operation_that_runs_and_has_no_marker() {
    let test = "recover_does_not_close_an_operation_that_runs_and_has_no_marker";
    let Some(scene) = Scene::new(test) else { return };
    let (scene, seen) = (Arc::new(scene), Arc::default());
    let boundary = Arc::new(RecoverAt { scene: Arc::clone(&scene), seen: Arc::clone(&seen) });
    let settings = CloneSettings { boundary, ..CloneSettings::default() };
    let client = scene.client().await;
    let (alpha, beta, name) = (spec("alpha"), spec("beta"), "web1".parse().unwrap());
    let prepared = client.prepare(&alpha, &beta, &name, scene.request.clone(), Recovery::Act, silent()).await.unwrap();
    prepared.execute(&settings, silent(), CancellationToken::new()).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [Status::Running; 2]);
}

/// The one operation of a journal.
async fn the_one(scene: &Scene) -> Operation {
    let operations = operations(scene, "child.db").await;
    let all = operations.list(Shown::All).await.unwrap();
    let [one] = all.as_slice() else { panic!("{all:?}") };
    one.clone()
}

/// Dies right after the definition, or right before it; another controller recovers; then this one's journal is told.
async fn die_and_be_recovered_elsewhere(scene: &Scene, moment: Moment) -> Operation {
    let mut controller = Task::new(scene).die_at(Step::Define, moment).start();
    controller.says("dies");
    controller.kill();
    scene.await_dead_man();
    assert_eq!(the_one(scene).await.status, Status::Interrupted);
    assert_eq!(scene.recover("other.db").await.len(), 1);
    assert_eq!(the_one(scene).await.status, Status::Interrupted);
    assert!(scene.recover("child.db").await.is_empty());
    the_one(scene).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_recovered_elsewhere_right_after_its_definition_is_completed() {
    let test = "an_operation_recovered_elsewhere_right_after_its_definition_is_completed";
    let Some(scene) = Scene::new(test) else { return };
    let ended = die_and_be_recovered_elsewhere(&scene, Moment::Acted).await;
    assert_eq!((ended.status, &ended.outcome), (Status::Completed, &Outcome::Recovered));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_recovered_elsewhere_right_before_its_definition_has_failed() {
    let test = "an_operation_recovered_elsewhere_right_before_its_definition_has_failed";
    let Some(scene) = Scene::new(test) else { return };
    let ended = die_and_be_recovered_elsewhere(&scene, Moment::Intended).await;
    assert_eq!((ended.status, &ended.outcome), (Status::Failed, &Outcome::Recovered));
    let failure: Option<Error> = ended.failure();
    assert!(failure.is_some_and(|failure| failure.help.iter().any(|help| help.contains("again"))));
}
