//! The source end of a lane: reads segments, digests their blocks, sends those that the target lacks.
//!
//! One thread takes the orders and has the disks read, one sends what comes of it, in order. Where the target has
//! something of a disk already, [`compare`] stands between the two.

mod compare;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_clone_core::blocks::{BlockSize, Digest, DigestKey, ListKey};
use kvm_clone_core::wire::control::DiskIndex;
use kvm_clone_core::wire::direct::Route;
use kvm_clone_core::wire::frame::Kind;
use kvm_clone_core::wire::lane::{ImageSpec, LaneCommand, LaneEvent, LaneMessage, Segment};
use kvm_clone_core::{Error, Result};

use super::crew::{Crew, gone};
use super::direct::{Input, Output};
use super::images::open_reader;
use super::join::Events;
use super::readers::{self, Coming, IN_FLIGHT, Piece, Readers, arrived};
use crate::device::ReadDevice;
use crate::stream::FrameWriter;

/// Progress is told after so many bytes.
const TELL_EVERY: u64 = 4 << 20;

/// What a source lane agent works on.
pub(super) struct Source {
    pub(super) disks: Vec<ImageSpec>,
    /// Those that are compared.
    pub(super) compared: Vec<DiskIndex>,
    pub(super) key: DigestKey,
    pub(super) block: BlockSize,
    pub(super) route: Route,
}

/// What is sent, in this order: a beginning, zeros and pieces as they lie, an end.
enum Item {
    Begin(Segment, Known),
    Zero { offset: u64, blocks: u32 },
    Piece(Coming),
    End(Segment, Arc<dyn ReadDevice>),
    Finish,
}

/// What is known of a segment when it begins.
enum Known {
    /// Nothing: what is read is all there is.
    Nothing,
    /// The digests of all its blocks, and how many bytes were read for them.
    All(Vec<Digest>, u64),
}

/// The stream to the target. Shared, because questions do not wait until a segment is sent.
struct Sending {
    output: Mutex<FrameWriter<Output>>,
    /// Bytes of digests and questions, both ways, that were not told yet.
    digests: AtomicU64,
    /// Whether blocks carry a checksum: what is sealed needs none.
    crc: bool,
}

impl Sending {
    fn send(&self, message: &LaneMessage, payload: &[u8]) -> Result<u64> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).send(Kind::Lane, message, payload)
    }
}

/// Sends what it is told to until it is told to finish.
pub(super) fn run(
    source: &Source,
    streams: (Output, Input),
    commands: Receiver<LaneCommand>,
    events: &Arc<Events>,
) -> Result<()> {
    let devices = source.disks.iter().map(|disk| open_reader(disk).map(Arc::from)).collect::<Result<Vec<_>>>()?;
    run_on(devices, source, streams, commands, events)
}

/// The same, with disks that are open already.
pub(super) fn run_on(
    devices: Vec<Arc<dyn ReadDevice>>,
    source: &Source,
    (output, input): (Output, Input),
    commands: Receiver<LaneCommand>,
    events: &Arc<Events>,
) -> Result<()> {
    let mut output = FrameWriter::new(output);
    output.magic()?;
    let sending =
        Arc::new(Sending { output: Mutex::new(output), digests: AtomicU64::new(0), crc: source.route == Route::Relay });
    let readers = Arc::new(Readers::start(&source.key, source.block));
    let (items, queue) = mpsc::sync_channel(IN_FLIGHT);
    let mut crew = Crew::new();
    if source.compared.is_empty() {
        let readers = Arc::clone(&readers);
        crew.work(move || enqueue(&devices, &commands, &readers, &items));
    } else {
        let ends = compare::Ends { items, input, sending: Arc::clone(&sending), readers: Arc::clone(&readers) };
        compare::start(&mut crew, devices, source, commands, ends);
    }
    let paths = source.disks.iter().map(|disk| disk.path.clone()).collect();
    let sender = Sender { sending, readers, paths, key: ListKey::of(&source.key), events: Arc::clone(events) };
    crew.work(move || sender.run(&queue));
    crew.end()
}

fn enqueue(
    devices: &[Arc<dyn ReadDevice>],
    commands: &Receiver<LaneCommand>,
    readers: &Readers,
    items: &SyncSender<Item>,
) -> Result<()> {
    loop {
        match next(commands)? {
            Some(segment) => read_all(device_of(devices, segment, readers)?, segment, readers, &|item| {
                items.send(item).map_err(gone)
            })?,
            None => return items.send(Item::Finish).map_err(gone),
        }
    }
}

/// The next segment to be sent; none when there are no more.
fn next(commands: &Receiver<LaneCommand>) -> Result<Option<Segment>> {
    match commands.recv() {
        Ok(LaneCommand::Send(segment)) => Ok(Some(segment)),
        Ok(LaneCommand::Finish) => Ok(None),
        Ok(_) => Err(Error::internal("a source lane agent got a command for a target")),
        Err(_) => Err(Error::transfer("the control agent is gone")),
    }
}

fn device_of<'a>(
    devices: &'a [Arc<dyn ReadDevice>],
    segment: Segment,
    readers: &Readers,
) -> Result<&'a Arc<dyn ReadDevice>> {
    let is_sane = readers::is_sane(segment, devices.len(), readers.block());
    let device = devices.get(usize::from(segment.disk)).filter(|_| is_sane);
    device.ok_or_else(|| Error::internal(format!("there is no segment {segment:?}")))
}

