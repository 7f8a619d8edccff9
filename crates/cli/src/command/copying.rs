//! What `clone` and `sync` have in common: plan, show, ask, carry out, try again.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use kvm_clone_core::name::SourceName;
use kvm_clone_core::plan::{ClonePlan, CloneRequest, Replaced, SyncRequest};
use kvm_clone_core::retry::RetryPolicy;
use kvm_clone_core::{Code, Error, Result};
use kvm_clone_engine::{
    Client, CloneResult, CloneSettings, Events, Kept, Prepared, Recovery, Resumed, Waiting, retrying,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::confirm;
use crate::exit;
use crate::interrupt;
use crate::render::{ErrorView, Progress, Style, clone_report};
use crate::request::Host;
use crate::session::Session;

/// What became of one machine.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Outcome {
    Planned(Box<ClonePlan>),
    Done(Box<CloneResult>),
    Failed(ErrorView),
}

/// What is made of a machine.
pub(crate) enum Task {
    Clone(Box<CloneRequest>),
    Sync(Box<SyncRequest>),
}

/// What all machines of one command share.
pub(crate) struct Job<'a> {
    pub(crate) session: &'a Session,
    pub(crate) client: Client,
    pub(crate) source: Host,
    pub(crate) dest: Host,
    pub(crate) task: Task,
    pub(crate) dry_run: bool,
    pub(crate) settings: CloneSettings,
    pub(crate) retry: RetryPolicy,
}

