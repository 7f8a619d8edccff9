//! The journal, in files of its own.
#![allow(clippy::unwrap_used)]

use super::*;

/// A clone, as it is written down when it begins.
pub(crate) fn new(id: Uuid) -> NewOperation {
    let text = |text: &str| text.to_owned();
    NewOperation {
        id,
        kind: OperationType::Clone,
        source_host: text("alpha"),
        dest_host: text("beta"),
        vm_name: text("web1"),
        new_vm_name: text("web1_clone"),
        plan: text("{}"),
        resume: text("{}"),
    }
}

#[tokio::test]
async fn an_operation_is_unfinished_until_its_end_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("deep/state.db")).await.unwrap();
    let id = Uuid::now_v7();
    store.begin(&new(id)).await.unwrap();
    store.mark(id, &[(Step::Stage, Mark::Intended)]).await.unwrap();
    assert_eq!(store.unfinished("beta").await.unwrap(), vec![id]);
    store.end(id, Status::Failed, "{}").await.unwrap();
    assert_eq!(store.unfinished("beta").await.unwrap(), Vec::<Uuid>::new());
    store.close().await;
    let again = Store::open(&dir.path().join("deep/state.db")).await.unwrap();
    assert_eq!(again.unfinished("beta").await.unwrap(), Vec::<Uuid>::new());
}

#[tokio::test]
async fn an_older_journal_is_taken_over_and_its_operations_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let (old, new_one) = (Uuid::now_v7(), Uuid::now_v7());
    let store = Store::open(&path).await.unwrap();
    store.begin(&new(old)).await.unwrap();
    let back = "ALTER TABLE operation DROP COLUMN resume; PRAGMA user_version = 1;";
    store.pool.execute(back).await.unwrap();
    store.close().await;
    let store = Store::open(&path).await.unwrap();
    store.begin(&new(new_one)).await.unwrap();
    let found = async |id| store.find(id).await.unwrap();
    assert_eq!(found(old).await, Some(Found { status: Status::Running, resume: None }));
    assert_eq!(found(new_one).await, Some(Found { status: Status::Running, resume: Some("{}".to_owned()) }));
    assert_eq!(found(Uuid::now_v7()).await, None);
}

#[tokio::test]
async fn an_operation_that_goes_on_is_unfinished_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).await.unwrap();
    let id = Uuid::now_v7();
    store.begin(&new(id)).await.unwrap();
    store
        .mark(id, &[(Step::Mark, Mark::Intended), (Step::Mark, Mark::Done), (Step::Stage, Mark::Intended)])
        .await
        .unwrap();
    store.end(id, Status::Interrupted, "{}").await.unwrap();
    store.resume(id).await.unwrap();
    store.mark(id, &[(Step::Mark, Mark::Intended)]).await.unwrap();
    assert_eq!(store.find(id).await.unwrap().unwrap().status, Status::Running);
    assert_eq!(store.trail(id).await.unwrap().to_undo(), Some(Step::Mark));
}

#[tokio::test]
async fn a_forgotten_operation_is_closed_by_its_trail() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).await.unwrap();
    let status = async |id: Uuid| {
        let row = sqlx::query("SELECT status FROM operation WHERE id = ?").bind(id.to_string());
        row.fetch_one(&store.pool).await.unwrap().get::<String, _>(0)
    };
    for (taken_back, expected) in [(false, "completed"), (true, "failed")] {
        let id = Uuid::now_v7();
        store.begin(&new(id)).await.unwrap();
        for step in Step::ALL.into_iter().filter(|step| *step <= Step::Define) {
            store.mark(id, &[(step, Mark::Intended), (step, Mark::Done)]).await.unwrap();
        }
        if taken_back {
            store.mark(id, &[(Step::Define, Mark::Undone)]).await.unwrap();
        }
        store.close_forgotten(id, Told::Nothing, Undone::Recovered).await.unwrap();
        assert_eq!(status(id).await, expected);
    }
    for (told, expected) in [(Told::Stands, "completed"), (Told::Another, "failed"), (Told::Nothing, "failed")] {
        let (id, machine) = (Uuid::now_v7(), Uuid::new_v4());
        store.begin(&NewOperation { plan: format!("{{\"new_uuid\":\"{machine}\"}}"), ..new(id) }).await.unwrap();
        assert_eq!(store.doubtful(id).await.unwrap(), None);
        for step in Step::ALL.into_iter().filter(|step| *step < Step::Define) {
            store.mark(id, &[(step, Mark::Intended), (step, Mark::Done)]).await.unwrap();
        }
        store.mark(id, &[(Step::Define, Mark::Intended)]).await.unwrap();
        assert_eq!(store.doubtful(id).await.unwrap(), Some(machine));
        store.close_forgotten(id, told, Undone::Recovered).await.unwrap();
        assert_eq!(status(id).await, expected);
    }
    let impossible = Uuid::now_v7();
    store.begin(&new(impossible)).await.unwrap();
    store.mark(impossible, &[(Step::Copy, Mark::Done)]).await.unwrap();
    let error = store.close_forgotten(impossible, Told::Nothing, Undone::Recovered).await.unwrap_err();
    assert_eq!(error.code, Code::Configuration, "{error:?}");
}

#[tokio::test]
async fn what_ended_long_ago_is_forgotten_and_what_is_open_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).await.unwrap();
    let [open, ended, late] = [(); 3].map(|()| Uuid::now_v7());
    for id in [open, ended] {
        store.begin(&new(id)).await.unwrap();
        store.mark(id, &[(Step::Mark, Mark::Intended)]).await.unwrap();
    }
    store.end(ended, Status::Completed, "{}").await.unwrap();
    assert!(store.record(ended).await.unwrap().is_some());
    // As many operations later.
    store.begin(&new(Uuid::now_v7())).await.unwrap();
    store.pool.execute("UPDATE operation SET rowid = 20000 WHERE rowid = 3").await.unwrap();
    store.begin(&new(late)).await.unwrap();
    assert!(store.record(ended).await.unwrap().is_none());
    for id in [open, late] {
        assert!(store.record(id).await.unwrap().is_some());
    }
    assert_eq!(store.trail(open).await.unwrap().to_undo(), Some(Step::Mark));
}

#[tokio::test]
async fn what_is_given_up_has_ended_as_it_was_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).await.unwrap();
    let cancelled = Error::new(Code::Cancelled, "stopped by the user before the next try");
    for (cause, expected) in [(cancelled, Status::Cancelled), (Error::transfer("cut"), Status::Failed)] {
        let id = Uuid::now_v7();
        store.begin(&new(id)).await.unwrap();
        store.close_forgotten(id, Told::Nothing, Undone::GivenUp(&cause)).await.unwrap();
        let record = store.record(id).await.unwrap().unwrap();
        assert_eq!(record.status, expected);
        assert_eq!(serde_json::from_str::<Error>(&record.outcome.unwrap()).unwrap(), cause);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_that_meet_at_a_new_store_both_open_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let opening: Vec<_> = (0..16)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { Store::open(&path).await })
        })
        .collect();
    for opened in opening {
        opened.await.unwrap().unwrap();
    }
}
