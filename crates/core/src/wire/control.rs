//! Messages between the controller and the control agent of a host.
//!
//! The controller asks ([`Request`]), the agent answers ([`FromAgent::Response`]), having told of its progress where that takes
//! long; several questions may be open at once. Beside them go heartbeats in both directions, events of lanes, and the relayed
//! bytes of libvirt's RPC in frames of their own. Nothing here is a decision: the agent does what it is told, within what it was
//! told to lock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::lane::{Export, ImageSpec, LaneCommand, LaneEvent};
use super::point::{PointNote, PointOrder, PointPlace, PointState};
use super::replica::{
    DiskChain, Flatten, Flattened, ManifestQuery, ManifestState, OverlayFile, RenewedFile, SealOrder, SealQuery,
    SealState,
};
use super::verify::DigestQuery;
use crate::blocks::compare::GroupPage;
use crate::blocks::{BlockSize, Digest, DigestKey};
use crate::checksum::Algorithm;
use crate::error::Error;
use crate::inventory::{FileId, HostId, ImageFacts, Topology};

/// Which disk of an operation, in the order of its plan.
pub type DiskIndex = u16;
/// Which lane of an operation.
pub type LaneId = u16;
/// Which relayed libvirt connection of a control agent.
pub type StreamId = u16;

/// The first message of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::PROTOCOL_VERSION`] of the agent.
    pub protocol: u16,
    /// SHA-256 of the agent's own program file, in hexadecimal.
    pub build: String,
    /// The session that lane agents join.
    pub session: Uuid,
}

/// The first message of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`super::PROTOCOL_VERSION`] of the controller.
    pub protocol: u16,
    /// Seconds without a message from the controller after which the agent ends itself.
    pub silence_seconds: u32,
    /// Who the controller is, for whoever meets our locks: `user@host pid N`.
    pub controller: String,
}

/// From the controller to the control agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Who we are.
    Welcome(Welcome),
    /// The controller lives.
    Heartbeat,
    /// A question or an order; the answer carries the same number.
    Request(u32, Request),
    /// A message for a lane agent of this host.
    Lane(LaneId, LaneCommand),
    /// The controller closed its end of a libvirt connection.
    RelayClosed(StreamId),
}

/// From the control agent to the controller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromAgent {
    /// Who the agent is.
    Hello(Hello),
    /// The agent lives.
    Heartbeat,
    /// The answer to the request of that number.
    Response(u32, Result<Reply, Error>),
    /// The request of that number is being worked on, and so much is done: a count that only rises, of whatever there is to
    /// count. It is sent because of work and never because of time.
    Progress(u32, u64),
    /// A lane agent of this host tells something.
    Lane(LaneId, LaneEvent),
    /// libvirt closed its end of a connection.
    RelayClosed(StreamId),
}

