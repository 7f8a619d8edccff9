//! Undoing: steps in reverse, over a new connection where the old one was lost, and what is said where it cannot be.

use kvm_clone_core::journal::Step;
use kvm_clone_core::wire::control::Request;
use kvm_clone_core::{Code, Error, Result};

use super::Work;
use crate::reconnect;

impl Work {
    /// Makes sure of a target that can be talked to and on which nothing goes on: the failure to be undone may be that
    /// it was lost, and an order that was given up may still be under way.
    pub(crate) async fn reach_target(&mut self) -> Result<()> {
        if self.target.host.control.order(Request::EndLanes).await.is_ok() {
            return Ok(());
        }
        self.target = reconnect::reconnect(&self.target, self.operation, &self.marker.keys, self.silence).await?;
        Ok(())
    }

    /// Undoes a step that may have been done, wholly or in part; once more where the target was lost meanwhile.
    pub(crate) async fn undo(&mut self, step: Step) -> Result<()> {
        match self.undo_once(step).await {
            Err(error) if error.transient => {
                self.reach_target().await?;
                self.undo_once(step).await
            }
            outcome => outcome,
        }
    }

    async fn undo_once(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Define => self.undefine().await,
            Step::Place => {
                self.remove(self.marker.finals.iter().map(|file| file.path.clone()).collect()).await?;
                self.refresh_pools().await;
                Ok(())
            }
            Step::Copy => self.target.host.control.order(Request::EndLanes).await,
            Step::Point => self.drop_point().await,
            Step::Stage => self.remove(self.marker.staged()).await,
            Step::Mark => self.target.host.control.order(Request::RemoveMarker(self.operation)).await,
            Step::Finish | Step::Clean => Ok(()),
        }
    }

    /// The error of an operation that could not be undone: what may be left, where, and how to get rid of it.
    pub(crate) fn left_behind(&self, cause: &Error, failure: &Error, not_undone: &[Step]) -> Error {
        let host = &self.target.host.name;
        let message = format!("{cause}; and it could not be undone on {host}: {failure}");
        let mut error = Error::new(Code::UndoFailed, message)
            .with("cause_code", cause.code.number())
            .with("host", host)
            .with("left", self.left(not_undone).join(", "))
            .help(format!("kvm-clone recover {host} finds and removes what is left, once the host can be reached"));
        error.context.extend(cause.context.iter().map(|(name, value)| (format!("cause_{name}"), value.clone())));
        error
    }

    /// What steps that were not undone may have left.
    fn left(&self, not_undone: &[Step]) -> Vec<String> {
        let marker = &self.marker;
        let all = not_undone.iter().flat_map(|step| match step {
            Step::Define => vec![format!("machine {}", marker.machine)],
            Step::Place => marker.finals.iter().map(|file| file.path.clone()).collect(),
            Step::Stage => marker.staged(),
            Step::Mark => vec![format!("the marker of operation {}", marker.operation)],
            Step::Point => vec![format!("a backup job on machine {}", self.plan.vm_name)],
            Step::Copy | Step::Finish | Step::Clean => Vec::new(),
        });
        all.collect()
    }
}
