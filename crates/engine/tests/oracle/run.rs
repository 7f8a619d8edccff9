//! A clone in the background: watched by its events, stopped, awaited.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use kvm_clone_core::Result;
use kvm_clone_core::event::{Event, Phase};
use kvm_clone_core::plan::CloneRequest;
use kvm_clone_engine::{Client, CloneResult, CloneSettings, Events};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::spec;

pub struct Run {
    pub cancel: CancellationToken,
    seen: Arc<Mutex<Vec<Event>>>,
    task: JoinHandle<Result<CloneResult>>,
}

impl Run {
    /// Clones `web1` from alpha to beta.
    pub fn start(client: Client, request: CloneRequest, settings: CloneSettings) -> Self {
        Self::between(client, ["alpha", "beta", "web1"], request, settings)
    }

    pub fn between(client: Client, words: [&'static str; 3], request: CloneRequest, settings: CloneSettings) -> Self {
        let seen: Arc<Mutex<Vec<Event>>> = Arc::default();
        let (cancel, told) = (CancellationToken::new(), Arc::clone(&seen));
        let events: Events = Arc::new(move |event| told.lock().unwrap().push(event));
        let stop = cancel.clone();
        let task = tokio::spawn(async move {
            let [from, to, name] = words;
            let source = name.parse()?;
            let prepared = client.prepare(&spec(from), &spec(to), &source, request, Arc::clone(&events)).await?;
            drop(client);
            prepared.execute(&settings, events, stop).await
        });
        Self { cancel, seen, task }
    }

    /// Waits for a phase.
    pub async fn phase(&self, wanted: Phase) {
        let started = Instant::now();
        while !self.seen.lock().unwrap().iter().any(|event| *event == Event::Phase { phase: wanted }) {
            assert!(started.elapsed() < super::PATIENCE && !self.task.is_finished(), "no phase {}", wanted.word());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    pub async fn end(self) -> Result<CloneResult> {
        tokio::time::timeout(super::PATIENCE * 2, self.task).await.expect("the clone hangs").unwrap()
    }

    pub async fn fails(self) -> kvm_clone_core::Error {
        let error = self.end().await.unwrap_err();
        assert!(error.context.contains_key("operation_id"), "{error:?}");
        error
    }
}
