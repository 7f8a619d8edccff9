//! `kvm-clone sync`: a replica to its source's present point.

use std::process::ExitCode;

use kvm_clone_core::Result;
use kvm_clone_engine::CloneSettings;

use super::copying::{Job, Task};
use crate::args::SyncArgs;
use crate::request;
use crate::session::Session;

/// Syncs one replica.
pub(crate) async fn run(args: &SyncArgs, session: &Session) -> Result<ExitCode> {
    let limit = session.settings.timeouts.sync.value.0;
    let settings = CloneSettings {
        discard_target_changes: args.update.discard_target_changes,
        paranoid: args.update.paranoid,
        ..request::copy_settings(args.transfer.checksum, &session.settings, limit)?
    };
    let job = Job {
        session,
        client: session.client().await?,
        source: request::host(&session.settings, &args.source),
        dest: request::host(&session.settings, &args.dest),
        task: Task::Sync(Box::new(request::sync_request(args, &session.settings)?)),
        dry_run: args.dry_run,
        settings,
        retry: request::retry_policy(&session.settings)?,
    };
    let (outcome, status) = job.one(&args.machine).await?;
    session.output.data(&outcome, || job.text(&outcome))?;
    Ok(status)
}
