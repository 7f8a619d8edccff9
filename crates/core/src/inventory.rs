//! What hosts have: the facts that a plan is made from.
//!
//! Sizes are bytes unless a field says otherwise. Paths are those of the host that the fact is about, with symbolic
//! links resolved, so that two names of one file are seen to be one.

mod cpus;
mod libvirt;
mod live;
mod network;
mod topology;

pub use cpus::Cpus;
pub use libvirt::{can_back_up, qemu_owner};
pub use live::LiveMachine;
pub use network::{Network, Vlans};
pub use topology::{HugePages, Topology, number_list};
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::Lineage;
use crate::error::Error;
use crate::name::{DiskTarget, SourceName};

/// The random id of a host, by which one host under two names is recognised.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostId(pub String);

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Its guest runs.
    Running,
    /// There is no process.
    Stopped,
    /// Its process is there, its CPUs stand still.
    Paused,
    /// Its guest went to sleep.
    Suspended,
    /// Its guest crashed and its process was kept.
    Crashed,
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Crashed => "crashed",
        })
    }
}

/// A machine as `list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: SourceName,
    /// Its UUID.
    pub uuid: Uuid,
    /// What it is doing.
    pub state: MachineState,
    /// Memory in MiB.
    pub memory: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Disks, CD-ROM and floppy drives.
    pub disks: Vec<MachineDisk>,
    /// Network interfaces.
    pub networks: Vec<MachineNetwork>,
    /// The host, as the user named it.
    pub host: String,
    /// Where it was copied from, if kvm-clone made it.
    pub replica_of: Option<ReplicaOf>,
}

/// A disk as `list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDisk {
    /// The path, or the volume's name; nothing for an empty drive.
    pub path: Option<String>,
    /// The size that the guest sees, where it is known.
    pub size: Option<u64>,
    /// The image format.
    pub format: Option<String>,
    /// The device as the guest's definition names it.
    pub target: DiskTarget,
    /// The pool, where it is known.
    pub pool: Option<String>,
}

/// A network interface as `list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineNetwork {
    /// The name of its host side, while there is one.
    pub interface: Option<String>,
    /// The MAC address.
    pub mac_address: Option<String>,
    /// The network, bridge or host device that it is plugged into.
    pub network: Option<String>,
    /// The guest's address, where it is known.
    pub ip_address: Option<String>,
}

/// Where a machine was copied from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaOf {
    /// The source's host, as the user named it then.
    pub host: String,
    /// The source's name.
    pub name: SourceName,
    /// The moment whose content it holds (RFC 3339).
    pub point: String,
    /// Seconds since then; filled in by who has a clock.
    pub age_seconds: Option<u64>,
    /// Older points that are kept, the newest first.
    pub points: Vec<PointOf>,
    /// Whether it holds its point no more: its images were being written in place, and it is out of service until the next
    /// sync.
    pub incomplete: bool,
}

/// An older point that a replica keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointOf {
    /// The moment whose content it holds (RFC 3339).
    pub point: String,
    /// Seconds since then; filled in by who has a clock.
    pub age_seconds: Option<u64>,
    /// Bytes that keeping it takes; filled in by who sees the images.
    pub bytes: Option<u64>,
    /// The image of each disk that holds it.
    pub images: BTreeMap<DiskTarget, PointImage>,
}

/// An image that holds a disk as of an older point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointImage {
    /// Its path.
    pub path: String,
    /// Its format.
    pub format: ImageFormat,
}

/// The machine to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceMachine {
    /// The host's id.
    pub host: HostId,
    /// The host, as the user named it.
    pub host_name: String,
    /// The machine's name.
    pub name: SourceName,
    /// The machine's UUID.
    pub uuid: Uuid,
    /// The definition that its next start takes, with the passwords in it: never shown as it is.
    pub xml: String,
    /// What it is doing.
    pub state: MachineState,
    /// Whether libvirt keeps its definition when it stops.
    pub persistent: bool,
    /// Whether its memory was saved to disk (`virsh managedsave`).
    pub managed_save: bool,
    /// The names of the snapshots that libvirt knows.
    pub snapshots: Vec<String>,
    /// The images of each disk.
    pub images: BTreeMap<DiskTarget, ImageChain>,
    /// Why the images of these disks could not be looked at.
    #[serde(default)]
    pub unseen: BTreeMap<DiskTarget, Error>,
    /// Files beside the disks that the copy gets too, by the path that the definition has; those that exist.
    pub files: BTreeMap<String, ImageChain>,
    /// Where its host's libvirt keeps firmware variables that no definition names.
    pub nvram_dir: String,
    /// Where its host's libvirt keeps the states of emulated TPMs.
    pub tpm_dir: String,
    /// Its process, where there is one.
    pub live: Option<LiveMachine>,
    /// Whether its host has `qemu-nbd`, which reads what our own readers do not.
    pub qemu_nbd: bool,
}

