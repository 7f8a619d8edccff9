//! The answers that are waited for, and how far the agent is with each.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_clone_core::Result;
use kvm_clone_core::wire::control::Reply;
use tokio::sync::{oneshot, watch};

/// Whoever waits, by the request's number.
#[derive(Default)]
pub(super) struct Answers(Mutex<HashMap<u32, Waiting>>);

struct Waiting {
    answer: oneshot::Sender<Result<Reply>>,
    /// What the agent has done for it so far.
    done: watch::Sender<u64>,
}

/// An answer that is waited for.
pub(super) struct Expected<'a> {
    pub(super) answer: oneshot::Receiver<Result<Reply>>,
    /// Changes with each sign of progress, and with nothing else.
    pub(super) progress: watch::Receiver<u64>,
    answers: &'a Answers,
    number: u32,
}

impl Answers {
    /// Expects the answer to a request from now on.
    pub(super) fn expect(&self, number: u32) -> Expected<'_> {
        let (tell, answer) = oneshot::channel();
        let (done, progress) = watch::channel(0);
        self.waiting().insert(number, Waiting { answer: tell, done });
        Expected { answer, progress, answers: self, number }
    }

    /// It has come; where nobody waits for it any more it is dropped.
    pub(super) fn answered(&self, number: u32, reply: Result<Reply>) {
        if let Some(waiting) = self.waiting().remove(&number) {
            let _ = waiting.answer.send(reply);
        }
    }

    /// So much is done of a request. A count that did not rise is no progress.
    pub(super) fn progressed(&self, number: u32, count: u64) {
        if let Some(waiting) = self.waiting().get(&number) {
            waiting.done.send_if_modified(|done| {
                let more = count > *done;
                *done = count.max(*done);
                more
            });
        }
    }

    /// None will come any more.
    pub(super) fn end(&self) {
        self.waiting().clear();
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u32, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.answers.waiting().remove(&self.number);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_count_that_rises_is_progress() {
        let answers = Answers::default();
        let mut expected = answers.expect(7);
        let mut seen = |count| {
            answers.progressed(7, count);
            expected.progress.has_changed().unwrap() && *expected.progress.borrow_and_update() == count
        };
        assert_eq!([1, 1, 0, 5, 4].map(&mut seen), [true, false, false, true, false]);
        answers.progressed(8, 9);
        answers.answered(7, Ok(Reply::Done));
        assert_eq!(expected.answer.try_recv().unwrap().unwrap(), Reply::Done);
    }

    #[test]
    fn an_answer_that_is_not_waited_for_any_more_leaves_nothing() {
        let answers = Answers::default();
        drop(answers.expect(7));
        assert!(answers.waiting().is_empty());
        answers.answered(7, Ok(Reply::Done));
    }
}
