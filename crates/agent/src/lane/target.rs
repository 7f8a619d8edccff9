//! The target end of a lane: receives blocks, writes them, reads them back.
//!
//! Three threads, each handing on to the next: one takes frames from the stream, one writes, one reads back finished
//! segments and tells. So the stream never waits for the reading back of an earlier segment. Beside them, [`flush`] makes
//! durable what was written, and [`compare`] tells the source what is there already.

mod base;
mod compare;
mod flush;
mod grown;
mod receive;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_clone_core::blocks::{BlockSize, DigestKey, ListKey};
use kvm_clone_core::wire::control::DiskIndex;
use kvm_clone_core::wire::lane::{Base, ImageSpec, LaneCommand, LaneEvent, Segment, Verify};
use kvm_clone_core::{Error, Result};

use super::ANSWERS_WAITING;
use super::crew::{Crew, gone};
use super::direct::{Input, Output};
use super::images::open_writer;
use super::join::Events;
use super::readers::{IN_FLIGHT, Readers};
use super::verify;
use crate::buffer::Buffer;
use crate::device::{ChunkAllocator, DeviceError, Problem, WriteDevice};
use crate::manifest::ManifestFile;
#[cfg(test)]
pub(super) use base::whole;
use compare::{Bases, Told};
use flush::Flushes;
use receive::{Complete, Receiving};

/// Progress is told after so many bytes, and at the end of a segment.
const TELL_EVERY: u64 = 4 << 20;
/// Segments that wait to be read back.
const UNVERIFIED: usize = 2;

/// What a target lane agent works on.
pub(super) struct Target {
    pub(super) disks: Vec<ImageSpec>,
    pub(super) bases: Vec<Option<Base>>,
    pub(super) manifests: Vec<String>,
    pub(super) key: DigestKey,
    pub(super) block: BlockSize,
    pub(super) verify: Verify,
}

/// What is to be written.
enum Item {
    Blocks { disk: DiskIndex, offset: u64, data: Buffer },
    Zero { disk: DiskIndex, offset: u64, len: u64 },
    End(Complete),
}

/// Takes segments until the source says that there are no more.
pub(super) fn run(
    target: Target,
    streams: (Output, Input),
    commands: Receiver<LaneCommand>,
    events: &Arc<Events>,
) -> Result<()> {
    let (chunks, new_chunks) = mpsc::sync_channel(1);
    let new_chunks = Arc::new(Mutex::new(new_chunks));
    let mut devices: Vec<Arc<dyn WriteDevice>> = Vec::new();
    for (disk, image) in (0..).zip(&target.disks) {
        let chunks = RemoteChunks { disk, events: Arc::clone(events), chunks: Arc::clone(&new_chunks) };
        devices.push(Arc::from(open_writer(image, Arc::new(chunks), target.block)?));
    }
    run_on(devices, target, streams, (commands, chunks), events)
}

/// The same, with disks that are open already.
pub(super) fn run_on(
    devices: Vec<Arc<dyn WriteDevice>>,
    target: Target,
    (mut output, mut input): (Output, Input),
    (commands, chunks): (Receiver<LaneCommand>, SyncSender<Chunk>),
    events: &Arc<Events>,
) -> Result<()> {
    let target = Arc::new(target);
    let readers = Arc::new(Readers::start(&target.key, target.block));
    let lists = ListKey::of(&target.key);
    let told = Arc::new(Told::of(target.block));
    let (items, to_write) = mpsc::sync_channel(IN_FLIGHT);
    let (written, to_check) = mpsc::sync_channel(UNVERIFIED);
    let (spare, spares) = mpsc::sync_channel(IN_FLIGHT * 2);
    let (answers, to_tell) = mpsc::sync_channel(ANSWERS_WAITING);
    let (orders, to_compare) = mpsc::sync_channel(ANSWERS_WAITING);
    let mut crew = Crew::new();
    crew.serve(move || pass_orders(&commands, &chunks, &orders));
    if target.bases.iter().any(Option::is_some) {
        let sizes = devices.iter().map(|device| device.size());
        let each = target.bases.iter().cloned().zip(target.disks.iter().cloned()).zip(sizes);
        let bases = each.map(|((base, staging), size)| Some((base?, staging, size))).collect();
        let mut bases = Bases { bases, key: target.key.clone(), block: target.block, open: HashMap::new() };
        let (looking, looked) = mpsc::sync_channel(1);
        let (lists, told, answers) = (lists.clone(), Arc::clone(&told), answers.clone());
        let (looker, teller, readers) = (Arc::clone(events), Arc::clone(events), Arc::clone(&readers));
        crew.serve(move || compare::look(&mut bases, &to_compare, &readers, &looker, &looking));
        let block = target.block;
        crew.serve(move || compare::tell(&looked, (&lists, block), &told, &teller, &answers));
        crew.serve(move || compare::talk(&mut output, &to_tell));
    }
    let receiving = Receiving { target: Arc::clone(&target), lists, told, items, answers, spares };
    crew.work(move || receiving.run(&mut input));
    {
        let (target, events) = (Arc::clone(&target), Arc::clone(events));
        let (mut flushes, to_flush) = Flushes::new(devices.len());
        let (flushed, teller) = (devices.clone(), Arc::clone(&events));
        crew.work(move || flush::run(&flushed, &to_flush, &teller));
        crew.work(move || write(&target, &devices, &to_write, (&written, &spare), &mut flushes, &events));
    }
    let events = Arc::clone(events);
    crew.work(move || check(&target, &to_check, &readers, &events));
    crew.end()
}

