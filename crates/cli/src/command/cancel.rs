//! `kvm-clone cancel`: an operation of another terminal is stopped.

use std::process::ExitCode;

use kvm_clone_core::Result;

use crate::args::CancelArgs;
use crate::interrupt;
use crate::render::{OperationView, operation_line};
use crate::session::Session;

/// Asks it to stop, and waits for its end.
pub(crate) async fn run(args: &CancelArgs, session: &Session) -> Result<ExitCode> {
    let operations = session.operations().await?;
    let ended = interrupt::unless_stopped(&session.interrupts, operations.cancel(&args.id)).await;
    operations.close().await;
    let operation = ended?;
    session.output.data(&OperationView::of(&operation), || operation_line(&operation))?;
    Ok(ExitCode::SUCCESS)
}
