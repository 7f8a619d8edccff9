//! `kvm-clone resume`: an interrupted operation goes on.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{CloneSettings, Recovered, Resumed, is_resumable, retrying};
use serde::Serialize;
use uuid::Uuid;

use super::copying::{retry_events, shown, undone};
use crate::args::ResumeArgs;
use crate::render::{clone_report, harmless};
use crate::request;
use crate::session::Session;

/// How it ended, as data: the result of the whole operation, or what was left to tidy up.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome<'a> {
    Copied(&'a kvm_clone_engine::CloneResult),
    Finished(&'a Recovered),
}

/// Resumes one operation; what fails in passing is tried again.
pub(crate) async fn run(args: &ResumeArgs, session: &Session) -> Result<ExitCode> {
    let operation = find(args, session).await?;
    let client = session.client().await?;
    let retry = request::retry_policy(&session.settings)?;
    let settings = CloneSettings {
        // What is staged was meant to be gone on with: only a failure for good undoes it.
        keep_staging: true,
        ..request::copy_settings(None, &session.settings, None)?
    };
    let until = args.timeout.map(|limit| Instant::now() + Duration::from_secs(limit.get()));
    let cancel = &session.interrupts.cancel;
    let events = retry_events(session);
    let resumed = retrying(&retry, &events, cancel, async |_| {
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        let settings = CloneSettings { timeout, ..settings.clone() };
        let ended =
            shown(session, async |events, cancel| client.resume(operation, &settings, events, cancel).await).await;
        // What was undone is not there to be gone on with.
        ended.map_err(|error| Error { transient: error.transient && is_resumable(&error), ..error })
    });
    match resumed.await.map_err(|error| explained(error, operation))? {
        Resumed::Copied(result) => {
            session.output.data(&Outcome::Copied(&result), || clone_report(&result, session.output.paint))?;
        }
        Resumed::Finished(entry) => session.output.data(&Outcome::Finished(&entry), || finished(&entry))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The operation that is meant.
async fn find(args: &ResumeArgs, session: &Session) -> Result<Uuid> {
    let operations = session.operations().await?;
    let found = operations.find(&args.id).await;
    operations.close().await;
    found.map(|operation| operation.id)
}

fn explained(error: Error, operation: Uuid) -> Error {
    match is_resumable(&error) {
        true => error
            .help(format!("What is staged is still there: kvm-clone resume {operation} goes on"))
            .help("kvm-clone recover HOST undoes it"),
        false => undone(error),
    }
}

fn finished(entry: &Recovered) -> String {
    format!(
        "{}: machine {} stood already; what was left is tidied up\n",
        entry.operation_id,
        harmless(&entry.new_vm_name)
    )
}
