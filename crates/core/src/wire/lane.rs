//! What travels over a lane, and what a lane agent is told by its control agent.
//!
//! A lane is one source lane agent and one target lane agent joined by one byte stream. It carries segments one after
//! the other: [`LaneMessage::Begin`], then blocks in rising order, then [`LaneMessage::End`]. Blocks that are zero are
//! not sent; whatever of a segment was not sent is zero.

use serde::{Deserialize, Serialize};

use super::control::DiskIndex;
use super::direct::{Meeting, Route, Seal};
use crate::blocks::{Digest, DigestKey};
use crate::error::Error;
use crate::inventory::ImageFormat;

/// The most blocks in one frame: 1 MiB of 64 KiB blocks keeps frames, buffers and loss of work small, and is far above
/// the size where a system call costs anything.
pub const FRAME_BLOCKS: usize = 16;

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
    /// Neighbouring blocks, none of them zero. The payload holds them; the last block of a disk may be short.
    Blocks {
        /// Where the first of them lies in the disk, in bytes; a multiple of the block size.
        offset: u64,
        /// A digest for each block.
        digests: Vec<Digest>,
        /// CRC-32 of the payload as it was sent. It tells damage on the way from damage by the target's storage, which
        /// the digests alone, compared only after reading back, cannot.
        crc: u32,
    },
    /// The segment is complete.
    End,
    /// No more segments come.
    Finish,
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
        /// The key of the digests.
        key: DigestKey,
        /// Where they go: [`Route::Direct`] only after [`LaneEvent::Connected`].
        route: Route,
    },
    /// Write what comes to these images, and read it back.
    Target {
        /// The images, by [`DiskIndex`].
        disks: Vec<ImageSpec>,
        /// For each image, the manifest that takes its digests.
        manifests: Vec<String>,
        /// The key of the digests.
        key: DigestKey,
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
    },
    /// Source: a segment is read and sent.
    Read {
        /// Which.
        segment: Segment,
        /// How many of its blocks hold data.
        data_blocks: u64,
    },
    /// Target: bytes written since the last such event.
    Written(u64),
    /// Target: a segment is complete and, where asked for, verified.
    Done {
        /// Which.
        segment: Segment,
        /// How many of its blocks hold data.
        data_blocks: u64,
    },
    /// Target: it needs room in a growing image.
    WantChunk(DiskIndex),
    /// All is done; the lane ends.
    Finished,
    /// The lane failed and ends.
    Failed(Error),
}
