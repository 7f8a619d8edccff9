//! Operations as others see them, from another terminal or on another day: [`Operations`].
//!
//! The journal knows what was begun and how it ended; that a controller lives, and how far it is, is beside it ([`place`]).

mod attendance;
mod cancel;
mod place;
#[cfg(test)]
mod tests;
mod waiting;

use std::path::Path;

use kvm_clone_core::journal::{IdPart, Status};
use kvm_clone_core::progress::Progress;
use kvm_clone_core::{Code, Error, Result};
use uuid::Uuid;

pub(crate) use attendance::Attendance;
pub(crate) use place::Place;
pub use waiting::Waiting;

use crate::outcome::OperationType;
use crate::store::{Record, Store, Which};

/// Which operations are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Those whose controller works on them.
    Active,
    /// These, those that were interrupted, and the last ones that ended.
    Recent,
    /// Every one that the journal knows.
    All,
}

/// An operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// Its id.
    pub id: Uuid,
    /// What it does.
    pub kind: OperationType,
    /// Where it stands.
    pub status: Status,
    /// The host copied from.
    pub source_host: String,
    /// The host copied to.
    pub dest_host: String,
    /// The source machine.
    pub vm_name: String,
    /// The machine that is made, or brought to a newer point.
    pub new_vm_name: String,
    /// How far it is.
    pub progress: Progress,
    /// When it was written down, RFC 3339.
    pub created: String,
    /// When its first step was begun.
    pub started: Option<String>,
    /// When it ended.
    pub completed: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Nothing yet, or nobody wrote it down.
    None,
    /// The result, a [`CloneResult`](crate::CloneResult) as JSON.
    Result(serde_json::Value),
    /// Why it did not succeed.
    Failure(Error),
    /// `recover` ended it.
    Recovered,
}

/// The operations of one journal.
#[derive(Clone)]
pub struct Operations {
    store: Store,
}

impl Operations {
    /// Opens the journal of [`ClientOptions`](crate::ClientOptions); it is made where there is none.
    ///
    /// # Errors
    /// The journal cannot be used.
    pub async fn open(journal: &Path) -> Result<Self> {
        Ok(Self { store: Store::open(journal).await? })
    }

    /// Operations, the newest first.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn list(&self, shown: Shown) -> Result<Vec<Operation>> {
        let which = match shown {
            Shown::Active => Which::Unended,
            Shown::Recent => Which::Recent,
            Shown::All => Which::All,
        };
        let mut all = Vec::new();
        for record in self.store.records(which).await? {
            all.push(self.seen(record).await?);
        }
        all.retain(|operation| shown != Shown::Active || operation.is_active());
        Ok(all)
    }

    /// The one operation that this part of an id means.
    ///
    /// # Errors
    /// [`Code::Validation`] where it means none, or several.
    pub async fn find(&self, part: &IdPart) -> Result<Operation> {
        let mut found = self.store.records(Which::Named(part)).await?;
        match (found.pop(), found.is_empty()) {
            (Some(record), true) => self.seen(record).await,
            (None, _) => Err(Error::validation(format!("the journal knows no operation {part}"))
                .with("id", part)
                .help("kvm-clone status --all shows every operation with its id")
                .help("Operations are known to the controller, and to the user, that began them")),
            (Some(record), false) => {
                let ids: Vec<String> = found.iter().chain([&record]).map(|record| record.id.to_string()).collect();
                Err(Error::validation(format!("{part} can be any of {} operations", ids.len()))
                    .with("id", part)
                    .with("operations", ids.join(", "))
                    .help("Write more of the id; operations of one minute begin alike, so its end tells more"))
            }
        }
    }

    /// Closes the journal.
    pub async fn close(&self) {
        self.store.close().await;
    }

    /// A record, seen beside what its controller tells. The journal is read before and after the look at the controller, which
    /// lives from before the record's beginning until after its end: so one that has just ended is not taken for a dead one.
    async fn seen(&self, mut record: Record) -> Result<Operation> {
        if record.status.is_final() {
            return Ok(operation(record, None));
        }
        let (place, id) = (self.store.place(), record.id);
        match (record.status, place.lives(id).await?) {
            (Status::Running, false) => {
                record = self.store.record(id).await?.unwrap_or(record);
                if record.status == Status::Running {
                    record.status = Status::Interrupted;
                }
            }
            // It waits for its next try, or is being taken up again.
            (Status::Interrupted, true) => (record.status, record.outcome) = (Status::Running, None),
            _ => {}
        }
        let told = if record.status.is_final() { None } else { place.apart(move |place| place.progress(id)).await? };
        Ok(operation(record, told))
    }
}

