//! What a verification came to.

use kvm_clone_core::Error;
use kvm_clone_core::blocks::compare::{Differences, Range};
use kvm_clone_core::name::{DiskTarget, SourceName};
use kvm_clone_core::size::{ByteSize, whole_sectors};
use serde::Serialize;
use uuid::Uuid;

use crate::outcome::{Checksum, PhaseTime};

/// The result of a verification. Field names are a contract; sizes are bytes, durations seconds.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyResult {
    /// The operation.
    pub operation_id: Uuid,
    /// Whether nothing differs.
    pub success: bool,
    /// The machine.
    pub vm_name: SourceName,
    /// Its host.
    pub host: String,
    /// What it was compared with.
    pub against: Against,
    /// How.
    pub method: Method,
    /// How long all of it took.
    pub duration: f64,
    /// Bytes of all disks that were compared, holes included.
    pub bytes_compared: u64,
    /// Bytes in blocks that differ.
    pub bytes_differing: u64,
    /// Each disk.
    pub disks: Vec<VerifiedDisk>,
    /// Files that it has beside its disks: variables of its firmware, the state of its TPM. Only with digests.
    pub files: Vec<VerifiedFile>,
    /// How long each phase took.
    pub phases: Vec<PhaseTime>,
    /// When it ended, RFC 3339.
    pub timestamp: String,
}

/// What a machine is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Against {
    /// The digests of its last point.
    Digests {
        /// The operation that made the point.
        operation_id: Uuid,
        /// The moment whose content the machine should hold, RFC 3339.
        point: String,
    },
    /// Another machine.
    Machine {
        /// Its host.
        host: String,
        /// Its name.
        vm_name: SourceName,
    },
}

/// How disks are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// By keyed digests of their blocks.
    Digests,
    /// Bit for bit.
    Bytes,
}

/// One disk, compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedDisk {
    /// The device as the guest's definition names it.
    pub target: DiskTarget,
    /// The machine's disk; none where it has no such disk.
    pub disk: Option<VerifiedSide>,
    /// The other machine's; of a comparison with digests, the manifest that holds them.
    pub against: Option<VerifiedSide>,
    /// Whether nothing differs.
    pub identical: bool,
    /// What differs beside the ranges, as sentences.
    pub notes: Vec<String>,
    /// Bytes that were compared, holes included.
    pub bytes_compared: u64,
    /// Bytes in blocks that differ.
    pub bytes_differing: u64,
    /// Where they lie: blocks as long as those of the digests, else of 64 KiB, neighbours as one range, rising.
    pub differences: Vec<Range>,
    /// How many more ranges differ than are listed.
    pub differences_unlisted: u64,
}

/// A file beside the disks, compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedFile {
    /// The name of its digests.
    pub name: DiskTarget,
    /// Its path.
    pub path: String,
    /// What it is, in words.
    #[serde(skip)]
    pub what: &'static str,
    /// What came of it.
    #[serde(flatten)]
    pub state: FileState,
}

/// What comparing a file came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum FileState {
    /// It is what it was.
    Identical,
    /// It is not.
    Differs,
    /// It is not there any more.
    Missing,
    /// There is nothing to compare it with.
    Unknown {
        /// Why.
        why: String,
    },
}

impl VerifiedFile {
    /// Whether nothing is known to be wrong with it.
    #[must_use]
    pub const fn is_well(&self) -> bool {
        matches!(self.state, FileState::Identical | FileState::Unknown { .. })
    }

    /// What came of it, in a few words.
    #[must_use]
    pub fn words(&self) -> String {
        match &self.state {
            FileState::Identical => "identical".to_owned(),
            FileState::Differs => format!("{} differs", self.path),
            FileState::Missing => format!("{} is not there any more", self.path),
            FileState::Unknown { why } => format!("{} was not compared: {why}", self.path),
        }
    }
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedSide {
    /// The topmost image, or the manifest.
    pub path: String,
    /// Size of the disk.
    pub size: u64,
    /// The checksum of the whole disk, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
}

impl VerifiedDisk {
    /// What comparing its first `compared` bytes came to.
    pub(super) fn compared(
        target: &DiskTarget,
        (disk, against): (Option<VerifiedSide>, Option<VerifiedSide>),
        compared: u64,
        mut found: Differences,
    ) -> Self {
        if let (Some(disk), Some(against)) = (&disk, &against)
            && differ_in_size(disk, against)
        {
            found.push(compared, disk.size.max(against.size) - compared);
        }
        let bytes_differing = found.bytes();
        let (differences, differences_unlisted) = found.end();
        let notes = notes(disk.as_ref(), against.as_ref());
        Self {
            target: target.clone(),
            disk,
            against,
            identical: notes.is_empty() && bytes_differing == 0,
            notes,
            bytes_compared: compared,
            bytes_differing,
            differences,
            differences_unlisted,
        }
    }

