//! What travels over a lane, and what a lane agent is told by its control agent.
//!
//! A lane is one source lane agent and one target lane agent joined by one byte stream in each direction. To the target it
//! carries segments one after the other: [`LaneMessage::Begin`], then blocks in rising order, then [`LaneMessage::End`].
//!
//! Where the target has nothing of the disk, blocks that are zero are not sent; whatever of a segment was not sent is zero.
//! Where it has a [`Base`], the segment is *compared*: both ends digest it, the target tells the digests of its groups
//! ([`LaneAnswer`]), the source asks for the digests of blocks where a group differs ([`LaneMessage::Want`]), and whatever
//! was not sent is as the target has it. A new image that an interrupted try has begun is its own base: what is right in it
//! stays.

use serde::{Deserialize, Serialize};

use super::control::DiskIndex;
use super::direct::{Meeting, Route, Seal};
use crate::blocks::{BlockSize, Digest, DigestKey, Root};
use crate::error::Error;
use crate::inventory::ImageFormat;

/// A part of one disk: the unit of scheduling and of verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Segment {
    /// The disk it belongs to.
    pub disk: DiskIndex,
    /// Where it begins, in bytes; a multiple of the segment length.
    pub offset: u64,
    /// Its length in bytes; only the last one of a disk is shorter.
    pub len: u64,
}

/// What the source lane agent sends to the target lane agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaneMessage {
    /// A segment begins.
    Begin(Segment),
    /// Neighbouring blocks, none of them zero, at most 1 MiB. The payload holds them; the last block of a disk may be short.
    Blocks {
        /// Where the first of them lies in the disk, in bytes; a multiple of the block size.
        offset: u64,
        /// A digest for each block.
        digests: Vec<Digest>,
        /// CRC-32 of the payload as it was sent. It tells damage on the way from damage by the target's storage, which
        /// the digests alone, compared only after reading back, cannot. None on the direct route: its seal tells that.
        crc: Option<u32>,
    },
    /// Compared disks only: neighbouring blocks that are zero at the source and are not at the target.
    Zero {
        /// Where the first of them lies in the disk, in bytes; a multiple of the block size.
        offset: u64,
        /// How many there are; the last block of a disk may be short.
        blocks: u32,
    },
    /// The segment is complete. The digest is that of the list of all its block digests, as the source has them: it finds
    /// what a target must not take for done.
    End(Digest),
    /// Compared disks only: the target is to tell the block digests of these groups of a segment that has not begun. It may
    /// come between any two other messages, at most once for a segment.
    Want {
        /// Which segment.
        segment: Segment,
        /// The numbers of the groups in the segment, rising.
        groups: Vec<u32>,
    },
    /// No more segments come.
    Finish,
}

/// What the target lane agent tells the source lane agent of what it has. Segments come in the order in which the
/// controller dealt them, in each of the two kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaneAnswer {
    /// The digests of a segment's groups.
    Groups {
        /// Which segment.
        segment: Segment,
        /// Those that are not zero, with their numbers, rising.
        digests: Vec<(u32, Digest)>,
    },
    /// The digests of the blocks of all groups that were asked for.
    Blocks {
        /// Which segment.
        segment: Segment,
        /// One for each block, in order.
        digests: Vec<Digest>,
    },
}

/// What a target has of a disk already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The image, opened read-only; at most as large as the disk is now. It may be the image that is written.
    pub image: ImageSpec,
    /// Digests of its blocks from when it was made, if there are any.
    pub digests: Option<BaseDigests>,
    /// Whether the image that is written, an overlay over this one or this one itself, holds some of the disk already: an
    /// earlier try was interrupted. What an overlay has counts before this one; it is read, whatever is known of this one.
    pub begun: bool,
}

/// Digests of a base, under the key of the lanes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseDigests {
    /// Absolute path of the manifest that holds them. One that is torn, or of another disk or key, counts as not there.
    pub manifest: String,
    /// What they are good for.
    pub trust: Trust,
}

/// How far the digests of a base are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trust {
    /// The image is known to be what the manifest of this root says: the image is not read. Where the manifest has blocks of
    /// another size than the lane, it has to be, and whatever differs then is an error.
    Sealed(Root),
    /// The image is read, and each block is compared with what the manifest says.
    Checked(OnDivergence),
}

/// What becomes of a base that is not what its manifest says: somebody wrote to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDivergence {
    /// It is an error.
    Refuse,
    /// It is told, and overwritten with what the source has.
    Discard,
}

/// An image as an agent opens it: nothing is opened that is not named here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Absolute path on the agent's host.
    pub path: String,
    /// Format, as the definition or the plan says; never guessed from the contents.
    pub format: ImageFormat,
    /// The files behind it, nearest first. They are the only ones that may be opened on its behalf.
    pub backing: Vec<(String, ImageFormat)>,
    /// Files that hold the data of images in this chain, as (image, its data file); they may be opened as well.
    pub data_files: Vec<(String, String)>,
    /// Where it is read from instead, if not from its file.
    pub export: Option<Export>,
    /// Whether the file itself must be no symbolic link, because users without rights may write to its directory.
    pub no_link: bool,
}

