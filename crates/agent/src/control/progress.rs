//! How far a request is, told to the controller while it is carried out: a request that does not get on is given up there.
//!
//! What counts is work that was done, and nothing else: bytes hashed, bytes that became durable, tables and segments looked at,
//! and what a program that we run has read, written and computed, or a device that we wait for has written. Never the time that passes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_clone_core::wire::control::FromAgent;
use kvm_clone_core::{Code, Error, Result};

use super::session::Session;

/// Progress is told no more often than this: far less than any patience.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// The progress of one request.
pub(super) struct Progress {
    session: Arc<Session>,
    request: u32,
    done: AtomicU64,
    told_at: Mutex<Option<Instant>>,
}

impl Progress {
    pub(super) fn of(session: &Arc<Session>, request: u32) -> Self {
        Self { session: Arc::clone(session), request, done: AtomicU64::new(0), told_at: Mutex::default() }
    }

    /// Counts work that was done, in units of the request's own.
    pub(super) fn add(&self, work: u64) {
        self.session.count_work(work);
        self.tell(self.done.fetch_add(work, Ordering::Relaxed) + work);
    }

    /// Counts the work of others, of which so much is done, for a request that waits for their end.
    pub(super) fn reach(&self, done: u64) {
        if self.done.fetch_max(done, Ordering::Relaxed) < done {
            self.tell(done);
        }
    }

    /// Says whether the request goes on: an error, with what is being done, where it is to be broken off.
    pub(super) fn go_on(&self, what: &str) -> Result<()> {
        if self.session.is_stopping() {
            return Err(Error::new(Code::Cancelled, format!("{what} was stopped")));
        }
        Ok(())
    }

    fn tell(&self, done: u64) {
        let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = told_at.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        // Where the controller falls behind, the next count tells this one too: work does not wait for it.
        if is_due && self.session.try_tell(FromAgent::Progress(self.request, done)) {
            *told_at = Some(Instant::now());
        }
    }
}