    /// How many ranges differ.
    #[must_use]
    pub fn ranges(&self) -> u64 {
        self.differences.len() as u64 + self.differences_unlisted
    }
}

/// Whether a guest would see disks of two sizes: it sees whole sectors.
fn differ_in_size(disk: &VerifiedSide, against: &VerifiedSide) -> bool {
    whole_sectors(disk.size) != whole_sectors(against.size)
}

/// What differs beside ranges.
fn notes(disk: Option<&VerifiedSide>, against: Option<&VerifiedSide>) -> Vec<String> {
    let (Some(disk), Some(against)) = (disk, against) else {
        let has = if disk.is_some() { "the other machine" } else { "the machine" };
        return vec![format!("{has} has no such disk")];
    };
    let mut notes = Vec::new();
    if differ_in_size(disk, against) {
        notes.push(format!("the disk has {} bytes, the other one {}", disk.size, against.size));
    }
    if let (Some(ours), Some(theirs)) = (&disk.checksum, &against.checksum)
        && ours != theirs
    {
        notes.push(format!("the {} checksums differ", ours.algorithm));
    }
    notes
}

impl VerifyResult {
    /// That something differs, as an error; none where nothing does.
    #[must_use]
    pub fn difference(&self) -> Option<Error> {
        let mut differing = self.disks.iter().filter(|disk| !disk.identical);
        let Some(first) = differing.next() else { return self.differing_file() };
        let more = match differing.count() {
            0 => String::new(),
            more => format!("; {more} more disk(s) differ"),
        };
        let than = match &self.against {
            Against::Digests { point, .. } => format!("what it was at its point of {point}"),
            Against::Machine { host, vm_name } => format!("that of {vm_name} on {host}"),
        };
        let message = format!("disk {} of {} on {} is not {than}", first.target, self.vm_name, self.host);
        let error = Error::verification(format!("{message}: {}{more}", first.words())).with("disk", &first.target);
        let error = error.with("vm", &self.vm_name).with("host", &self.host);
        let error = match first.differences.first() {
            Some(range) => error.with("offset", range.offset),
            None => error,
        };
        Some(match &self.against {
            Against::Digests { .. } => {
                error.help(CHANGED).help("If nobody did, its storage is failing: look at the kernel log of its host")
            }
            Against::Machine { .. } => error.help("kvm-clone sync brings a replica to its source's present state"),
        })
    }
}

impl VerifyResult {
    fn differing_file(&self) -> Option<Error> {
        let file = self.files.iter().find(|file| !file.is_well())?;
        let Against::Digests { point, .. } = &self.against else { return None };
        let (name, host) = (&self.vm_name, &self.host);
        let message =
            format!("{} of {name} on {host} is not what it was at its point of {point}: {}", file.what, file.words());
        Some(Error::verification(message).with("vm", name).with("host", host).with("path", &file.path).help(CHANGED))
    }
}

const CHANGED: &str = "Whoever started the machine, or wrote to its images, changed it: kvm-clone sync --discard-target-changes makes it its source again";

impl VerifiedDisk {
    /// What differs, in a few words.
    #[must_use]
    pub fn words(&self) -> String {
        let ranges = match self.ranges() {
            0 => None,
            1 => Some("1 range differs".to_owned()),
            ranges => Some(format!("{ranges} ranges differ")),
        };
        let bytes = ByteSize(self.bytes_differing);
        let first = self.differences.first().map(|range| format!(", {bytes} in all, from offset {}", range.offset));
        let ranges = ranges.map(|ranges| format!("{ranges}{}", first.unwrap_or_default()));
        let words: Vec<String> = self.notes.iter().cloned().chain(ranges).collect();
        if words.is_empty() { "identical".to_owned() } else { words.join("; ") }
    }
}