/// Removes what dead operations left beside the journal. Of those that wait for `recover` it stays: it says how far they were.
pub(crate) async fn sweep(store: &Store) -> Result<()> {
    let kept = store.records(Which::Unended).await?.into_iter().map(|record| record.id).collect();
    store.place().apart(move |place| place.sweep(&kept)).await
}

fn operation(record: Record, told: Option<Progress>) -> Operation {
    let outcome = outcome(record.outcome.as_deref());
    let status = match record.status {
        // Written down as running, because it will be at once.
        Status::Running if record.started.is_none() => Status::Pending,
        status => status,
    };
    Operation {
        id: record.id,
        kind: record.kind,
        status,
        progress: progress(status, &outcome, told),
        source_host: record.source_host,
        dest_host: record.dest_host,
        vm_name: record.vm_name,
        new_vm_name: record.new_vm_name,
        created: record.created,
        started: record.started,
        completed: record.ended,
        outcome,
    }
}

fn outcome(text: Option<&str>) -> Outcome {
    let Some(text) = text else { return Outcome::None };
    if text == crate::store::RECOVERED {
        return Outcome::Recovered;
    }
    match serde_json::from_str(text) {
        Ok(error) => Outcome::Failure(error),
        Err(_) => serde_json::from_str(text).map_or(Outcome::None, Outcome::Result),
    }
}

/// How far it is: as its controller told, or as its end says.
fn progress(status: Status, outcome: &Outcome, told: Option<Progress>) -> Progress {
    let message = match (status, outcome) {
        (Status::Completed, Outcome::Recovered) => "completed by recover".to_owned(),
        (Status::Failed, Outcome::Recovered) => "its controller was gone; recover undid it".to_owned(),
        (Status::Failed | Status::Interrupted, Outcome::Failure(error)) => format!("{}: {error}", status.word()),
        (Status::Cancelled, _) => "cancelled; everything is undone".to_owned(),
        (Status::Interrupted, _) => match &told {
            Some(told) => format!("its controller is gone; it was at {}", told.message),
            None => "its controller is gone".to_owned(),
        },
        (status, _) => status.word().to_owned(),
    };
    match (status, told) {
        (Status::Running | Status::Pending, Some(told)) => told,
        (Status::Interrupted, Some(told)) => Progress { speed: None, eta: None, message, ..told },
        (Status::Completed, _) => {
            let total = match outcome {
                Outcome::Result(result) => result["bytes_total"].as_u64().unwrap_or_default(),
                _ => 0,
            };
            Progress {
                progress_percent: 100.0,
                bytes_transferred: total,
                total_bytes: total,
                message,
                ..Progress::default()
            }
        }
        _ => Progress { message, ..Progress::default() },
    }
}

impl Operation {
    /// Whether its controller works on it.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        matches!(self.status, Status::Pending | Status::Running)
    }

    /// Why it is not completed, as an error; nothing where it is, or may still be.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        let error = match (self.status, &self.outcome) {
            (Status::Pending | Status::Running | Status::Completed, _) => return None,
            (_, Outcome::Failure(error)) => error.clone(),
            (Status::Cancelled, _) => Error::new(Code::Cancelled, "stopped by the user"),
            (Status::Interrupted, _) => {
                let host = &self.dest_host;
                Error::new(Code::UndoFailed, "the controller of the operation is gone before it ended")
                    .with("host", host)
                    .help(format!("kvm-clone resume {} goes on", self.id))
                    .help(format!("kvm-clone recover {host} finishes or undoes what it left"))
            }
            (Status::Failed, _) => {
                Error::transfer("the controller of the operation was gone; recover undid what it left")
                    .help("Run the command again")
            }
        };
        Some(error.with("operation_id", self.id))
    }

    /// It and its machine, for messages.
    fn names(&self) -> String {
        let (word, machine) = (self.kind.word(), &self.new_vm_name);
        format!("{word} {} of machine {machine} on {}", self.id, self.dest_host)
    }
}
