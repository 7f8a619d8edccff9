//! Messages between the controller and the control agent of a host.
//!
//! The controller asks ([`Request`]), the agent answers ([`FromAgent::Response`]), having told of its progress where that takes
//! long; several questions may be open at once. Beside them go heartbeats in both directions, events of lanes, and the relayed
//! bytes of libvirt's RPC in frames of their own. Nothing here is a decision: the agent does what it is told, within what it was
//! told to lock.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::facts::{FinishedImage, HostFacts, Identity, PathFacts};
use super::lane::{Export, ImageSpec, LaneCommand, LaneEvent};
use super::marker::Marker;
use super::point::{PointNote, PointOrder, PointPlace, PointState};
use super::replica::{Flatten, Flattened, HeldImage, ManifestQuery, ManifestState, SealOrder, SealQuery, SealState};
use super::verify::DigestQuery;
use crate::blocks::compare::GroupPage;
use crate::blocks::{BlockSize, Digest, DigestKey};
use crate::checksum::Algorithm;
use crate::error::Error;
use crate::inventory::ImageFacts;

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
    /// Let nobody write to these images, nor to any others than these from now on, until other ones are held or the locks go: who
    /// starts a machine from them is refused by qemu. Of those that are held alone nobody may be reading either. → [`Reply::Done`]
    HoldImages(Vec<HeldImage>),
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
    /// Remove files and empty directories that a marker of this operation names; those not there are fine. A file of the machine
    /// before that somebody has open stays: an error, once all others are gone. → [`Reply::Done`]
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
