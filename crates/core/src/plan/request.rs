//! What a user asks for, and the fresh identities that a pure planner cannot make itself.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::retention::Safety;
use crate::blocks::BlockSize;
use crate::domain::{Identity, Reduction, TpmState};
use crate::error::{Error, Result};
use crate::name::{ResourceName, SourceName, VmName};

/// A clone as the user asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRequest {
    /// `--new-name`; where it is missing, see [`CloneRequest::new_name`].
    pub new_name: Option<VmName>,
    /// Kept with `--replica`: name, UUID, MACs, ports and serials are the source's.
    pub identity: Identity,
    /// Kept with `--preserve-uuid`.
    pub uuid: Identity,
    /// Kept with `--preserve-mac`.
    pub macs: Identity,
    /// What happens to a machine that has the new name already.
    pub existing: Existing,
    /// `--network OLD=NEW`.
    pub networks: Vec<(String, NetworkTarget)>,
    /// What holds for the host, or held when the replica was made: passed over where no interface is plugged in there.
    pub usual_networks: Vec<(String, NetworkTarget)>,
    /// `--pool`.
    pub pool: Option<ResourceName>,
    /// `--disk-format`.
    pub disk_format: DiskFormat,
    /// The unit of comparison.
    #[serde(default)]
    pub block_size: BlockSize,
    /// `--copy-media`: what is in CD-ROM and floppy drives is copied where the target lacks it.
    pub copy_media: bool,
    /// `--keep-snapshots`: images with snapshots inside are carried as the files that they are.
    pub keep_snapshots: bool,
    /// What is left out of the copy.
    pub reduction: Reduction,
    /// `--machine auto`: a machine type that the target lacks becomes a close one.
    pub any_machine: bool,
    /// `--tpm`.
    pub tpm: TpmState,
    /// `--live` and `--offline`.
    pub presence: Presence,
    /// `--discard-managed-save`: memory that was saved with `virsh managedsave` is left out.
    pub discard_managed_save: bool,
    /// Space that must stay free beyond the data, in percent of it.
    pub space_margin_percent: u8,
    /// Of a sync: what becomes of old points.
    #[serde(default)]
    pub safety: Safety,
}

impl Default for CloneRequest {
    fn default() -> Self {
        Self {
            new_name: None,
            identity: Identity::New,
            uuid: Identity::New,
            macs: Identity::New,
            existing: Existing::Refuse,
            networks: Vec::new(),
            usual_networks: Vec::new(),
            pool: None,
            disk_format: DiskFormat::Keep,
            block_size: BlockSize::default(),
            copy_media: false,
            keep_snapshots: false,
            reduction: Reduction::default(),
            any_machine: false,
            tpm: TpmState::Unsaid,
            presence: Presence::Any,
            discard_managed_save: false,
            space_margin_percent: 15,
            safety: Safety::default(),
        }
    }
}

/// What happens to a machine that has the new name already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Existing {
    /// It stays, and nothing is done.
    #[default]
    Refuse,
    /// The new machine takes its place (`--force`).
    Replace,
    /// It is a replica of the source, and is brought to its present point (`sync`).
    Update(Update),
}

/// A sync as the user asked for it; everything else is as it was chosen when the replica was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRequest {
    /// `--target-name`; where it is missing, the replica is found by its lineage.
    pub replica: Option<VmName>,
    /// How it is brought to the newer point.
    pub update: Update,
    /// `--block-size`; where it is missing, that of the replica's last point.
    pub block_size: Option<BlockSize>,
    /// `--live` and `--offline`.
    pub presence: Presence,
    /// `--discard-managed-save`: memory of the source that was saved with `virsh managedsave` is left out.
    pub discard_managed_save: bool,
    /// Space that must be free at the beginning, in percent of the data.
    pub space_margin_percent: u8,
    /// `--safety-snapshot`, and how long points stay.
    pub safety: Safety,
}

impl Default for SyncRequest {
    fn default() -> Self {
        Self {
            replica: None,
            update: Update::default(),
            block_size: None,
            presence: Presence::Any,
            discard_managed_save: false,
            space_margin_percent: 15,
            safety: Safety::default(),
        }
    }
}