/// An image and its backing images, the topmost first.
pub type ImageChain = Vec<ImageFacts>;

/// An image file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Its path.
    pub path: String,
    /// Its format: that of the topmost image as the definition says it, that of a backing image as the image above it
    /// says it. Never guessed from the content, which for a raw disk its guest writes.
    pub format: ImageFormat,
    /// The size that the guest sees.
    pub virtual_size: u64,
    /// The bytes that it takes on disk.
    pub allocated: u64,
    /// Which file it is.
    pub file: FileId,
    /// The number of snapshots inside it.
    pub snapshots: u32,
    /// Whether it has bitmaps inside, as backup programs leave them.
    #[serde(default)]
    pub bitmaps: bool,
    /// What it needs and no reader has, in words: `LUKS encryption`, …
    pub unsupported: Vec<String>,
    /// What it needs and only qemu's own readers have: `zstd compression`, …
    pub by_qemu: Vec<String>,
    /// The file that holds its data, where that is another one.
    pub data_file: Option<String>,
    /// What `qemu-img check` found wrong with it.
    pub broken: Option<String>,
    /// Whether it is a plain file, not a device.
    pub regular_file: bool,
    /// Of a device, what it calls itself on every host that reaches it.
    pub device_id: Option<String>,
    /// The pool of its host that holds it.
    pub pool: Option<String>,
}

/// Which file a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    /// The number of its file system on its host.
    pub device: u64,
    /// Its number in the file system; on network storage the same on every host.
    pub inode: u64,
    /// Its length.
    pub length: u64,
    /// When it was made, in nanoseconds since the epoch, where its file system says that.
    pub born: Option<i128>,
}

impl FileId {
    /// Whether these, of one host, are one file, by whatever paths it was reached.
    #[must_use]
    pub const fn is(&self, other: &Self) -> bool {
        self.inode == other.inode && self.device == other.device
    }

    /// Whether two hosts mean one file by these: on shared storage it has one number and was made at one moment, while
    /// device numbers are each host's own. Where a host does not know that moment, the number alone counts: an image that grows
    /// has another length at each look, and of two unlike files one is better refused than the only one removed.
    #[must_use]
    pub fn is_shared_with(&self, other: &Self) -> bool {
        let born_apart = self.born.zip(other.born).is_some_and(|(here, there)| here != there);
        self.inode == other.inode && !born_apart
    }
}

/// The format of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The bytes as the guest sees them.
    Raw,
    /// qemu's copy-on-write format.
    Qcow2,
    /// Another one of qemu's, by its name.
    Other(String),
}