/// Hands orders to whom they are for.
fn pass_orders(
    commands: &Receiver<LaneCommand>,
    chunks: &SyncSender<Chunk>,
    orders: &SyncSender<Segment>,
) -> Result<()> {
    while let Ok(command) = commands.recv() {
        match command {
            LaneCommand::Chunk { disk, host_offset } => chunks.send(Chunk { disk, host_offset }).map_err(gone)?,
            LaneCommand::Compare(segment) => orders.send(segment).map_err(gone)?,
            _ => return Err(Error::internal("a target lane agent got a command for a source")),
        }
    }
    Ok(())
}

fn write(
    target: &Target,
    devices: &[Arc<dyn WriteDevice>],
    items: &Receiver<Item>,
    (written, spare): (&SyncSender<Complete>, &SyncSender<Buffer>),
    flushes: &mut Flushes,
    events: &Events,
) -> Result<()> {
    let mut untold = 0;
    while let Ok(item) = items.recv() {
        match item {
            Item::Blocks { disk, offset, data } => {
                let device = &devices[usize::from(disk)];
                device.write_at(&data, offset)?;
                device.start_writeback(offset, data.len() as u64);
                flushes.note(disk, offset, data.len() as u64)?;
                untold += data.len() as u64;
                if untold >= TELL_EVERY {
                    events.tell(&LaneEvent::Written(std::mem::take(&mut untold)));
                }
                let _ = spare.try_send(data);
            }
            Item::Zero { disk, offset, len } => devices[usize::from(disk)].write_zeroes(offset, len)?,
            Item::End(complete) => {
                events.tell(&LaneEvent::Written(std::mem::take(&mut untold)));
                if target.verify == Verify::Media {
                    devices[usize::from(complete.segment.disk)].sync()?;
                }
                written.send(complete).map_err(gone)?;
            }
        }
    }
    Ok(())
}

/// Reads finished segments back, keeps their digests, tells.
fn check(target: &Target, segments: &Receiver<Complete>, readers: &Readers, events: &Events) -> Result<()> {
    let manifests: Vec<_> =
        target.manifests.iter().map(|path| ManifestFile::open(Path::new(path))).collect::<Result<_>>()?;
    while let Ok(Complete { segment, digests, written, compared, kept }) = segments.recv() {
        let disk = usize::from(segment.disk);
        if target.verify != Verify::Off {
            verify::segment(readers, &target.disks[disk], target.verify, segment, &digests, &written)?;
        }
        let manifest = manifests.get(disk).ok_or_else(|| Error::internal("a disk has no manifest"))?;
        manifest.write(segment.offset, &digests)?;
        let data_blocks = digests.iter().filter(|digest| !digest.is_zero()).count() as u64;
        events.tell(&LaneEvent::Done { segment, data_blocks, compared, kept });
    }
    Ok(())
}

/// A chunk of a growing image.
pub(super) struct Chunk {
    disk: DiskIndex,
    host_offset: u64,
}

/// Room in a growing image, asked of the control agent, which serves all lane agents of this host.
struct RemoteChunks {
    disk: DiskIndex,
    events: Arc<Events>,
    chunks: Arc<Mutex<Receiver<Chunk>>>,
}

impl ChunkAllocator for RemoteChunks {
    fn next_chunk(&self) -> Result<u64, DeviceError> {
        let chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        self.events.tell(&LaneEvent::WantChunk(self.disk));
        match chunks.recv() {
            Ok(Chunk { disk, host_offset }) if disk == self.disk => Ok(host_offset),
            _ => Err(DeviceError {
                path: "the control agent".into(),
                offset: None,
                problem: Problem::Io { doing: "give room in the image", source: io::ErrorKind::BrokenPipe.into() },
            }),
        }
    }
}
