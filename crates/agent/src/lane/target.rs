//! The target end of a lane: receives blocks, writes them, reads them back.
//!
//! Three threads, each handing on to the next: one takes frames from the stream, one writes, one reads back finished
//! segments and tells. So the stream never waits for the reading back of an earlier segment.

use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_clone_core::blocks::{BLOCK, BLOCK_LEN, Digest, DigestKey};
use kvm_clone_core::wire::control::DiskIndex;
use kvm_clone_core::wire::frame::{Kind, MAX_PAYLOAD, decode};
use kvm_clone_core::wire::lane::{FRAME_BLOCKS, ImageSpec, LaneCommand, LaneEvent, LaneMessage, Segment, Verify};
use kvm_clone_core::{Error, Result};

use super::direct::Input;
use super::images::open_writer;
use super::join::Events;
use super::manifest::ManifestFile;
use super::readers::{IN_FLIGHT, Readers};
use super::verify;
use crate::device::{ChunkAllocator, DeviceError, Problem, WriteDevice};
use crate::stream::FrameReader;

/// Progress is told after so many bytes, and at the end of a segment.
const TELL_EVERY: u64 = 4 << 20;
/// Segments that wait to be read back.
const UNVERIFIED: usize = 2;

/// What a target lane agent works on.
pub(super) struct Target {
    pub(super) disks: Vec<ImageSpec>,
    pub(super) manifests: Vec<String>,
    pub(super) key: DigestKey,
    pub(super) verify: Verify,
}

enum Item {
    Blocks { disk: DiskIndex, offset: u64, data: Vec<u8> },
    End(Segment, Vec<Digest>),
}

/// Takes segments until the source says that there are no more.
pub(super) fn run(target: Target, input: Input, commands: Receiver<LaneCommand>, events: &Arc<Events>) -> Result<()> {
    let commands = Arc::new(Mutex::new(commands));
    let mut devices = Vec::new();
    for (disk, image) in (0..).zip(&target.disks) {
        let chunks = RemoteChunks { disk, events: Arc::clone(events), commands: Arc::clone(&commands) };
        devices.push(open_writer(image, Arc::new(chunks))?);
    }
    let target = Arc::new(target);
    let (items, to_write) = mpsc::sync_channel(IN_FLIGHT);
    let (written, to_check) = mpsc::sync_channel(UNVERIFIED);
    let (spare, spares) = mpsc::sync_channel(IN_FLIGHT * 2);
    let writer = {
        let (target, events) = (Arc::clone(&target), Arc::clone(events));
        std::thread::spawn(move || write(&target, &devices, &to_write, &written, &spare, &events))
    };
    let checker = {
        let (target, events) = (Arc::clone(&target), Arc::clone(events));
        std::thread::spawn(move || check(&target, &to_check, &events))
    };
    let received = receive(&target, input, &items, &spares);
    drop(items);
    let joined = |_| Error::internal("a thread of the lane panicked");
    // The thread nearest to the disk knows why the others stopped.
    let checked = checker.join().map_err(joined)?;
    let wrote = writer.join().map_err(joined)?;
    checked.and(wrote).and(received)
}

/// Takes frames from the stream. Everything in them is checked here, before anything is written.
fn receive(target: &Target, input: Input, items: &SyncSender<Item>, spares: &Receiver<Vec<u8>>) -> Result<()> {
    let stopped = |_| Error::internal("the writing thread stopped");
    let mut input = FrameReader::new(input);
    input.expect_magic()?;
    let mut current: Option<Incoming> = None;
    while let Some((header, body)) = input.next()? {
        if header.kind != Kind::Lane || header.payload_len > MAX_PAYLOAD {
            return Err(broken("a frame that does not belong on a lane"));
        }
        match decode(body)? {
            LaneMessage::Begin(segment) if current.is_none() => {
                current = Some(Incoming::begin(segment, target.disks.len())?);
            }
            LaneMessage::Blocks { offset, digests, crc } => {
                let Some(incoming) = &mut current else { return Err(broken("blocks outside a segment")) };
                let len = incoming.accept(offset, &digests)?;
                if header.payload_len as usize != len {
                    return Err(broken("another number of bytes than its digests say"));
                }
                let mut data = spares.try_recv().unwrap_or_default();
                data.resize(len, 0);
                input.payload(&mut data)?;
                if crc32fast::hash(&data) != crc {
                    return Err(broken("blocks that were damaged on the way").with("offset", offset));
                }
                if target.verify == Verify::Off {
                    compare(&target.key, offset, &data, &digests)?;
                }
                items.send(Item::Blocks { disk: incoming.segment.disk, offset, data }).map_err(stopped)?;
            }
            LaneMessage::End => {
                let Some(incoming) = current.take() else { return Err(broken("the end of no segment")) };
                items.send(Item::End(incoming.segment, incoming.expected)).map_err(stopped)?;
            }
            LaneMessage::Finish if current.is_none() => return Ok(()),
            _ => return Err(broken("a segment inside another")),
        }
    }
    Err(Error::transfer("the lane ended before its last segment")
        .help("The connection or the source's agent died; run the command again")
        .transient())
}