/// What the controller can ask of a control agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Facts about the host. → [`Reply::Facts`]
    Facts,
    /// Open libvirt's socket and relay it. → [`Reply::Relay`]
    OpenLibvirt,
    /// Take these locks, all or none, for this operation, without waiting. → [`Reply::Done`]
    Lock {
        /// The operation that wants them.
        operation: Uuid,
        /// Keys as [`crate::journal::LockKey`] makes them.
        keys: Vec<String>,
    },
    /// Let go of the locks. → [`Reply::Done`]
    Unlock,
    /// Look at an image and every file behind it. → [`Reply::Chain`]
    Inspect(ImageSpec),
    /// Have `qemu-img` check one image's own structure. → [`Reply::Checked`]
    CheckImage(ImageSpec),
    /// Have `qemu-nbd` read an image, until lane agents are ended. → [`Reply::Export`]
    Export {
        /// The export's name.
        name: String,
        /// The image; what it names is opened, and nothing else.
        image: ImageSpec,
    },
    /// Read a whole disk in order. → [`Reply::Checksum`]
    Checksum {
        /// The disk.
        image: ImageSpec,
        /// What is computed.
        algorithm: Algorithm,
    },
    /// The digests of a disk's groups of blocks, from this group on. → [`Reply::GroupDigests`]
    GroupDigests(DigestQuery, u64),
    /// The digests of all blocks of these groups, which rise; at most [`super::verify::GROUPS_ASKED`]. → [`Reply::BlockDigests`]
    BlockDigests(DigestQuery, Vec<u64>),
    /// What a disk holds there. → [`Reply::Bytes`]
    Read {
        /// The disk.
        image: ImageSpec,
        /// Where it begins, in bytes.
        offset: u64,
        /// How many bytes; at most [`super::verify::BYTES_ASKED`].
        len: u64,
    },
    /// How much data each segment of a disk may hold. → [`Reply::Segments`]
    Segments {
        /// The disk.
        image: ImageSpec,
        /// Length of a segment in bytes.
        segment_len: u64,
        /// The first segment of the answer.
        from: u64,
    },
    /// Which of these paths exist, and what is free where they would lie. → [`Reply::Paths`]
    Paths(Vec<String>),
    /// Write down on this host what the operation is about to make, durably, before it makes it. → [`Reply::Done`]
    PutMarker(Box<Marker>),
    /// Every marker on this host. → [`Reply::Markers`]
    Markers,
    /// Take a marker away. → [`Reply::Done`]
    RemoveMarker(Uuid),
    /// Make a directory that the marker names; one that is there is fine. → [`Reply::Done`]
    MakeDirectory(NewDirectory),
    /// Make an empty staging image and its manifest. → [`Reply::Done`]
    CreateImage(NewImage),
    /// Get ready to go on with an interrupted operation, whose marker stands: its files that have final names get their
    /// staging names back, and its directories go with what it put into them. → [`Reply::Staged`]
    TakeUp(Uuid),
    /// Go on with a staging image that an interrupted try has left, where it is one that can be written on, else make an
    /// empty one. Its manifest is made anew. → [`Reply::TakenUp`]
    TakeUpImage(NewImage),
    /// Make a staged image complete and durable, check it, and give it its owner. → [`Reply::Image`]
    FinishImage(NewImage),
    /// Take out of an image that was carried as the file that it is what must not come along, have qemu check it, and hand
    /// it over. → [`Reply::Image`]
    SettleImage(NewImage),
    /// Get an image of the machine ready to be written itself: a file is locked as qemu locks images, so that no guest starts on
    /// it, a device is refused that is mounted or part of another; until it is finished or the session ends. A manifest is made,
    /// and what the page cache holds of a file is made durable and dropped. Nothing of it is changed. → [`Reply::Done`]
    TakeInPlace(NewImage),
    /// Give an image that was taken the size that its disk shall have: larger, or shorter by less than a sector. →
    /// [`Reply::Done`]
    ResizeInPlace(NewImage),
    /// Make an image that was written in place durable, check it, complete its manifest, and let go of it. → [`Reply::Image`]
    FinishInPlace(NewImage),
    /// Keep emulators away from the states that the marker says are renewed, until they are: who starts the machine meanwhile
    /// is refused. → [`Reply::Done`]
    HoldState(Uuid),
    /// Have what is staged take the places of the files that the marker says are renewed, durably, unless somebody changed one of
    /// these since; what was done already is left. → [`Reply::Renewed`]
    RenewFiles(Uuid),
    /// Bring what an overlay holds into the image under it, durably. Until that is done the overlay shows the same disk, done
    /// or half done, and it can be done again. → [`Reply::Flattened`]
    Flatten(Flatten),
    /// Write down what the present content of disks is, in place of all seals of the same lineages, durably. A disk whose files
    /// prove nothing gets a seal that is never trusted. → [`Reply::Done`]
    TakeSeals(Vec<SealOrder>),
    /// What the seals of these disks are worth now. → [`Reply::Seals`]
    Seals(Vec<SealQuery>),
    /// Read a manifest from its beginning to its end. → [`Reply::Manifest`]
    Manifest(ManifestQuery),
    /// Make the manifest of a disk that did not change since: a complete one, copied under this operation's id, durably. →
    /// [`Reply::Done`]
    AdoptManifest {
        /// The operation whose marker names the new manifest.
        operation: Uuid,
        /// The manifest of the point before.
        from: String,
        /// The new one; one that is there already is replaced.
        to: String,
    },
    /// Give a file its final name; an existing file of that name is an error. → [`Reply::Done`]
    Rename {
        /// The operation whose marker tells a file that has its final name already.
        operation: Uuid,
        /// Present path.
        from: String,
        /// New path, in the same directory.
        to: String,
    },
    /// Remove files and empty directories that a marker of this operation names; those not there are fine. →
    /// [`Reply::Done`]
    Remove {
        /// The operation whose marker names them.
        operation: Uuid,
        /// Their paths.
        paths: Vec<String>,
    },
    /// Get ready to hold a point of a running machine, before libvirt is asked for its job. → [`Reply::Point`]
    ArmPoint(PointOrder),
    /// How the point fares. → [`Reply::PointState`]
    PointState,
    /// End the job that holds the point, and remove what belongs to it. → [`Reply::Done`]
    EndPoint {
        /// Whether libvirt has answered the order to begin the job, so that none can come up later.
        settled: bool,
    },
    /// End what dead operations left on the machines whose locks are held. → [`Reply::Done`]
    ClearPoints,
    /// Points that dead operations may have left on this host. → [`Reply::Points`]
    Points,
    /// Make libvirt's definitions durable. → [`Reply::Done`]
    SyncDefinitions,
    /// Start a lane agent here, for a lane that will leave SSH. → [`Reply::Done`]
    StartLane(LaneId),
    /// Take lane agents in again, after they were ended. → [`Reply::Done`]
    OpenLanes,
    /// Wait until no lane agent of this session is left. → [`Reply::Done`]
    EndLanes,
}

