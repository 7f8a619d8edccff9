//! An operation that failed: undone, or left for another try to go on with.

use kvm_clone_core::Error;
use kvm_clone_core::journal::{Mark, Status, Step, Trail};
use kvm_clone_core::retry::can_pass;

use crate::clone::Prepared;
use crate::resume::RESUMABLE;
use crate::step::{Left, Side, Work};
use crate::store::Undone;

/// Whether a step failed in passing, with something staged that the next try can use.
pub(crate) const fn keeps(step: Step, error: &Error) -> bool {
    error.transient
        && can_pass(error.code)
        && matches!(step, Step::Stage | Step::Point | Step::Withdraw | Step::Copy | Step::Finish | Step::Place)
}

impl Prepared {
    /// Leaves what is staged for another try. Nothing works on it any more; the point of a source that runs ends, and where the
    /// source is lost, its own agent ends it.
    pub(crate) async fn leave(&self, mut work: Work, error: Error) -> Error {
        let id = self.fresh.operation;
        work.let_go().await;
        let _ = self.store.fail(id, Status::Interrupted, &error).await;
        self.store.close().await;
        error.with("operation_id", id).with(RESUMABLE, true)
    }

    /// Undoes what may have been done, journals that, and gives the error that the user sees.
    pub(crate) async fn fail(&self, mut work: Work, trail: Trail, error: Error) -> Error {
        let id = self.fresh.operation;
        let left = self.undo(&mut work, trail).await;
        let error = if left.is_nothing() {
            let _ = self.store.undone(id, Undone::GivenUp(&error)).await;
            error
        } else {
            let error = work.left_behind(&error, &left);
            let _ = self.store.fail(id, Status::Interrupted, &error).await;
            error
        };
        self.store.close().await;
        error.with("operation_id", id)
    }

    /// Undoes in reverse on both hosts. One that is lost does not keep the other from being cleaned; on the one where a step
    /// could not be undone, those before it stay, and with them the marker, which tells `recover` of them.
    async fn undo(&self, work: &mut Work, trail: Trail) -> Left {
        let mut left = Left::default();
        if let Err(failure) = work.reach_target().await {
            left.failed(Side::Target, failure);
        }
        let begun = trail.open();
        // What an earlier try did is undone with it.
        let earlier =
            if self.staged.is_some() { Step::ALL.iter().filter(|step| **step <= Step::Place).count() } else { 0 };
        for step in Step::ALL.into_iter().take(begun.len().max(earlier)).rev() {
            if left.has_failed(Side::of(step)) {
                left.steps.push(step);
                continue;
            }
            match work.undo(step).await {
                // From a step that is left on, the journal keeps what came before it, too. Its failure must not stop the undoing.
                Ok(()) if left.is_nothing() && begun.contains(&step) => {
                    let _ = self.store.mark(self.fresh.operation, &[(step, Mark::Undone)]).await;
                }
                Ok(()) => {}
                Err(failure) => {
                    left.failed(Side::of(step), failure);
                    left.steps.push(step);
                }
            }
        }
        left
    }
}
