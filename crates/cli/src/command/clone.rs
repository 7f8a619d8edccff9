//! `kvm-clone clone`: machines from one host to another.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_clone_core::name::SourceName;
use kvm_clone_core::plan::{ClonePlan, CloneRequest, Replaced};
use kvm_clone_core::retry::RetryPolicy;
use kvm_clone_core::{Code, Error, Result};
use kvm_clone_engine::{Client, CloneResult, CloneSettings, Events, Prepared, retrying};
use serde::Serialize;

use super::confirm;
use crate::args::CloneArgs;
use crate::exit;
use crate::interrupt;
use crate::render::{ErrorView, Format, Progress, Style, clone_report};
use crate::request::{self, Host};
use crate::session::Session;

/// What became of one machine.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Planned(Box<ClonePlan>),
    Cloned(Box<CloneResult>),
    Failed(ErrorView),
}

/// Copies one machine, or several one after the other.
pub(crate) async fn run(args: &CloneArgs, session: &Session) -> Result<ExitCode> {
    let job = Job::new(args, session).await?;
    if let [machine] = args.machines.as_slice() {
        let (outcome, status) = job.one(machine).await?;
        session.output.data(&outcome, || job.text(&outcome))?;
        return Ok(status);
    }
    let mut outcomes = Vec::new();
    let mut first_failure = ExitCode::SUCCESS;
    for machine in &args.machines {
        let (outcome, status) = match job.one(machine).await {
            Ok(ended) => ended,
            Err(error) => {
                let error = error.with("vm", machine);
                if session.output.format == Format::Text {
                    session.output.side_error(&error);
                }
                (Outcome::Failed(ErrorView::now(&error)), exit::status(error.code))
            }
        };
        if first_failure == ExitCode::SUCCESS {
            first_failure = status;
        }
        if session.output.format == Format::Text {
            session.output.text(&job.text(&outcome))?;
        }
        outcomes.push(outcome);
        if session.interrupts.cancel.is_cancelled() {
            break;
        }
    }
    session.output.data(&outcomes, String::new)?;
    Ok(first_failure)
}

/// What all machines of one command share.
struct Job<'a> {
    args: &'a CloneArgs,
    session: &'a Session,
    client: Client,
    source: Host,
    dest: Host,
    request: CloneRequest,
    settings: CloneSettings,
    retry: RetryPolicy,
}

impl<'a> Job<'a> {
    /// Everything that can be refused without a connection is refused here.
    async fn new(args: &'a CloneArgs, session: &'a Session) -> Result<Self> {
        let source = request::host(&session.settings, &args.source);
        let dest = request::host(&session.settings, &args.dest);
        let request = request::clone_request(args, &session.settings, &dest)?;
        if args.machines.len() > 1 && request.new_name.is_some() {
            return Err(Error::validation("--new-name names one machine, but several are to be copied")
                .help("Copy them one by one, or leave --new-name out"));
        }
        for machine in &args.machines {
            request.new_name(machine)?;
        }
        let settings = request::clone_settings(args, &session.settings)?;
        let retry = request::retry_policy(&session.settings)?;
        let client = session.client().await?;
        Ok(Self { args, session, client, source, dest, request, settings, retry })
    }

    /// Copies one machine; what fails in passing is tried again, from the start.
    async fn one(&self, machine: &SourceName) -> Result<(Outcome, ExitCode)> {
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
        if self.args.dry_run {
            let status = plan.refusal().map_or(ExitCode::SUCCESS, |error| exit::status(error.code));
            return Ok((Outcome::Planned(Box::new(plan)), status));
        }
        // What was agreed to once is not asked for again, unless it is something else now.
        if plan.refusal().is_none() && plan.replaces != *accepted {
            confirm::replacement(&plan, self.session).await?;
            accepted.clone_from(&plan.replaces);
        }
        let mut result = self.execute(prepared, &settings).await?;
        result.source_host.clone_from(&self.source.name);
        result.dest_host.clone_from(&self.dest.name);
        Ok((Outcome::Cloned(Box::new(result)), ExitCode::SUCCESS))
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
        let prepare =
            self.client.prepare(&self.source.spec, &self.dest.spec, machine, self.request.clone(), progress.events());
        let limit = settings.timeout.unwrap_or(Duration::MAX);
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

    fn text(&self, outcome: &Outcome) -> String {
        match outcome {
            Outcome::Planned(plan) => crate::render::harmless(&plan.describe()),
            Outcome::Cloned(result) => clone_report(result, self.session.output.paint),
            Outcome::Failed(_) => String::new(),
        }
    }
}
