//! Operations seen from outside, without hosts: the journal and the files beside it are real.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use kvm_clone_core::event::{Event, Phase};
use kvm_clone_core::journal::{Mark, Step};
use tokio_util::sync::CancellationToken;

use super::*;

struct Scene {
    _dir: tempfile::TempDir,
    operations: Operations,
    store: Store,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let operations = Operations::open(&dir.path().join("journal.db")).await.unwrap();
        Self { _dir: dir, store: operations.store.clone(), operations }
    }

    async fn begin(&self) -> Uuid {
        let new = crate::store::tests::new(Uuid::now_v7());
        self.store.begin(&new).await.unwrap();
        new.id
    }

    /// One that has ended.
    async fn ended(&self, status: Status, outcome: &str) -> Uuid {
        let id = self.begin().await;
        self.store.end(id, status, outcome).await.unwrap();
        id
    }

    async fn attend(&self, id: Uuid) -> Attendance {
        Attendance::begin(&self.store, id, Arc::new(|_| {}), &CancellationToken::new()).await.unwrap()
    }

    async fn see(&self, id: Uuid) -> Operation {
        self.operations.find(&id.into()).await.unwrap()
    }

    async fn ids(&self, shown: Shown) -> Vec<Uuid> {
        self.operations.list(shown).await.unwrap().into_iter().map(|operation| operation.id).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_pending_then_running_and_has_one_end() {
    let scene = Scene::new().await;
    let id = scene.begin().await;
    let attendance = scene.attend(id).await;
    assert_eq!(scene.see(id).await.status, Status::Pending);
    scene.store.mark(id, &[(Step::Mark, Mark::Intended)]).await.unwrap();
    let running = scene.see(id).await;
    assert_eq!(running.status, Status::Running);
    assert!(running.started.is_some() && running.completed.is_none() && running.failure().is_none());

    scene.store.end(id, Status::Completed, r#"{"bytes_total":7}"#).await.unwrap();
    attendance.end().await;
    let ended = scene.see(id).await;
    assert_eq!((ended.status, ended.progress.total_bytes), (Status::Completed, 7));
    assert!(ended.completed.is_some() && ended.failure().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_without_its_controller_is_interrupted_and_says_how_far_it_was() {
    let scene = Scene::new().await;
    let id = scene.begin().await;
    scene.store.mark(id, &[(Step::Mark, Mark::Intended)]).await.unwrap();
    let place = scene.store.place();
    let presence = place.hold(id).unwrap();
    presence.tell(&Progress { progress_percent: 37.0, message: "copy: 37 %".to_owned(), ..Progress::default() });
    assert_eq!(scene.see(id).await.progress.message, "copy: 37 %");
    presence.die();
    let dead = scene.see(id).await;
    assert_eq!(
        (dead.status, dead.progress.message.as_str()),
        (Status::Interrupted, "its controller is gone; it was at copy: 37 %")
    );
    sweep(&scene.store).await.unwrap();
    assert!(place.progress(id).is_some());
    scene.store.end(id, Status::Failed, crate::store::RECOVERED).await.unwrap();
    sweep(&scene.store).await.unwrap();
    assert!(place.progress(id).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_and_a_request_to_stop_is_heard() {
    let scene = Scene::new().await;
    let id = scene.begin().await;
    scene.store.mark(id, &[(Step::Mark, Mark::Intended)]).await.unwrap();
    let attendance = scene.attend(id).await;
    (attendance.events)(Event::Phase { phase: Phase::Copy });
    let (operations, cancel) = (scene.operations.clone(), attendance.cancel.clone());
    let asked = tokio::spawn(async move { operations.cancel(&id.into()).await });
    cancel.cancelled().await;
    while scene.see(id).await.progress.phase != Some(Phase::Copy) {
        tokio::task::yield_now().await;
    }
    scene.store.end(id, Status::Cancelled, "{}").await.unwrap();
    attendance.end().await;
    assert_eq!(asked.await.unwrap().unwrap().status, Status::Cancelled);
    assert!(scene.operations.cancel(&id.into()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_or_is_dead_cannot_be_cancelled() {
    let scene = Scene::new().await;
    let error = serde_json::to_string(&Error::transfer("cut")).unwrap();
    for (status, outcome, code) in [
        (Status::Completed, "{}", Code::Conflict),
        (Status::Failed, error.as_str(), Code::Conflict),
        (Status::Cancelled, error.as_str(), Code::Conflict),
        (Status::Interrupted, error.as_str(), Code::UndoFailed),
    ] {
        let id = scene.ended(status, outcome).await;
        let refused = scene.operations.cancel(&id.into()).await.unwrap_err();
        assert_eq!((refused.code, refused.context["status"].as_str()), (code, status.word()), "{refused:?}");
        assert!(!refused.help.is_empty());
    }
    let unknown = scene.operations.cancel(&Uuid::now_v7().into()).await.unwrap_err();
    assert_eq!(unknown.code, Code::Validation);
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_are_told_as_what_they_are() {
    let scene = Scene::new().await;
    let error = Error::transfer("cut").with("host", "beta");
    let id = scene.ended(Status::Failed, &serde_json::to_string(&error).unwrap()).await;
    let failed = scene.see(id).await;
    assert_eq!(failed.outcome, Outcome::Failure(error));
    assert_eq!(failed.failure().unwrap().code, Code::Transfer);
    let recovered = scene.see(scene.ended(Status::Failed, crate::store::RECOVERED).await).await;
    assert_eq!(recovered.outcome, Outcome::Recovered);
    assert!(recovered.failure().is_some());
    let interrupted = scene.see(scene.begin().await).await;
    assert_eq!((interrupted.status, interrupted.outcome.clone()), (Status::Interrupted, Outcome::None));
    assert_eq!(interrupted.failure().unwrap().code, Code::UndoFailed);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_shows_what_was_asked_for_and_the_newest_first() {
    let scene = Scene::new().await;
    let dead = scene.begin().await;
    let mut ended = Vec::new();
    for _ in 0..25 {
        ended.insert(0, scene.ended(Status::Completed, "{}").await);
    }
    let running = scene.begin().await;
    let attendance = scene.attend(running).await;
    assert_eq!(scene.ids(Shown::Active).await, [running]);
    assert_eq!(scene.ids(Shown::Recent).await, [&[running], &ended[..20], &[dead]].concat());
    assert_eq!(scene.ids(Shown::All).await, [&[running], &ended[..], &[dead]].concat());
    attendance.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_an_id_must_mean_one_operation() {
    let scene = Scene::new().await;
    let (one, _other) = (scene.begin().await, scene.begin().await);
    let text = one.to_string();
    let part = |text: &str| text.parse::<IdPart>().unwrap();
    assert_eq!(scene.operations.find(&part(&text[24..])).await.unwrap().id, one);
    let several = scene.operations.find(&part(&text[..4])).await.unwrap_err();
    assert_eq!(several.code, Code::Validation);
    assert!(several.context["operations"].contains(&text), "{several:?}");
}
