//! `kvm-clone clone`: machines from one host to another.

use std::process::ExitCode;

use kvm_clone_core::{Error, Result};

use super::copying::{Job, Outcome, Task};
use crate::args::CloneArgs;
use crate::exit;
use crate::render::{ErrorView, Format};
use crate::request;
use crate::session::Session;

/// Copies one machine, or several one after the other.
pub(crate) async fn run(args: &CloneArgs, session: &Session) -> Result<ExitCode> {
    let job = job(args, session).await?;
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

/// Everything that can be refused without a connection is refused here.
async fn job<'a>(args: &CloneArgs, session: &'a Session) -> Result<Job<'a>> {
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
    let limit = session.settings.timeouts.clone.value.0;
    let settings = request::copy_settings(args.transfer.checksum, &session.settings, limit)?;
    let retry = request::retry_policy(&session.settings)?;
    let client = session.client().await?;
    let task = Task::Clone(Box::new(request));
    Ok(Job { session, client, source, dest, task, dry_run: args.dry_run, settings, retry })
}