/// An image to be made at the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewImage {
    /// The operation it belongs to.
    pub operation: Uuid,
    /// Which disk.
    pub disk: DiskIndex,
    /// The staging image.
    pub image: ImageSpec,
    /// Size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Where the digests are kept.
    pub manifest: String,
    /// The key of the digests.
    pub key: DigestKey,
    /// The length of the blocks that they are of.
    pub block: BlockSize,
    /// Owner and group that the finished image gets; none leaves it to libvirt's dynamic ownership.
    pub owner: Option<(u32, u32)>,
    /// Permission bits of the finished image.
    pub mode: u32,
}

/// A directory to be made at the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDirectory {
    /// The operation whose marker names it.
    pub operation: Uuid,
    /// Its path.
    pub path: String,
    /// Owner and group; none leaves it to the agent's user.
    pub owner: Option<(u32, u32)>,
    /// Permission bits.
    pub mode: u32,
}

/// The note on a host that says what an operation makes there, so that anybody can finish or undo it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Marker {
    /// The operation.
    pub operation: Uuid,
    /// Host and machine it copies from, for people.
    pub source: String,
    /// Name of the machine it makes.
    pub machine: String,
    /// UUID of the machine it makes.
    pub uuid: Uuid,
    /// Lock keys on this host.
    pub keys: Vec<String>,
    /// Staging files, removed by undo.
    pub staging: Vec<String>,
    /// Files under their final names, removed by undo unless a definition made by this operation stands.
    pub finals: Vec<FinalFile>,
    /// Directories made for them, the outermost first; undo removes those that are empty.
    #[serde(default)]
    pub directories: Vec<String>,
    /// Pools that hold the files.
    pub pools: Vec<String>,
    /// Manifests.
    pub manifests: Vec<String>,
    /// Whether the machine is a replica that is brought to a newer point, not a new one.
    #[serde(default)]
    pub sync: bool,
    /// Overlays over images of the machine that are merged into these, in this order. Which of them its definition names, tells
    /// whether they count: one that it names is flattened, one that nothing names is removed. An overlay that stays, because the
    /// point under it is kept, is not among them.
    #[serde(default)]
    pub overlays: Vec<OverlayFile>,
    /// What the disks that have such overlays lie in once these are merged.
    #[serde(default)]
    pub chains: Vec<DiskChain>,
    /// Images of the machine that are written in place. They are its own: nobody removes them.
    #[serde(default)]
    pub in_place: Vec<String>,
    /// Files of the machine that no definition names, and that become those of the new point right after it.
    #[serde(default)]
    pub renewed: Vec<RenewedFile>,
    /// Manifests and seals of the point before, removed once the new definition stands; those of disks before these are
    /// written in place.
    #[serde(default)]
    pub outdated: Vec<String>,
    /// Files of the replaced machine, removed once the new definition stands.
    pub replaced: Vec<String>,
    /// When it began, RFC 3339.
    pub created: String,
}

impl Marker {
    /// What is removed once the new definition stands: files of the machine before, overlays that are merged, and what was kept
    /// of the point before.
    #[must_use]
    pub fn outlived(&self) -> Vec<String> {
        let overlays = self.overlays.iter().map(|overlay| overlay.path.clone()).collect();
        [self.replaced.clone(), overlays, self.outdated.clone(), self.staging.clone()].concat()
    }

    /// The final names that files have before the commit.
    #[must_use]
    pub fn placed(&self) -> Vec<String> {
        let is_renewed = |path: &String| self.renewed.iter().any(|file| file.path == *path);
        self.finals.iter().map(|file| &file.path).filter(|path| !is_renewed(path)).cloned().collect()
    }

    /// What undoing removes beside files that have their final names, in order: a directory goes after what is in it.
    #[must_use]
    pub fn staged(&self) -> Vec<String> {
        let directories = self.directories.iter().rev().cloned().collect();
        [self.staging.clone(), self.manifests.clone(), directories].concat()
    }
}