/// A segment that is arriving.
struct Incoming {
    segment: Segment,
    expected: Vec<Digest>,
    next: u64,
}

impl Incoming {
    fn begin(segment: Segment, disks: usize) -> Result<Self> {
        let sane = usize::from(segment.disk) < disks
            && segment.offset.is_multiple_of(BLOCK)
            && segment.len <= 1 << 30
            && segment.offset.checked_add(segment.len).is_some();
        if !sane {
            return Err(broken("an impossible segment"));
        }
        let blocks = usize::try_from(segment.len.div_ceil(BLOCK)).unwrap_or(0);
        Ok(Self { segment, expected: vec![Digest::ZERO; blocks], next: segment.offset })
    }

    /// Notes the digests of blocks that arrive; returns how many bytes they have.
    fn accept(&mut self, offset: u64, digests: &[Digest]) -> Result<usize> {
        let end = self.segment.offset + self.segment.len;
        let whole = (digests.len() as u64).saturating_mul(BLOCK);
        let sane = offset >= self.next
            && offset < end
            && offset.is_multiple_of(BLOCK)
            && (1..=FRAME_BLOCKS).contains(&digests.len())
            && offset.saturating_add(whole) < end + BLOCK
            && !digests.iter().any(Digest::is_zero);
        if !sane {
            return Err(broken("blocks that are not the next ones of their segment").with("offset", offset));
        }
        let first = usize::try_from((offset - self.segment.offset) / BLOCK).unwrap_or(usize::MAX);
        self.expected[first..first + digests.len()].copy_from_slice(digests);
        self.next = offset + whole;
        Ok(usize::try_from(self.next.min(end) - offset).unwrap_or(usize::MAX))
    }
}

fn compare(key: &DigestKey, offset: u64, data: &[u8], digests: &[Digest]) -> Result<()> {
    let differs = data.chunks(BLOCK_LEN).zip(digests).position(|(block, digest)| key.block(block) != *digest);
    differs.map_or(Ok(()), |block| {
        let offset = offset + block as u64 * BLOCK;
        Err(Error::verification(format!("the block at offset {offset} is not what was sent")).with("offset", offset))
    })
}

fn write(
    target: &Target,
    devices: &[Box<dyn WriteDevice>],
    items: &Receiver<Item>,
    written: &SyncSender<(Segment, Vec<Digest>)>,
    spare: &SyncSender<Vec<u8>>,
    events: &Events,
) -> Result<()> {
    let mut untold = 0;
    for item in items {
        match item {
            Item::Blocks { disk, offset, data } => {
                let device = &devices[usize::from(disk)];
                device.write_at(&data, offset)?;
                device.start_writeback(offset, data.len() as u64);
                untold += data.len() as u64;
                if untold >= TELL_EVERY {
                    events.tell(&LaneEvent::Written(std::mem::take(&mut untold)));
                }
                let _ = spare.try_send(data);
            }
            Item::End(segment, digests) => {
                events.tell(&LaneEvent::Written(std::mem::take(&mut untold)));
                if target.verify == Verify::Media {
                    devices[usize::from(segment.disk)].sync()?;
                }
                written.send((segment, digests)).map_err(|_| Error::internal("the checking thread stopped"))?;
            }
        }
    }
    Ok(())
}

/// Reads finished segments back, keeps their digests, tells.
fn check(target: &Target, segments: &Receiver<(Segment, Vec<Digest>)>, events: &Events) -> Result<()> {
    let manifests: Vec<_> =
        target.manifests.iter().map(|path| ManifestFile::open(Path::new(path))).collect::<Result<_>>()?;
    let readers = Readers::start(&target.key);
    for (segment, digests) in segments {
        let disk = usize::from(segment.disk);
        if target.verify != Verify::Off {
            verify::segment(&readers, &target.disks[disk], segment, &digests)?;
        }
        let manifest = manifests.get(disk).ok_or_else(|| Error::internal("a disk has no manifest"))?;
        manifest.write(segment.offset, &digests)?;
        let data_blocks = digests.iter().filter(|digest| !digest.is_zero()).count() as u64;
        events.tell(&LaneEvent::Done { segment, data_blocks });
    }
    Ok(())
}

/// Room in a growing image, asked of the control agent, which serves all lane agents of this host.
struct RemoteChunks {
    disk: DiskIndex,
    events: Arc<Events>,
    commands: Arc<Mutex<Receiver<LaneCommand>>>,
}

impl ChunkAllocator for RemoteChunks {
    fn next_chunk(&self) -> Result<u64, DeviceError> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        self.events.tell(&LaneEvent::WantChunk(self.disk));
        match commands.recv() {
            Ok(LaneCommand::Chunk { disk, host_offset }) if disk == self.disk => Ok(host_offset),
            _ => Err(DeviceError {
                path: "the control agent".into(),
                offset: None,
                problem: Problem::Io { doing: "give room in the image", source: io::ErrorKind::BrokenPipe.into() },
            }),
        }
    }
}

fn broken(what: &str) -> Error {
    Error::transfer(format!("the lane carried {what}"))
        .help("Nothing was made at the target; run the command again, and report it if it happens twice")
}
