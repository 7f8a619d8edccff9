//! What an operation tells while it runs: one stream of typed events for terminal, journal, JSON and library alike.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::name::DiskTarget;

/// The parts of an operation that users see, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Hosts are reached and agents started.
    Connect,
    /// Inventories are taken and the plan is made.
    Plan,
    /// Locks are taken and staging is made.
    Prepare,
    /// Disks are copied and read back.
    Copy,
    /// Disks are compared.
    Compare,
    /// Images are made complete, durable and checked.
    Finish,
    /// The machine is defined.
    Commit,
    /// What is no longer needed is removed.
    Clean,
    /// What was done is undone.
    Undo,
}

impl Phase {
    /// The phase as one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Plan => "plan",
            Self::Prepare => "prepare",
            Self::Copy => "copy",
            Self::Compare => "compare",
            Self::Finish => "finish",
            Self::Commit => "commit",
            Self::Clean => "clean",
            Self::Undo => "undo",
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An operation began.
    Started {
        /// Its id.
        operation_id: Uuid,
    },
    /// A phase began.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// A disk will be copied, or compared.
    Disk {
        /// Its target device.
        disk: DiskTarget,
        /// Bytes that may hold data.
        bytes_total: u64,
    },
    /// Work on a disk went on.
    Progress {
        /// The disk.
        disk: DiskTarget,
        /// Bytes of it that are at the target, verified where that was asked for; or that were compared.
        bytes_done: u64,
        /// Its bytes in total.
        bytes_total: u64,
    },
    /// It failed in passing, and will be tried again.
    Retry {
        /// Which try the next one is.
        attempt: u32,
        /// Tries in all.
        attempts: u32,
        /// How long it waits before that.
        wait_milliseconds: u64,
        /// The code of the failure.
        code: u16,
        /// The failure.
        message: String,
    },
    /// Bytes moved by all disks together, counted since the start.
    Moved {
        /// Read from the source's disks.
        bytes_read: u64,
        /// Sent over the lanes.
        bytes_sent: u64,
        /// Written to the target's disks.
        bytes_written: u64,
    },
    /// Something that the user should know.
    Warning {
        /// One sentence.
        message: String,
    },
}
