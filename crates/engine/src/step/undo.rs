//! Undoing: steps in reverse, over a new connection where the old one was lost, and what is said where it cannot be.

use kvm_clone_core::journal::Step;
use kvm_clone_core::wire::control::Request;
use kvm_clone_core::{Code, Error, Result};

use super::Work;
use crate::reconnect;

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Target,
}

impl Side {
    /// Where a step leaves something.
    pub(crate) const fn of(step: Step) -> Self {
        match step {
            Step::Point => Self::Source,
            _ => Self::Target,
        }
    }
}

/// What could not be undone.
#[derive(Debug, Default)]
pub(crate) struct Left {
    failures: Vec<(Side, Error)>,
    /// The steps that may have left something, on hosts where undoing failed.
    pub(crate) steps: Vec<Step>,
}

impl Left {
    pub(crate) fn failed(&mut self, side: Side, failure: Error) {
        self.failures.push((side, failure));
    }

    pub(crate) fn has_failed(&self, side: Side) -> bool {
        self.failures.iter().any(|(failed, _)| *failed == side)
    }

    pub(crate) fn is_nothing(&self) -> bool {
        self.failures.is_empty()
    }
}

impl Work {
    /// Makes sure of a target that can be talked to and on which nothing goes on: the failure to be undone may be that
    /// it was lost, and an order that was given up may still be under way.
    pub(crate) async fn reach_target(&mut self) -> Result<()> {
        let ended = self.target.host.control.order(Request::EndLanes).await;
        // An agent that lives and cannot end its work keeps the locks until it can: no other one would get them.
        if ended.is_ok() || !self.target.host.control.is_gone() {
            return ended;
        }
        self.target = reconnect::reconnect(&self.target, self.operation, &self.marker.keys, self.silence).await?;
        Ok(())
    }

    /// Has nothing work for the operation any more, on hosts that can be talked to; the agents of others see to it themselves.
    pub(crate) async fn let_go(&mut self) {
        if self.seen.machine.live.is_some() && !self.source.host.control.is_gone() {
            let _ = self.source.host.control.order(Request::EndPoint { settled: self.point_settled }).await;
        }
        let _ = tokio::join!(
            self.source.host.control.order(Request::EndLanes),
            self.target.host.control.order(Request::EndLanes)
        );
    }

    /// Undoes a step that may have been done, wholly or in part; once more where the target was lost meanwhile.
    pub(crate) async fn undo(&mut self, step: Step) -> Result<()> {
        match self.undo_once(step).await {
            // The point's own undoing reaches the source anew by itself.
            Err(error) if error.transient && Side::of(step) == Side::Target => {
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
                self.remove(self.marker.placed()).await?;
                self.refresh_pools().await;
                Ok(())
            }
            Step::Copy => self.target.host.control.order(Request::EndLanes).await,
            Step::Withdraw => self.reinstate().await,
            Step::Point => self.drop_point().await,
            Step::Stage => self.remove(self.marker.staged()).await,
            Step::Mark => self.target.host.control.order(Request::RemoveMarker(self.operation)).await,
            Step::Finish | Step::Renew | Step::Flatten | Step::Settle | Step::Clean => Ok(()),
        }
    }

    /// The error of an operation that could not be undone: what may be left, where, and how to get rid of it.
    pub(crate) fn left_behind(&self, cause: &Error, left: &Left) -> Error {
        let failures = left.failures.iter().map(|(side, failure)| (self.host(*side), failure));
        let said: Vec<String> =
            failures.clone().map(|(host, failure)| format!("it could not be undone on {host}: {failure}")).collect();
        let hosts: Vec<&str> = failures.map(|(host, _)| host).collect();
        let is_withdrawn = left.steps.contains(&Step::Withdraw) && !self.written().is_empty();
        let mut error = Error::new(Code::UndoFailed, format!("{cause}; and {}", said.join("; and ")))
            .with("cause_code", cause.code.number())
            .with("host", hosts.join(", "))
            .with("left", self.left(&left.steps).join(", "));
        if is_withdrawn {
            error = self.out_of_service_helps().into_iter().fold(error, Error::help);
        }
        // Of a replica that is out of service nothing can be removed.
        let target = &self.target.host.name;
        for host in hosts.into_iter().filter(|host| !is_withdrawn || host != target) {
            error = error
                .help(format!("kvm-clone recover {host} finds and removes what is left, once the host can be reached"));
        }
        error.context.extend(cause.context.iter().map(|(name, value)| (format!("cause_{name}"), value.clone())));
        error
    }

    fn host(&self, side: Side) -> &str {
        match side {
            Side::Source => &self.source.host.name,
            Side::Target => &self.target.host.name,
        }
    }

    /// What steps that were not undone may have left.
    fn left(&self, not_undone: &[Step]) -> Vec<String> {
        let marker = &self.marker;
        let all = not_undone.iter().flat_map(|step| match step {
            Step::Define => vec![format!("machine {}", marker.machine)],
            Step::Place => marker.placed(),
            Step::Stage => marker.staged(),
            Step::Mark => vec![format!("the marker of operation {}", marker.operation)],
            Step::Point => vec![format!("a backup job on machine {}", self.plan.vm_name)],
            Step::Withdraw => self.written_paths(),
            Step::Copy | Step::Finish | Step::Renew | Step::Flatten | Step::Settle | Step::Clean => Vec::new(),
        });
        all.collect()
    }
}
