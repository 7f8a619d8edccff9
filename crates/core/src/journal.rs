//! What a saga's journal says, and what follows from it. Pure: `engine` keeps the records.

mod id;
mod trail;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::name::VmName;

pub use id::IdPart;
pub use trail::Trail;

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Written down, not begun.
    Pending,
    /// Its controller works on it.
    Running,
    /// It reached its end; the new machine is there.
    Completed,
    /// It failed and everything was undone.
    Failed,
    /// The user stopped it and everything was undone.
    Cancelled,
    /// Its controller is gone, or undoing failed; `recover` finishes or undoes it.
    Interrupted,
}

/// The steps of a clone or a sync, in the order in which they are done; undone in reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The marker on the target host says what will be made.
    Mark,
    /// Staging images are made.
    Stage,
    /// A point of a running source is held.
    Point,
    /// Of a sync in place: the replica is taken out of service.
    Withdraw,
    /// Disks are copied.
    Copy,
    /// Images are complete, durable, checked.
    Finish,
    /// Images get their final names.
    Place,
    /// The definition: the commit.
    Define,
    /// Of a sync: files that the definition does not name become those of the new point.
    Renew,
    /// Of a sync: the overlays are merged into the replica's images.
    Flatten,
    /// Of a sync: the definition names the replica's images again.
    Settle,
    /// Replaced disks, overlays and the marker are removed.
    Clean,
}

impl Status {
    /// Whether nothing will change it any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The status as one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }
}

impl Step {
    /// All steps in order.
    pub const ALL: [Step; 12] = [
        Step::Mark,
        Step::Stage,
        Step::Point,
        Step::Withdraw,
        Step::Copy,
        Step::Finish,
        Step::Place,
        Step::Define,
        Step::Renew,
        Step::Flatten,
        Step::Settle,
        Step::Clean,
    ];

    /// Whether only a sync has it.
    #[must_use]
    pub const fn is_of_sync(self) -> bool {
        matches!(self, Self::Withdraw | Self::Renew | Self::Flatten | Self::Settle)
    }

    /// Whether only a sync that writes in place has it.
    #[must_use]
    pub const fn is_in_place(self) -> bool {
        matches!(self, Self::Withdraw)
    }

    /// The step as one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Mark => "mark",
            Self::Stage => "stage",
            Self::Point => "point",
            Self::Withdraw => "withdraw",
            Self::Copy => "copy",
            Self::Finish => "finish",
            Self::Place => "place",
            Self::Define => "define",
            Self::Renew => "renew",
            Self::Flatten => "flatten",
            Self::Settle => "settle",
            Self::Clean => "clean",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Step {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|step| step.word() == word);
        found.ok_or_else(|| Error::internal(format!("the journal names a step {word:?}, which there is not")))
    }
}

/// What is written down about a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// It is about to be done: from here on it may have happened.
    Intended,
    /// It was done.
    Done,
    /// It was undone.
    Undone,
    /// The operation, which was interrupted, is gone on with, from this step.
    Resumed,
}

impl Mark {
    /// All of them.
    pub const ALL: [Mark; 4] = [Mark::Intended, Mark::Done, Mark::Undone, Mark::Resumed];

    /// The mark as one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Done => "done",
            Self::Undone => "undone",
            Self::Resumed => "resumed",
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Mark {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|mark| mark.word() == word);
        found.ok_or_else(|| Error::internal(format!("the journal has a mark {word:?}, which there is not")))
    }
}

/// What a later process must do with an operation whose controller is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// The definition stands: only cleaning up is left.
    Finish,
    /// The definition does not stand: whatever was made is removed.
    Undo,
    /// The machine is out of service, written in part: it can neither be finished nor undone without its source.
    Leave,
    /// Its new point may be merged in part into the images of the old one, and the definition that named it is gone: as long as the overlays
    /// are there, only a person can tell what they are for.
    Ask,
}

/// What a machine's definition is to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// The one that it made: it is committed.
    Made,
    /// The one by which it took the machine out of service, to write its disks in place.
    Withdrawn,
    /// Another one, or none.
    Another,
}

/// Decides by the one fact that counts: which definition the target's libvirt has. Once overlays are being merged, that it was
/// the operation's own before is known, too.
#[must_use]
pub const fn recovery(definition: Stands, merging: bool) -> Recovery {
    match definition {
        Stands::Made => Recovery::Finish,
        Stands::Withdrawn => Recovery::Leave,
        Stands::Another if merging => Recovery::Ask,
        Stands::Another => Recovery::Undo,
    }
}

/// What two operations must never hold at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockKey {
    /// A machine that exists, as source or target.
    Machine(Uuid),
    /// A name that a machine will get.
    Name(VmName),
}

impl fmt::Display for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(uuid) => write!(f, "uuid-{uuid}"),
            Self::Name(name) => write!(f, "name-{name}"),
        }
    }
}

/// Whether a string can be a lock key, and so the name of a file in the locks' directory.
#[must_use]
pub fn is_lock_key(text: &str) -> bool {
    let uuid = text.strip_prefix("uuid-").is_some_and(|uuid| uuid.parse::<Uuid>().is_ok());
    uuid || text.strip_prefix("name-").is_some_and(|name| name.parse::<VmName>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_in_part_is_neither_finished_nor_undone() {
        assert_eq!(recovery(Stands::Made, true), Recovery::Finish);
        assert_eq!(recovery(Stands::Withdrawn, false), Recovery::Leave);
        assert_eq!(recovery(Stands::Another, false), Recovery::Undo);
        assert_eq!(recovery(Stands::Another, true), Recovery::Ask);
    }

    #[test]
    fn only_keys_of_ours_can_be_lock_files() {
        assert!(is_lock_key(&LockKey::Machine(Uuid::nil()).to_string()));
        assert!(is_lock_key("name-web1"));
        for text in ["", "name-", "uuid-x", "../x", "name-../x", "web1"] {
            assert!(!is_lock_key(text), "{text}");
        }
    }
}