/// Has a whole segment read, for a target that has nothing of it.
fn read_all(
    device: &Arc<dyn ReadDevice>,
    segment: Segment,
    readers: &Readers,
    give: &dyn Fn(Item) -> Result<()>,
) -> Result<()> {
    give(Item::Begin(segment, Known::Nothing))?;
    for (offset, len) in readers::pieces(&**device, segment.offset, segment.len, readers.block())? {
        give(Item::Piece(readers.read(device, offset, len)?))?;
    }
    give(Item::End(segment, Arc::clone(device)))
}

/// Sends what comes, in order, and tells how far it is.
struct Sender {
    sending: Arc<Sending>,
    readers: Arc<Readers>,
    paths: Vec<String>,
    key: ListKey,
    events: Arc<Events>,
}

impl Sender {
    fn run(&self, queue: &Receiver<Item>) -> Result<()> {
        let mut current = Outgoing::of(self.readers.block());
        let (mut read, mut sent) = (0, 0);
        while let Ok(item) = queue.recv() {
            match item {
                Item::Begin(segment, known) => {
                    read += current.begin(segment, known);
                    sent += self.sending.send(&LaneMessage::Begin(segment), &[])?;
                }
                Item::Zero { offset, blocks } => {
                    sent += self.sending.send(&LaneMessage::Zero { offset, blocks }, &[])?
                }
                Item::Piece(coming) => {
                    let piece = arrived(&coming)?;
                    read += piece.data.len() as u64;
                    current.note(&piece).map_err(|error| error.with("path", &self.paths[current.disk]))?;
                    sent += send_piece(&self.sending, &piece, current.block)?;
                    self.readers.recycle(piece.data);
                }
                Item::End(segment, device) => {
                    sent += self.sending.send(&LaneMessage::End(self.key.list(&current.digests)), &[])?;
                    device.drop_cache(segment.offset, segment.len);
                    self.events.tell(&LaneEvent::Read { segment, data_blocks: current.data_blocks() });
                }
                Item::Finish => {
                    sent += self.sending.send(&LaneMessage::Finish, &[])?;
                    self.tell(&mut read, &mut sent);
                    return Ok(());
                }
            }
            if read + sent >= TELL_EVERY {
                self.tell(&mut read, &mut sent);
            }
        }
        Err(gone(()))
    }

    fn tell(&self, read: &mut u64, sent: &mut u64) {
        let digests = self.sending.digests.swap(0, Ordering::Relaxed);
        self.events.tell(&LaneEvent::Sent { read: std::mem::take(read), sent: std::mem::take(sent), digests });
    }
}

/// The segment that is being sent.
struct Outgoing {
    block: BlockSize,
    disk: usize,
    start: u64,
    /// The digests of all its blocks, as far as they are known.
    digests: Vec<Digest>,
    compared: bool,
}

impl Outgoing {
    fn of(block: BlockSize) -> Self {
        Self { block, disk: 0, start: 0, digests: Vec::new(), compared: false }
    }

    /// Begins a segment; returns how many bytes were read for what is known of it.
    fn begin(&mut self, segment: Segment, known: Known) -> u64 {
        (self.disk, self.start) = (usize::from(segment.disk), segment.offset);
        let (digests, read, compared) = match known {
            Known::Nothing => (vec![Digest::ZERO; self.block.count(segment.len)], 0, false),
            Known::All(digests, read) => (digests, read, true),
        };
        (self.digests, self.compared) = (digests, compared);
        read
    }

    /// Notes what is sent. What was compared must still be the same: the target was told of the rest by what it was then.
    fn note(&mut self, piece: &Piece) -> Result<()> {
        let first = self.block.count(piece.offset - self.start);
        let known = &mut self.digests[first..first + piece.digests.len()];
        if self.compared && known != piece.digests {
            return Err(Error::conflict(format!(
                "the disk changed near offset {} while it was compared",
                piece.offset
            ))
            .with("offset", piece.offset)
            .help("Run the command again when nothing writes to the source's disk"));
        }
        known.copy_from_slice(&piece.digests);
        Ok(())
    }

    fn data_blocks(&self) -> u64 {
        self.digests.iter().filter(|digest| !digest.is_zero()).count() as u64
    }
}

/// Sends each run of blocks that are not zero as one frame.
fn send_piece(sending: &Sending, piece: &Piece, block: BlockSize) -> Result<u64> {
    let block = block.in_memory();
    let mut sent = 0;
    let mut index = 0;
    while index < piece.digests.len() {
        let zero = piece.digests[index].is_zero();
        let run = piece.digests[index..].iter().take_while(|digest| digest.is_zero() == zero).count();
        if !zero {
            let start = index * block;
            let end = piece.data.len().min(start + run * block);
            let digests = piece.digests[index..index + run].to_vec();
            let payload = &piece.data[start..end];
            let crc = sending.crc.then(|| crc32fast::hash(payload));
            let message = LaneMessage::Blocks { offset: piece.offset + start as u64, digests, crc };
            sent += sending.send(&message, payload)?;
        }
        index += run;
    }
    Ok(sent)
}