impl ImageSpec {
    /// An image by itself.
    #[must_use]
    pub fn new(path: impl Into<String>, format: ImageFormat) -> Self {
        Self { path: path.into(), format, backing: Vec::new(), data_files: Vec::new(), export: None, no_link: false }
    }

    /// The same, but no symbolic link: an agent that runs as root would read what its maker may not.
    #[must_use]
    pub fn without_link(self) -> Self {
        Self { no_link: true, ..self }
    }
}

/// An NBD export on a unix socket of the agent's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Absolute path of the socket.
    pub socket: String,
    /// The export's name.
    pub name: String,
}

/// What a lane agent is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaneCommand {
    /// Hold the users' side of these locks, then say [`LaneEvent::Ready`]. Always the first.
    Hold(Vec<String>),
    /// Read segments of these disks and send them.
    Source {
        /// The disks, by [`DiskIndex`].
        disks: Vec<ImageSpec>,
        /// Those of which the target has a base.
        compared: Vec<DiskIndex>,
        /// The key of the digests.
        key: DigestKey,
        /// The length of the blocks.
        block: BlockSize,
        /// Where they go: [`Route::Direct`] only after [`LaneEvent::Connected`].
        route: Route,
    },
    /// Write what comes to these images, and read it back.
    Target {
        /// The images, by [`DiskIndex`].
        disks: Vec<ImageSpec>,
        /// For each image, what is there of its disk already; none where the image is new.
        bases: Vec<Option<Base>>,
        /// For each image, the manifest that takes its digests.
        manifests: Vec<String>,
        /// The key of the digests.
        key: DigestKey,
        /// The length of the blocks.
        block: BlockSize,
        /// Whether each segment is read back and compared.
        verify: Verify,
        /// Where it comes from.
        route: Route,
    },
    /// Target only: wait for the other end to come by TCP, then say [`LaneEvent::Listening`].
    Listen(Seal),
    /// Source only: reach the other end by TCP, then say [`LaneEvent::Connected`].
    Connect {
        /// Where it waits.
        at: Meeting,
        /// How the lane is sealed.
        seal: Seal,
    },
    /// Source only: send this segment next.
    Send(Segment),
    /// Target only: tell the source what the base has of this segment. Goes with each [`LaneCommand::Send`] of a compared
    /// disk, in the same order.
    Compare(Segment),
    /// Source only: no more segments come; send [`LaneMessage::Finish`] when the last one is out.
    Finish,
    /// Target only: the answer to [`LaneEvent::WantChunk`].
    Chunk {
        /// The image.
        disk: DiskIndex,
        /// Where the chunk lies in the image's file.
        host_offset: u64,
    },
}

/// How what was written is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Read back after each segment, as a reader finds it now.
    #[default]
    On,
    /// Read back from the medium: the page cache is dropped first.
    Media,
    /// Not read back; each block is compared with its digest before it is written.
    Off,
}

/// What comparing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Compared {
    /// Blocks that hold data at either end.
    pub blocks: u64,
    /// Blocks that differed.
    pub differing: u64,
}

/// What a lane agent tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaneEvent {
    /// The lane agent holds its locks and waits for its command.
    Ready,
    /// Target: it waits for the other end here, or says why it cannot.
    Listening(std::result::Result<Meeting, String>),
    /// Source: it has reached the other end by TCP, or says why not.
    Connected(std::result::Result<(), String>),
    /// Source: bytes read from the disks, and of them sent, since the last such event.
    Sent {
        /// Bytes read.
        read: u64,
        /// Bytes of blocks and framing sent.
        sent: u64,
        /// Bytes of digests and of asking for them, both ways.
        digests: u64,
    },
    /// Source: a segment is read and sent.
    Read {
        /// Which.
        segment: Segment,
        /// How many of its blocks hold data.
        data_blocks: u64,
    },
    /// Target: bytes read from bases since the last such event.
    Looked(u64),
    /// Target: the manifest of a base is not believed, so that the image is read and what was changed in it is not known.
    Disbelieved {
        /// Which disk.
        disk: DiskIndex,
        /// Why.
        why: String,
    },
    /// Target: blocks of a base that are not what its manifest says, where that is no error.
    Diverged {
        /// The segment that they lie in.
        segment: Segment,
        /// How many.
        blocks: u64,
    },
    /// Target: bytes written since the last such event.
    Written(u64),
    /// Target: a segment is complete and, where asked for, verified.
    Done {
        /// Which.
        segment: Segment,
        /// How many of its blocks hold data.
        data_blocks: u64,
        /// What comparing it came to; nothing where the image is new.
        compared: Compared,
        /// Bytes that an interrupted try had left in the image that is written, and that were right.
        kept: u64,
    },
    /// Target: it needs room in a growing image.
    WantChunk(DiskIndex),
    /// All is done; the lane ends.
    Finished,
    /// The lane failed and ends.
    Failed(Error),
}
