//! Trying again what failed in passing.

use std::time::Duration;

use kvm_clone_core::event::Event;
use kvm_clone_core::retry::{RetryPolicy, is_our_own_lock};
use kvm_clone_core::{Code, Error, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clone::Events;

/// So long the agent of a former try may hold its locks: until it has noticed the silence (30 s), and until a job of libvirt's
/// can come up no more ([`kvm_clone_core::wire::point::COMING`]), with a margin.
const OURS_ENDS_WITHIN: Duration = Duration::from_secs(90);

/// Tries until it succeeds, until it fails for good, or until there were enough tries; each further try is told as an
/// event. What is tried must leave nothing behind when it fails, as an operation does. Where the lock of our own former try
/// is still held, it is waited for: that is no try of its own, and what counts in the end is why the former one failed.
///
/// # Errors
/// That of the last try; [`Code::Cancelled`] where it was stopped between two.
pub async fn retrying<T>(
    policy: &RetryPolicy,
    events: &Events,
    cancel: &CancellationToken,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let mut tried = 1;
    let mut former: Option<Error> = None;
    let mut held_since = None;
    loop {
        let error = match attempt().await {
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
        let outcome = retrying(&policy(), &events, &cancel, async || {
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