/// A file that gets its final name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalFile {
    /// The final name.
    pub path: String,
    /// What tells the complete file from others. Until it is known, and where another file has the name, what is there is
    /// not ours.
    pub identity: Option<Identity>,
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// Facts about the host.
    Facts(Box<HostFacts>),
    /// The relayed connection's number.
    Relay(StreamId),
    /// The image and the files behind it, top first, with what identifies their present contents.
    Chain(Vec<(ImageFacts, Identity)>),
    /// A checksum, in hexadecimal.
    Checksum(String),
    /// Digests of groups, and how far they reach.
    GroupDigests(GroupPage),
    /// Digests of blocks, in order.
    BlockDigests(Vec<Digest>),
    /// What a disk holds.
    Bytes(Vec<u8>),
    /// What is wrong with an image.
    Checked(Option<String>),
    /// Where an export is found.
    Export(Export),
    /// Segments that hold data, as (index, bytes that may be data), and where to go on if there are more.
    Segments {
        /// Segments with data in them.
        segments: Vec<(u64, u64)>,
        /// The segment to ask from next.
        next: Option<u64>,
    },
    /// What was found, by path.
    Paths(BTreeMap<String, PathFacts>),
    /// All markers.
    Markers(Vec<Marker>),
    /// The staging images that are there, with the bytes that each takes.
    Staged(BTreeMap<String, u64>),
    /// Whether what was there of a staging image is gone on with; if not, why.
    TakenUp(Result<(), String>),
    /// A finished image.
    Image(FinishedImage),
    /// Whether files were renewed; if not, why those that are there stay.
    Renewed(Result<(), String>),
    /// A flattened overlay.
    Flattened(Box<Flattened>),
    /// What seals are worth, in the order of the question.
    Seals(Vec<SealState>),
    /// What a manifest is worth.
    Manifest(ManifestState),
    /// Where a point's socket and scratch files will be.
    Point(PointPlace),
    /// How a point fares.
    PointState(PointState),
    /// Points of dead operations.
    Points(Vec<PointNote>),
}

/// What identifies the contents of a file on a local file system: if none of it changed, nobody wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Size in bytes.
    pub size: u64,
    /// Device and inode.
    pub inode: (u64, u64),
    /// Time of the last write, nanoseconds since the epoch.
    pub modified: i128,
    /// Time of the last change of contents or attributes, nanoseconds since the epoch.
    pub changed: i128,
}

impl Identity {
    /// Whether both are one file, written to by nobody between the two looks. Renaming it, giving it away or booting the
    /// host (which may number its devices anew) changes nothing of that.
    #[must_use]
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.inode.1, self.size, self.modified) == (other.inode.1, other.size, other.modified)
    }
}

/// A path on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathFacts {
    /// Whether something is there.
    pub exists: bool,
    /// Whether it is a directory.
    pub directory: bool,
    /// Bytes that can be written to the file system it is or would be on; 0 where its directory is missing.
    pub available: u64,
    /// Which file it leads to.
    pub file: Option<FileId>,
    /// Of a device, what it calls itself on every host that reaches it.
    pub device_id: Option<String>,
}

/// A finished image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedImage {
    /// What identifies it from now on.
    pub identity: Identity,
    /// Bytes it takes on the host.
    pub allocated: u64,
    /// The root over its digests.
    pub root: [u8; 32],
    /// Blocks that hold data.
    pub data_blocks: u64,
}

/// What an agent knows of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The random id of this host.
    pub id: HostId,
    /// Its name.
    pub hostname: String,
    /// `uname -m`.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// Processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Memory that can be had without swapping, in bytes.
    pub memory_available: u64,
    /// Whether the processors have AES instructions.
    pub aes: bool,
    /// The user that the agent runs as.
    pub uid: u32,
    /// Whether `/dev/kvm` can be opened.
    pub kvm: bool,
    /// libvirt's sockets that exist, in the order in which they are tried.
    pub libvirt_sockets: Vec<String>,
    /// Programs that we may need, with their paths; those missing are not here.
    pub programs: BTreeMap<String, String>,
    /// Where manifests, markers and agents are kept.
    pub state_dir: String,
    /// Where libvirt keeps firmware variables that no definition names.
    pub nvram_dir: String,
    /// Where libvirt keeps the states of emulated TPMs.
    pub tpm_dir: String,
    /// User and group that emulators of TPMs run as; none where that is the agent's user.
    pub tpm_owner: Option<(u32, u32)>,
    /// Random id of this boot.
    pub boot_id: String,
    /// Bridges that interfaces can be put on.
    pub bridges: Vec<String>,
    /// Network devices.
    pub links: Vec<String>,
    /// Addresses of its own.
    pub addresses: BTreeSet<IpAddr>,
    /// CPUs, NUMA nodes and huge pages.
    pub topology: Topology,
    /// Seconds since the epoch, for finding clocks that differ.
    pub clock: i64,
}
