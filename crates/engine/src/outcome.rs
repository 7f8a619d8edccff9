//! What an operation reports when it has ended well.

use std::collections::BTreeMap;

use kvm_clone_core::blocks::BlockSize;
use kvm_clone_core::event::Phase;
use kvm_clone_core::name::{DiskTarget, SourceName, VmName};
use kvm_clone_core::plan::{Consistency, PointPlan};
use kvm_clone_core::wire::direct::Route;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationType {
    /// A new machine is made.
    Clone,
    /// A replica is brought to a newer point.
    Sync,
}

impl OperationType {
    /// It as one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::Sync => "sync",
        }
    }
}

/// The result of a clone or a sync. Field names are a contract; sizes are bytes, durations seconds.
#[derive(Debug, Clone, Serialize)]
pub struct CloneResult {
    /// The operation.
    pub operation_id: Uuid,
    /// What it did.
    pub operation_type: OperationType,
    /// Always true: failures are errors.
    pub success: bool,
    /// The source machine.
    pub vm_name: SourceName,
    /// The new machine.
    pub new_vm_name: VmName,
    /// The new machine's UUID.
    pub new_uuid: Uuid,
    /// Where it was copied from.
    pub source_host: String,
    /// Where it was copied to.
    pub dest_host: String,
    /// How long all of it took.
    pub duration: f64,
    /// Bytes that the source's disks may hold as data.
    pub bytes_total: u64,
    /// Bytes read from the source's disks.
    pub bytes_read: u64,
    /// Bytes read from the replica's disks to know what they hold.
    pub bytes_read_dest: u64,
    /// Bytes that went over the lanes in both directions, framing included.
    pub bytes_transferred: u64,
    /// Bytes written to the target's disks.
    pub bytes_written: u64,
    /// Whether it was interrupted and went on.
    pub resumed: bool,
    /// Bytes that were at the target already when it went on, and that were right.
    pub bytes_kept: u64,
    /// The length of a block, in bytes.
    pub block_size: BlockSize,
    /// Blocks of all disks.
    pub blocks_total: u64,
    /// Blocks that hold data and were copied; of a sync, those that differed.
    pub blocks_synchronized: u64,
    /// Which way was taken.
    pub way: Way,
    /// Why that way.
    pub why: String,
    /// The way that the blocks took: over SSH, or from host to host.
    pub route: Route,
    /// What the copy is a copy of.
    pub consistency: Consistency,
    /// Whether every block was read back at the target and compared.
    pub verified: bool,
    /// A checksum for each disk.
    pub checksums: BTreeMap<DiskTarget, Checksum>,
    /// Of a sync: the old points that the replica keeps, the newest first.
    pub points: Vec<PointPlan>,
    /// Each disk, and each file beside them, on both sides.
    pub disks: Vec<DiskResult>,
    /// How long each phase took.
    pub phases: Vec<PhaseTime>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// When it ended, RFC 3339.
    pub timestamp: String,
}

/// How the blocks that travel were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// All that is allocated.
    Full,
    /// What differs from what the replica has.
    Compare,
    /// Nothing: nobody wrote to the disks of either side.
    Untouched,
}

/// A disk as it was and as it became.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskResult {
    /// The device as the guest's definition names it; of a file beside the disks, what it is.
    pub target: DiskTarget,
    /// At the source.
    pub source: DiskSide,
    /// At the target.
    pub dest: DiskSide,
}

/// One side of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskSide {
    /// The topmost image.
    pub path: String,
    /// Its format.
    pub format: String,
    /// The size that the guest sees.
    pub size: u64,
    /// Bytes that it takes on its host, with what is behind it.
    pub allocated: u64,
    /// Its blocks, as long as those that are compared.
    pub blocks: u64,
    /// Of these, blocks that hold anything but zeroes.
    pub data_blocks: u64,
}

/// A checksum of a whole disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checksum {
    /// `kvm-clone-root`, the root over the keyed digests of the manifest, unless another one was asked for.
    pub algorithm: &'static str,
    /// In hexadecimal.
    pub value: String,
}

/// How long a phase took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PhaseTime {
    /// The phase.
    pub name: Phase,
    /// Its duration.
    pub duration: f64,
    /// Bytes that it moved.
    pub bytes: u64,
}
