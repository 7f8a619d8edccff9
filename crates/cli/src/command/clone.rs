//! `kvm-clone clone`: machines from one host to another.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use kvm_clone_core::name::SourceName;
use kvm_clone_core::plan::{ClonePlan, CloneRequest};
use kvm_clone_core::{Code, Error, Result};
use kvm_clone_engine::{Client, CloneResult, CloneSettings, Prepared};
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
        let client = session.client().await?;
        Ok(Self { args, session, client, source, dest, request, settings })
    }

    async fn one(&self, machine: &SourceName) -> Result<(Outcome, ExitCode)> {
        let prepared = self.prepare(machine).await?;
        let plan = self.as_named(prepared.plan());
        if self.args.dry_run {
            let status = plan.refusal().map_or(ExitCode::SUCCESS, |error| exit::status(error.code));
            return Ok((Outcome::Planned(Box::new(plan)), status));
        }
        if plan.refusal().is_none() {
            confirm::replacement(&plan, self.session).await?;
        }
        let mut result = self.execute(prepared).await?;
        result.source_host.clone_from(&self.source.name);
        result.dest_host.clone_from(&self.dest.name);
        Ok((Outcome::Cloned(Box::new(result)), ExitCode::SUCCESS))
    }

    /// Reaches both hosts and plans; nothing is to be undone when this is stopped.
    async fn prepare(&self, machine: &SourceName) -> Result<Prepared> {
        let progress = self.progress();
        let prepare =
            self.client.prepare(&self.source.spec, &self.dest.spec, machine, self.request.clone(), progress.events());
        let limit = self.settings.timeout.unwrap_or(Duration::MAX);
        let in_time = async {
            tokio::time::timeout(limit, prepare).await.unwrap_or_else(|_| {
                Err(Error::timeout(format!("the hosts were not ready within {} s", limit.as_secs()))
                    .help("Give it more time with --timeout"))
            })
        };
        interrupt::unless_stopped(&self.session.interrupts, in_time).await
    }

    async fn execute(&self, prepared: Prepared) -> Result<CloneResult> {
        let progress = self.progress();
        let cancel = self.session.interrupts.cancel.clone();
        let ended = prepared.execute(&self.settings, Arc::clone(&progress.events()), cancel).await;
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
