//! What goes on beside a running operation: its presence is held, its progress is told, and whether it is asked to stop is
//! looked for. One thread of its own, since all of it is about files.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_clone_core::progress::{Progress, State};
use kvm_clone_core::{Code, Error, Result};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::place::Presence;
use super::sweep;
use crate::clone::Events;
use crate::resume::is_resumable;
use crate::store::Store;

/// How often it is looked whether the operation is asked to stop.
const LOOK: Duration = Duration::from_millis(250);
/// How often progress is told.
const TELL: Duration = Duration::from_millis(500);

/// An operation that others can see and stop. Dropping it ends that, without waiting.
pub(crate) struct Attendance {
    /// Where the operation's events go.
    pub(crate) events: Events,
    /// Tells the operation to stop: its user did, or somebody at another terminal.
    pub(crate) cancel: CancellationToken,
    /// Closed at the end.
    end: Sender<()>,
    thread: JoinHandle<()>,
}

impl Attendance {
    /// Begins, before the operation is journaled.
    ///
    /// # Errors
    /// Its presence cannot be held, or the journal cannot be read.
    pub(crate) async fn begin(
        store: &Store,
        operation: Uuid,
        events: Events,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        sweep(store).await?;
        let presence = store.place().apart(move |place| place.hold(operation)).await??;
        let (state, begun) = (Arc::new(Mutex::new(State::default())), Instant::now());
        let (end, ended) = channel();
        let cancel = cancel.child_token();
        let watch = Watch { presence, state: Arc::clone(&state), begun, cancel: cancel.clone() };
        let thread = std::thread::spawn(move || watch.attend(&ended));
        let events: Events = Arc::new(move |event| {
            lock(&state).apply(&event, begun.elapsed());
            events(event);
        });
        Ok(Self { events, cancel, end, thread })
    }

    /// Ends with what came of the operation. Who stopped it just when a try failed in passing wants no other try.
    ///
    /// # Errors
    /// That of the operation.
    pub(crate) async fn close<T>(self, ended: Result<T>) -> Result<T> {
        let is_stopped = self.cancel.is_cancelled();
        self.end().await;
        ended.map_err(|error| {
            if !is_stopped || !is_resumable(&error) || error.code == Code::Cancelled {
                return error;
            }
            let stopped = Error::new(Code::Cancelled, format!("stopped by the user, while it failed: {error}"));
            Error { context: error.context, ..stopped }
        })
    }

    /// Ends, after the operation's end is journaled; waits until nothing is left.
    pub(crate) async fn end(self) {
        drop(self.end);
        let thread = self.thread;
        // A thread that died has let go of everything, too.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

/// The thread's side.
struct Watch {
    presence: Presence,
    state: Arc<Mutex<State>>,
    begun: Instant,
    cancel: CancellationToken,
}

impl Watch {
    fn attend(&self, ended: &Receiver<()>) {
        let mut told: Option<(Instant, Progress)> = None;
        loop {
            if !self.cancel.is_cancelled() && self.presence.is_asked_to_stop() {
                self.cancel.cancel();
            }
            if told.as_ref().is_none_or(|(when, _)| when.elapsed() >= TELL) {
                let progress = lock(&self.state).progress(self.begun.elapsed());
                if told.as_ref().is_none_or(|(_, before)| *before != progress) {
                    self.presence.tell(&progress);
                }
                told = Some((Instant::now(), progress));
            }
            if ended.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