impl ImageFormat {
    /// The format of this name; libvirt takes a missing one as raw: formatdomain, "Hard drives, floppy disks, CDROMs"
    /// (`driver`).
    #[must_use]
    pub fn named(name: Option<&str>) -> Self {
        match name {
            Some("raw") | None => Self::Raw,
            Some("qcow2") => Self::Qcow2,
            Some(other) => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw => f.write_str("raw"),
            Self::Qcow2 => f.write_str("qcow2"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// The host that the copy goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetHost {
    /// The host's id.
    pub host: HostId,
    /// The host, as the user named it.
    pub host_name: String,
    /// libvirt's version as it counts: 9.1.2 is 9001002.
    pub libvirt_version: u64,
    /// CPUs that are online.
    pub cpus: u32,
    /// Memory of the host.
    pub memory_total: u64,
    /// Memory that a new process could take.
    pub memory_available: u64,
    /// Storage pools.
    pub pools: Vec<Pool>,
    /// libvirt's networks.
    pub networks: Vec<Network>,
    /// Bridges of the host.
    pub bridges: BTreeSet<String>,
    /// Network devices of the host that a `direct` interface can stand on.
    pub links: BTreeSet<String>,
    /// Whether its libvirt makes network devices, as that of the whole host does, and a user's own does not.
    pub makes_devices: bool,
    /// libvirt's network filters, where the machine needs any.
    pub network_filters: BTreeSet<String>,
    /// Its addresses; none where they are not known.
    pub addresses: BTreeSet<IpAddr>,
    /// What a machine can be bound to here.
    pub topology: Topology,
    /// What can run here.
    pub capabilities: Vec<DomainCapabilities>,
    /// The CPUs that its emulator for this machine can show; none where nobody needs to know.
    pub guest_cpus: Option<Cpus>,
    /// Where its libvirt keeps firmware variables that no definition names.
    pub nvram_dir: String,
    /// Where its libvirt keeps the states of emulated TPMs.
    pub tpm_dir: String,
    /// libvirt's secrets, of which one may be what a machine's TPM is encrypted with.
    pub secrets: BTreeSet<Uuid>,
    /// The machines that are there.
    pub machines: Vec<ExistingMachine>,
    /// Which of the paths asked about ([`crate::plan::wanted_paths`]) are there.
    pub paths_present: BTreeSet<String>,
    /// What those that are there lead to.
    pub files: BTreeMap<String, SeenFile>,
    /// The machine that is to be brought to a newer point, where that is what was asked for.
    pub replica: Option<Replica>,
}

/// A machine that was copied from the source before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its name.
    pub name: SourceName,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its definition, with the passwords in it: never shown as it is.
    pub xml: String,
    /// What ties it to its source.
    pub lineage: Lineage,
    /// Where it is out of service: disks that somebody has given another image since.
    pub given: Vec<DiskTarget>,
    /// The images of each of its disks.
    pub images: BTreeMap<DiskTarget, ImageChain>,
    /// Seconds since its points, where that can be told: of its present one first, then of those that its lineage lists.
    pub ages: Vec<Option<u64>>,
}

/// What a path of the target leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenFile {
    /// Which file it is.
    pub file: FileId,
    /// Of a device, what it calls itself on every host that reaches it.
    pub device_id: Option<String>,
}

/// A storage pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Whether it is started; its numbers are nought otherwise.
    pub active: bool,
    /// Its type: `dir`, `logical`, …
    pub kind: String,
    /// Where its volumes are.
    pub path: Option<String>,
    /// Its size.
    pub capacity: u64,
    /// What is free.
    pub available: u64,
}

impl Pool {
    /// Whether volumes are plain files in a directory: formatstorage, "Storage pool XML".
    #[must_use]
    pub fn holds_files(&self) -> bool {
        matches!(self.kind.as_str(), "dir" | "fs" | "netfs") && self.path.is_some()
    }
}

/// What one emulator can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainCapabilities {
    /// The guest's architecture.
    pub arch: String,
    /// The accelerator: `kvm`, `qemu`.
    pub virt_type: String,
    /// The emulator's path.
    pub emulator: String,
    /// Machine types, aliases and the names behind them.
    pub machines: Vec<String>,
}

/// A machine that is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExistingMachine {
    /// Its name.
    pub name: SourceName,
    /// Its UUID.
    pub uuid: Uuid,
    /// What it is doing.
    pub state: MachineState,
    /// The files that it writes to as disks: the topmost image of each disk that is not read-only.
    pub disk_files: Vec<DiskFile>,
    /// Every file that it uses: images, their backing images, media.
    pub uses: BTreeSet<String>,
    /// What the paths that it names lead to, and the files behind its images: one file may go by many paths. Looked for
    /// only where files of machines will be removed.
    pub used_files: Vec<FileId>,
    /// Images of it that are there and of which cannot be told what they stand on, in words: it may be anything.
    pub unseen: Vec<String>,
    /// Whether its memory was saved to disk.
    pub managed_save: bool,
    /// The number of its snapshots.
    pub snapshots: u32,
    /// The number of its checkpoints.
    pub checkpoints: u32,
}

impl ExistingMachine {
    /// Whether it uses this file, by whatever path.
    #[must_use]
    pub fn uses_file(&self, path: &str, file: FileId) -> bool {
        self.uses.contains(path) || self.used_files.iter().any(|used| used.is(&file))
    }
}

/// A disk of a machine that is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFile {
    /// Its path.
    pub path: String,
    /// Which file it is; nothing where it is missing, or is a device: then it is nothing that can be removed.
    pub file: Option<FileId>,
}
