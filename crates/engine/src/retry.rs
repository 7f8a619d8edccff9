//! Trying again what failed in passing.

use std::time::Duration;

use kvm_clone_core::event::Event;
use kvm_clone_core::retry::{RetryPolicy, is_our_own_lock};
use kvm_clone_core::{Code, Error, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::client::Client;
use crate::clone::Events;
use crate::resume::{RESUMABLE, is_resumable};

/// So long the agent of a former try may hold its locks: until it has noticed the silence (30 s), and until a job of libvirt's
/// can come up no more ([`kvm_clone_core::wire::point::COMING`]) or its readers have gone, with a margin.
const OURS_ENDS_WITHIN: Duration = Duration::from_secs(120);

/// What failed tries of one operation have left for the next one to go on with.
#[derive(Debug, Default)]
pub struct Kept(Option<Uuid>);

impl Kept {
    /// The operation that the next try goes on with.
    #[must_use]
    pub const fn operation(&self) -> Option<Uuid> {
        self.0
    }

    /// Notes what came of a try.
    ///
    /// # Errors
    /// That of the try.
    pub fn note<T>(&mut self, outcome: Result<T>) -> Result<T> {
        match &outcome {
            Ok(_) => self.0 = None,
            Err(error) => {
                // An error without an id is of before the operation was even looked at: what it left is there still.
                if let Some(id) = error.context.get("operation_id") {
                    self.0 = id.parse().ok().filter(|_| is_resumable(error));
                }
            }
        }
        outcome
    }

    /// After the last try: what a failure has left is undone.
    ///
    /// # Errors
    /// That of the last try; [`Code::UndoFailed`] where undoing failed too.
    pub async fn give_up<T>(self, client: &Client, outcome: Result<T>) -> Result<T> {
        let Some(operation) = self.0 else { return outcome };
        let mut error = match outcome {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match client.give_up(operation, &error).await {
            Ok(()) => {
                error.context.remove(RESUMABLE);
                Err(error.with("operation_id", operation))
            }
            Err(failure) => Err(left_staged(&error, &failure, operation)),
        }
    }
}

/// The operation failed, and what it staged is still there.
fn left_staged(cause: &Error, failure: &Error, operation: Uuid) -> Error {
    let mut error = Error::new(Code::UndoFailed, format!("{cause}; and it could not be undone: {failure}"))
        .with("cause_code", cause.code.number())
        .with("operation_id", operation)
        .with(RESUMABLE, true)
        .help(format!("kvm-clone resume {operation} goes on, once the hosts can be reached"));
    if let Some(host) = failure.context.get("host") {
        error = error.with("host", host);
        // Where undoing says itself how it goes on, `recover` can do no more.
        if failure.code != Code::UndoFailed {
            error = error.help(format!("kvm-clone recover {host} removes what is left there"));
        }
    }
    for help in &failure.help {
        error = error.help(help);
    }
    error.context.extend(cause.context.iter().map(|(name, value)| (format!("cause_{name}"), value.clone())));
    error
}

/// Tries until it succeeds, until it fails for good, or until there were enough tries; each further try is told as an
/// event. A try is told whether it is the last one: that one must leave nothing behind when it fails; what the others leave
/// is for the next one ([`Kept`]). Where the lock of our own former try is still held, it is waited for: that is no try of its
/// own, and what counts in the end is why the former one failed.
///
/// # Errors
/// That of the last try; [`Code::Cancelled`] where it was stopped between two.
pub async fn retrying<T>(
    policy: &RetryPolicy,
    events: &Events,
    cancel: &CancellationToken,
    mut attempt: impl AsyncFnMut(bool) -> Result<T>,
) -> Result<T> {
    let mut tried = 1;
    let mut former: Option<Error> = None;
    let mut held_since = None;
    loop {
        let error = match attempt(tried >= policy.attempts).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if let Some(cause) = former.as_ref().filter(|former| is_our_own_lock(&error, former)) {
            if held_since.get_or_insert_with(Instant::now).elapsed() > OURS_ENDS_WITHIN {
                return Err(counted(cause.clone(), tried));
            }
            pause(policy.base_delay, cancel).await?;
            continue;
        }
        held_since = None;
        let Some(wait) = policy.wait(&error, tried, random()) else { return Err(counted(error, tried)) };
        tried += 1;
        tracing::warn!(attempt = tried, attempts = policy.attempts, ?wait, error = %error, "trying again");
        events(Event::Retry {
            attempt: tried,
            attempts: policy.attempts,
            wait_milliseconds: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            code: error.code.number(),
            message: error.message.clone(),
        });
        former = Some(error);
        pause(wait, cancel).await?;
    }
}

async fn pause(wait: Duration, cancel: &CancellationToken) -> Result<()> {
    tokio::select! {
        () = tokio::time::sleep(wait) => Ok(()),
        () = cancel.cancelled() => Err(Error::new(Code::Cancelled, "stopped by the user before the next try")),
    }
}

fn counted(error: Error, tried: u32) -> Error {
    if tried > 1 { error.with("attempts", tried) } else { error }
}

/// Between 0 and 1. Without random bytes the waits are just not spread.
fn random() -> f64 {
    let mut bytes = [0; 2];
    let _ = getrandom::fill(&mut bytes);
    f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy { attempts: 3, base_delay: Duration::from_millis(1), max_delay: Duration::from_millis(2) }
    }

    async fn run(failures: Vec<Error>, cancel: CancellationToken) -> (Result<u32>, Vec<u32>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let events: Events = Arc::new(move |event| {
            if let Event::Retry { attempt, .. } = event {
                heard.lock().unwrap().push(attempt);
            }
        });
        let mut failures = failures.into_iter();
        let mut calls = 0;
        let outcome = retrying(&policy(), &events, &cancel, async |_| {
            calls += 1;
            failures.next().map_or(Ok(calls), Err)
        })
        .await;
        let told = told.lock().unwrap().clone();
        (outcome, told)
    }

    fn lost() -> Error {
        Error::connection("lost").transient()
    }

    #[tokio::test]
    async fn what_passes_succeeds_and_each_try_is_told() {
        let (outcome, told) = run(vec![lost(), lost()], CancellationToken::new()).await;
        assert_eq!((outcome.unwrap(), told), (3, vec![2, 3]));
    }

    #[tokio::test]
    async fn what_does_not_pass_is_not_tried_again() {
        let (outcome, told) = run(vec![Error::connection("unknown")], CancellationToken::new()).await;
        assert_eq!((outcome.unwrap_err().context.get("attempts"), told), (None, vec![]));
    }

    #[tokio::test]
    async fn tries_end() {
        let (outcome, told) = run(vec![lost(), lost(), lost(), lost()], CancellationToken::new()).await;
        assert_eq!((outcome.unwrap_err().context["attempts"].as_str(), told), ("3", vec![2, 3]));
    }

    #[tokio::test]
    async fn the_last_try_is_told_that_it_is_the_last() {
        let told = Mutex::new(Vec::new());
        let events: Events = Arc::new(|_| {});
        let outcome = retrying(&policy(), &events, &CancellationToken::new(), async |last| {
            told.lock().unwrap().push(last);
            Err::<(), _>(lost())
        })
        .await;
        outcome.unwrap_err();
        assert_eq!(*told.lock().unwrap(), [false, false, true]);
    }

    #[test]
    fn what_a_try_kept_is_known_until_one_keeps_nothing() {
        let mut kept = Kept::default();
        let id = Uuid::now_v7();
        let resumable = lost().with("operation_id", id).with(RESUMABLE, true);
        kept.note::<()>(Err(resumable)).unwrap_err();
        assert_eq!(kept.operation(), Some(id));
        kept.note::<()>(Err(lost())).unwrap_err();
        assert_eq!(kept.operation(), Some(id), "the journal could not even be opened");
        kept.note::<()>(Err(lost().with("operation_id", id))).unwrap_err();
        assert_eq!(kept.operation(), None);
    }

    fn held(holder: &str) -> Error {
        Error::new(Code::Locked, "held").with("lock", "uuid-1").with("holder", holder).transient()
    }

    #[tokio::test]
    async fn the_lock_of_our_own_former_try_is_waited_for_and_is_no_try() {
        let cut = || lost().with("operation_id", "7");
        let own = || held("operation 7 of me");
        let (outcome, told) = run(vec![cut(), own(), own(), own(), own()], CancellationToken::new()).await;
        assert_eq!((outcome.unwrap(), told), (6, vec![2]));
        let other = || held("operation 8 of you");
        let (outcome, told) = run(vec![cut(), other(), other()], CancellationToken::new()).await;
        assert_eq!((outcome.unwrap_err().code, told), (Code::Locked, vec![2, 3]));
    }

    #[tokio::test]
    async fn stopping_ends_the_wait() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let (outcome, _) = run(vec![lost(), lost(), lost()], cancel).await;
        assert_eq!(outcome.unwrap_err().code, Code::Cancelled);
    }
}