/// How a replica is brought to a newer point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Which blocks may travel.
    pub candidates: Candidates,
    /// `--disks-only`: its definition stays as it is.
    pub disks_only: bool,
    /// `--in-place`: its images are written themselves. Until that is complete it is no machine at all.
    #[serde(default)]
    pub in_place: bool,
    /// `--remove-lost-disks`: the images of disks that the source has no longer go with the commit.
    #[serde(default)]
    pub remove_lost: bool,
}

/// How one sync keeps no point where all others do.
pub(super) const WITHOUT_POINTS: &str =
    "Where the configuration keeps points: KVM_CLONE_SAFETY_SAFETY_SNAPSHOT=false kvm-clone sync …";

/// Which blocks of a disk may travel in a sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Candidates {
    /// Those that differ; all, where there is nothing to compare them with.
    #[default]
    Differing,
    /// Those that differ, and a disk that would be copied whole is refused (`--delta-only`).
    OnlyDiffering,
    /// All, into new images (`--full`).
    All,
}

/// In which state the source may be copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// As it is: a running machine at one point in time, a stopped one as it lies.
    #[default]
    Any,
    /// Only while it runs (`--live`).
    Live,
    /// Only while it is stopped (`--offline`).
    Offline,
}

/// What point in time a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// The machine was stopped.
    Stopped,
    /// The machine ran, or its memory was saved: all disks at one moment, as a power cut would have left them.
    Crash,
}

/// Where the interfaces of one network of the source go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkTarget {
    /// A network of the target, or else a bridge of that name.
    Named(ResourceName),
    /// Nowhere: unplugged.
    None,
}

impl fmt::Display for NetworkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(f),
            Self::None => f.write_str("none"),
        }
    }
}

/// The format of the new images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// That of the source's image.
    #[default]
    Keep,
    /// qcow2.
    Qcow2,
    /// raw.
    Raw,
}

/// What is new in every copy. Made by the engine, since `core` knows neither chance nor time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreshIdentity {
    /// The id of the operation; its last bytes are random.
    pub operation: Uuid,
    /// The new machine's UUID, where none is kept.
    pub uuid: Uuid,
    /// Its generation id.
    pub genid: Uuid,
    /// Random bytes for MAC addresses: a few more than the machine has interfaces.
    pub macs: Vec<[u8; 6]>,
    /// The present time (RFC 3339).
    pub now: String,
}

impl CloneRequest {
    /// The new machine's name: as asked for; else the source's for a replica; else `{VM}_clone`.
    ///
    /// # Errors
    /// [`Code::Validation`](crate::Code::Validation) where the source's name does not lead to a valid one.
    pub fn new_name(&self, source: &SourceName) -> Result<VmName> {
        if let Some(name) = &self.new_name {
            return Ok(name.clone());
        }
        let name = match self.identity {
            Identity::Kept => source.to_string(),
            Identity::New => format!("{source}_clone"),
        };
        let help = |error: Error| error.help("Give the new machine a name with --new-name");
        name.parse().map_err(help)
    }

    /// Refuses what contradicts itself.
    ///
    /// # Errors
    /// [`Code::Validation`](crate::Code::Validation).
    pub fn check(&self) -> Result<()> {
        if self.keep_snapshots && self.disk_format != DiskFormat::Keep {
            return Err(Error::validation("an image that keeps its snapshots keeps its format too")
                .help("Leave --disk-format or --keep-snapshots out"));
        }
        if let (Existing::Update(Update { candidates: Candidates::All, .. }), true) = (self.existing, self.safety.keep)
        {
            return Err(Error::validation("a sync that copies all disks into new images cannot keep the old point")
                .help("Leave --full or --safety-snapshot out")
                .help(WITHOUT_POINTS));
        }
        Ok(())
    }

    /// Whether the new machine has the source's UUID.
    #[must_use]
    pub fn keeps_uuid(&self) -> bool {
        self.identity == Identity::Kept || self.uuid == Identity::Kept
    }

    /// Whether the new machine has the source's MAC addresses.
    #[must_use]
    pub fn keeps_macs(&self) -> bool {
        self.identity == Identity::Kept || self.macs == Identity::Kept
    }
}