impl Job<'_> {
    /// Copies one machine; what fails in passing is tried again, and goes on with what the try before has staged.
    pub(crate) async fn one(&self, machine: &SourceName) -> Result<(Outcome, ExitCode)> {
        let until = self.settings.timeout.map(|timeout| Instant::now() + timeout);
        let mut accepted = None;
        let mut kept = Kept::default();
        let mut waiting: Option<Waiting> = None;
        // Of this machine alone: `cancel` stops one operation, and the next machine is begun.
        let stop = self.session.interrupts.cancel.child_token();
        let events = retry_events(self.session);
        let ended = retrying(&self.retry, &events, &stop, async |last| {
            if let Some(over) = waiting.take() {
                over.end().await;
            }
            let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
            let settings = CloneSettings { timeout, keep_staging: !last, ..self.settings.clone() };
            let came = kept.note(match kept.operation() {
                Some(operation) => self.go_on(operation, settings).await,
                None => self.attempt(machine, settings, &mut accepted).await,
            });
            if let (Err(_), Some(operation)) = (&came, kept.operation()) {
                // Without it the operation only looks interrupted until the next try.
                waiting = Waiting::begin(&self.client, operation, &stop).await.ok();
            }
            came
        });
        let ended = ended.await;
        let ended = kept.give_up(&self.client, ended).await;
        if let Some(over) = waiting {
            over.end().await;
        }
        ended.map_err(undone)
    }

    /// What the try before has staged is not sent again. What was agreed to is written down with it.
    async fn go_on(&self, operation: Uuid, settings: CloneSettings) -> Result<(Outcome, ExitCode)> {
        let go_on = async |events, cancel| self.client.resume(operation, &settings, events, cancel).await;
        let resumed = shown(self.session, go_on);
        match resumed.await? {
            Resumed::Copied(result) => Ok(self.done(*result)),
            // A commit of which we have not heard.
            Resumed::Finished(entry) => {
                Err(Error::conflict(format!("operation {operation} was completed by somebody else"))
                    .with("vm", entry.new_vm_name)
                    .help("Its machine stands, and nothing of it is left over"))
            }
        }
    }

    fn done(&self, mut result: CloneResult) -> (Outcome, ExitCode) {
        result.source_host.clone_from(&self.source.name);
        result.dest_host.clone_from(&self.dest.name);
        (Outcome::Done(Box::new(result)), ExitCode::SUCCESS)
    }

    async fn attempt(
        &self,
        machine: &SourceName,
        settings: CloneSettings,
        accepted: &mut Option<Replaced>,
    ) -> Result<(Outcome, ExitCode)> {
        let prepared = self.prepare(machine, &settings).await?;
        let plan = self.as_named(prepared.plan());
        if self.dry_run {
            let status = plan.refusal().map_or(ExitCode::SUCCESS, |error| exit::status(error.code));
            return Ok((Outcome::Planned(Box::new(plan)), status));
        }
        // What was agreed to once is not asked for again, unless it is something else now. A sync is asked for by its own name, but for
        // one that risks the replica.
        if plan.refusal().is_none() && plan.replaces != *accepted {
            match plan.replica {
                None => confirm::replacement(&plan, self.session).await?,
                Some(_) => confirm::in_place(&plan, self.session).await?,
            }
            accepted.clone_from(&plan.replaces);
        }
        let result =
            shown(self.session, async |events, cancel| prepared.execute(&settings, events, cancel).await).await?;
        Ok(self.done(result))
    }

    /// Reaches both hosts and plans; nothing is to be undone when this is stopped.
    async fn prepare(&self, machine: &SourceName, settings: &CloneSettings) -> Result<Prepared> {
        let progress = progress(self.session);
        let (source, dest, events) = (&self.source.spec, &self.dest.spec, progress.events());
        let prepare = async {
            let mode = if self.dry_run { Recovery::Look } else { Recovery::Act };
            match &self.task {
                Task::Clone(request) => {
                    self.client.prepare(source, dest, machine, (**request).clone(), mode, events).await
                }
                Task::Sync(asked) => self.client.prepare_sync(source, dest, machine, asked, mode, events).await,
            }
        };
        let limit = settings.timeout.unwrap_or(std::time::Duration::MAX);
        let in_time = async {
            tokio::time::timeout(limit, prepare).await.unwrap_or_else(|_| {
                let seconds = self.settings.timeout.unwrap_or_default().as_secs();
                Err(Error::timeout(format!("the hosts were not ready within {seconds} s"))
                    .help("Give it more time with --timeout"))
            })
        };
        interrupt::unless_stopped(&self.session.interrupts, in_time).await
    }

    /// The plan with the hosts as the user named them.
    fn as_named(&self, plan: &ClonePlan) -> ClonePlan {
        let mut plan = plan.clone();
        plan.source_host.clone_from(&self.source.name);
        plan.dest_host.clone_from(&self.dest.name);
        plan
    }

    pub(crate) fn text(&self, outcome: &Outcome) -> String {
        match outcome {
            Outcome::Planned(plan) => crate::render::harmless(&plan.describe()),
            Outcome::Done(result) => clone_report(result, self.session.output.paint),
            Outcome::Failed(_) => String::new(),
        }
    }
}

/// Carries something out, with its progress on the screen.
pub(crate) async fn shown<T>(
    session: &Session,
    work: impl AsyncFnOnce(Events, CancellationToken) -> Result<T>,
) -> Result<T> {
    let progress = progress(session);
    let ended = work(progress.events(), session.interrupts.cancel.clone()).await;
    let warnings = progress.end();
    // The result has the warnings too; a failure has not.
    if ended.is_err() && matches!(session.style, Style::Bars | Style::Lines) {
        warnings.iter().for_each(|warning| session.output.note(&format!("warning: {warning}")));
    }
    ended
}

/// Tries are logged; as JSON they are events like all others.
pub(crate) fn retry_events(session: &Session) -> Events {
    let (screen, is_json) = (session.screen.clone(), matches!(session.style, Style::Json));
    Arc::new(move |event| {
        if is_json {
            screen.event(&event);
        }
    })
}

fn progress(session: &Session) -> Progress {
    Progress::start(session.style, session.screen.clone())
}

/// What a user who stopped it wants to know.
pub(crate) fn undone(error: Error) -> Error {
    match error.code == Code::Cancelled && error.context.contains_key("operation_id") {
        true => error.help("Everything was undone; run it again when you like"),
        false => error,
    }
}
