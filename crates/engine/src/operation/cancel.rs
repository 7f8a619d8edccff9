//! Stopping an operation from another process.

use std::time::Duration;

use kvm_clone_core::event::Phase;
use kvm_clone_core::journal::{IdPart, Status};
use kvm_clone_core::{Code, Error, Result};
use tokio::time::Instant;

use super::{Operation, Operations};

/// So long its end is waited for. Undoing waits for a host that went silent (30 s) and for a job of libvirt's that may still come
/// up (30 s), with a margin.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(100);

impl Operations {
    /// Asks an operation to stop, and waits until it has undone everything.
    ///
    /// # Errors
    /// [`Code::Validation`] where there is no such operation; [`Code::Conflict`] where it cannot be stopped any more: it has
    /// ended, or its machine stands; [`Code::UndoFailed`] where its controller is gone, or could not undo it;
    /// [`Code::Timeout`] where it has not ended within two minutes.
    pub async fn cancel(&self, part: &IdPart) -> Result<Operation> {
        let operation = self.find(part).await?;
        if !operation.is_active() {
            return Err(ended_before(&operation));
        }
        let (place, id) = (self.store.place(), operation.id);
        place.apart(move |place| place.ask_to_stop(id)).await??;
        let ended = self.await_end(&operation).await;
        // One that takes its time is to stop all the same; what it does not hear of any more goes with its other files.
        if !matches!(&ended, Err(error) if error.code == Code::Timeout) {
            place.apart(move |place| place.ask_no_more(id)).await?;
        }
        let ended = ended?;
        match ended.status {
            Status::Cancelled => Ok(ended),
            _ => Err(ended_otherwise(&ended)),
        }
    }

    async fn await_end(&self, operation: &Operation) -> Result<Operation> {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.find(&operation.id.into()).await?;
            if !now.is_active() {
                return Ok(now);
            }
            if now.progress.phase == Some(Phase::Clean) {
                return Err(committed(&now));
            }
            if Instant::now() > until {
                return Err(too_slow(&now));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// It was not running when it was to be stopped.
fn ended_before(operation: &Operation) -> Error {
    let names = operation.names();
    let message = match operation.status {
        Status::Completed => format!("{names} is completed: it cannot be cancelled any more"),
        Status::Cancelled => format!("{names} was cancelled before"),
        Status::Interrupted => return interrupted(operation),
        _ => format!("{names} has failed before, and is undone"),
    };
    conflict(operation, message)
}

/// It ended in another way than it was asked to.
fn ended_otherwise(operation: &Operation) -> Error {
    match (operation.status, operation.failure()) {
        (Status::Interrupted, Some(failure)) => failure,
        (_, Some(failure)) => {
            conflict(operation, format!("{} failed before it was stopped: {failure}", operation.names()))
        }
        (_, None) => conflict(operation, format!("{} was completed before it could be stopped", operation.names())),
    }
}

fn committed(operation: &Operation) -> Error {
    conflict(operation, format!("{} is committed: only tidying up is left, which is not stopped", operation.names()))
}

fn conflict(operation: &Operation, message: String) -> Error {
    Error::conflict(message)
        .with("operation_id", operation.id)
        .with("status", operation.status.word())
        .help(format!("kvm-clone status {} shows what became of it", operation.id))
}

fn interrupted(operation: &Operation) -> Error {
    let (names, host) = (operation.names(), &operation.dest_host);
    Error::new(Code::UndoFailed, format!("{names} is interrupted: there is nobody who could stop"))
        .with("operation_id", operation.id)
        .with("status", operation.status.word())
        .help(format!("kvm-clone recover {host} finishes or undoes what it left"))
        .help(format!("kvm-clone resume {} goes on", operation.id))
}

fn too_slow(operation: &Operation) -> Error {
    let seconds = PATIENCE.as_secs();
    Error::timeout(format!("{} was asked to stop, and has not ended within {seconds} s", operation.names()))
        .with("operation_id", operation.id)
        .with("doing", &operation.progress.message)
        .help(format!("kvm-clone status {} --follow shows what it does", operation.id))
}
