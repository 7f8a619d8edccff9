//! What `clone` and `sync` have in common: plan, show, ask, carry out, try again.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use kvm_clone_core::name::SourceName;
use kvm_clone_core::plan::{ClonePlan, CloneRequest, Replaced, SyncRequest};
use kvm_clone_core::retry::RetryPolicy;
use kvm_clone_core::{Code, Error, Result};
use kvm_clone_engine::{Client, CloneResult, CloneSettings, Events, Prepared, Recovery, retrying};
use serde::Serialize;

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
    /// Copies one machine; what fails in passing is tried again, from the start.
    pub(crate) async fn one(&self, machine: &SourceName) -> Result<(Outcome, ExitCode)> {
        let until = self.settings.timeout.map(|timeout| Instant::now() + timeout);
        let mut accepted = None;
        let cancel = &self.session.interrupts.cancel;
        retrying(&self.retry, &self.retry_events(), cancel, async || {
            let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
            let settings = CloneSettings { timeout, ..self.settings.clone() };
            self.attempt(machine, settings, &mut accepted).await
        })
        .await
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
        // What was agreed to once is not asked for again, unless it is something else now. A sync is asked for by its own name.
        if plan.refusal().is_none() && plan.replica.is_none() && plan.replaces != *accepted {
            confirm::replacement(&plan, self.session).await?;
            accepted.clone_from(&plan.replaces);
        }
        let mut result = self.execute(prepared, &settings).await?;
        result.source_host.clone_from(&self.source.name);
        result.dest_host.clone_from(&self.dest.name);
        Ok((Outcome::Done(Box::new(result)), ExitCode::SUCCESS))
    }

    /// Tries are logged; as JSON they are events like all others.
    fn retry_events(&self) -> Events {
        let (screen, is_json) = (self.session.screen.clone(), matches!(self.session.style, Style::Json));
        Arc::new(move |event| {
            if is_json {
                screen.event(&event);
            }
        })
    }

    /// Reaches both hosts and plans; nothing is to be undone when this is stopped.
    async fn prepare(&self, machine: &SourceName, settings: &CloneSettings) -> Result<Prepared> {
        let progress = self.progress();
        let (source, dest, events) = (&self.source.spec, &self.dest.spec, progress.events());
        let prepare = async {
            match &self.task {
                Task::Clone(request) => self.client.prepare(source, dest, machine, (**request).clone(), events).await,
                Task::Sync(asked) => {
                    let mode = if self.dry_run { Recovery::Look } else { Recovery::Act };
                    self.client.prepare_sync(source, dest, machine, asked, mode, events).await
                }
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

    async fn execute(&self, prepared: Prepared, settings: &CloneSettings) -> Result<CloneResult> {
        let progress = self.progress();
        let cancel = self.session.interrupts.cancel.clone();
        let ended = prepared.execute(settings, Arc::clone(&progress.events()), cancel).await;
        let warnings = progress.end();
        // The result has the warnings too; a failure has not.
        if ended.is_err() && matches!(self.session.style, Style::Bars | Style::Lines) {
            warnings.iter().for_each(|warning| self.session.output.note(&format!("warning: {warning}")));
        }
        ended.map_err(|error| {
            if error.code == Code::Cancelled {
                error.help("Everything was undone; run it again when you like")
            } else {
                error
            }
        })
    }

    fn progress(&self) -> Progress {
        Progress::start(self.session.style, self.session.screen.clone())
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
