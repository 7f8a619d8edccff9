//! A clone in the background: stopped, awaited; and clones with something that happens at a moment of theirs.

use std::sync::Arc;
use std::time::Duration;

use kvm_clone_core::Result;
use kvm_clone_core::event::{Event, Phase};
use kvm_clone_core::plan::CloneRequest;
use kvm_clone_engine::{Client, CloneResult, CloneSettings, Events, Recovery};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::spec;

pub struct Run {
    pub cancel: CancellationToken,
    task: JoinHandle<Result<CloneResult>>,
}

impl Run {
    /// Clones `web1` from alpha to beta.
    pub fn start(client: Client, request: CloneRequest, settings: CloneSettings) -> Self {
        Self::between(client, ["alpha", "beta", "web1"], request, settings)
    }

    pub fn between(client: Client, words: [&'static str; 3], request: CloneRequest, settings: CloneSettings) -> Self {
        let (cancel, events) = (CancellationToken::new(), crate::common::silent());
        let stop = cancel.clone();
        let task = tokio::spawn(async move {
            let [from, to, name] = words;
            let source = name.parse()?;
            let prepared =
                client.prepare(&spec(from), &spec(to), &source, request, Recovery::Act, Arc::clone(&events)).await?;
            drop(client);
            prepared.execute(&settings, events, stop).await
        });
        Self { cancel, task }
    }

    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
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

/// Events of which one phase, and so many microseconds after its beginning, sets something off.
pub fn at(phase: Phase, micros: u64, act: impl Fn() + Send + Sync + 'static) -> Events {
    let act = Arc::new(act);
    Arc::new(move |event| {
        if event == (Event::Phase { phase }) {
            // At once means before anything else comes about.
            if micros == 0 {
                return act();
            }
            let act = Arc::clone(&act);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(micros));
                act();
            });
        }
    })
}

/// Clones `web1` from alpha to beta with these events.
pub async fn clone_with_events(
    client: &Client,
    request: CloneRequest,
    events: Events,
    cancel: CancellationToken,
) -> Result<CloneResult> {
    let (from, to, name) = (spec("alpha"), spec("beta"), "web1".parse()?);
    let prepared = client.prepare(&from, &to, &name, request, Recovery::Act, Arc::clone(&events)).await?;
    prepared.execute(&CloneSettings::default(), events, cancel).await
}
