//! Disks of which the target has something: what differs is found without sending it.
//!
//! ```text
//! look ──> ask ──> settle ──> (the sending thread)
//!            ▲        ▲
//!            └─listen─┘  <── the target
//! ```
//!
//! `look` has segments digested, `ask` compares them with the digests of groups that the target tells and asks for those
//! of blocks, `settle` has what differs read again. Each works on another segment, so no answer is waited for while there
//! is something else to do. Of a segment only its digests are kept; what differs comes from the page cache the second time.
//!
//! `listen` never waits for anybody here: the target is always heard, so it never stands still over its answers, so it
//! always hears us.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, SyncSender};

use kvm_clone_core::blocks::groups::{Comparison, ListKey, Run, hear};
use kvm_clone_core::blocks::{BlockSize, Digest, ExtentKind};
use kvm_clone_core::wire::control::DiskIndex;
use kvm_clone_core::wire::frame::{HEADER_LEN, Kind, decode};
use kvm_clone_core::wire::lane::{LaneAnswer, LaneCommand, LaneMessage, Segment};
use kvm_clone_core::{Error, Result};

use super::super::crew::{Crew, gone};
use super::super::direct::Input;
use super::super::readers::{Digesting, Readers, UNIT};
use super::super::{ANSWERS_WAITING, broken};
use super::{Item, Known, Sending, Source, device_of, next, read_all};
use crate::device::ReadDevice;
use crate::stream::FrameReader;

/// Segments that are between two of the threads: as many as are dealt ahead.
const BETWEEN: usize = 8;

/// What connects these threads with the others.
pub(super) struct Ends {
    pub(super) items: SyncSender<Item>,
    pub(super) input: Input,
    pub(super) sending: Arc<Sending>,
    pub(super) readers: Arc<Readers>,
}

type Device = Arc<dyn ReadDevice>;

/// A compared segment on its way, or what goes through as it is, so that all stays in order.
enum Step<T> {
    Item(Item),
    Compared(Segment, Device, T),
}

/// What was found of our end.
struct Found {
    comparison: Comparison,
    read: u64,
}

/// What the target told of a segment.
struct Heard<T>(Segment, T);

/// Starts the threads between the orders and the sending thread.
pub(super) fn start(
    crew: &mut Crew,
    devices: Vec<Device>,
    source: &Source,
    commands: Receiver<LaneCommand>,
    ends: Ends,
) {
    let Ends { items, mut input, sending, readers } = ends;
    let (looking, looked) = mpsc::sync_channel(BETWEEN);
    let (asking, asked) = mpsc::sync_channel(BETWEEN);
    let (groups, their_groups) = mpsc::sync_channel(ANSWERS_WAITING);
    let (blocks, their_blocks) = mpsc::sync_channel(ANSWERS_WAITING);
    let (compared, key, block) = (source.compared.clone(), ListKey::of(&source.key), source.block);
    let pool = Arc::clone(&readers);
    crew.work(move || look(&devices, &compared, &commands, &pool, &looking));
    let voice = Arc::clone(&sending);
    crew.work(move || ask(&looked, &their_groups, (&key, block), &voice, &asking));
    crew.work(move || settle(&asked, &their_blocks, &readers, &items));
    crew.serve(move || listen(&mut input, &sending, &groups, &blocks));
}

fn look(
    devices: &[Device],
    compared: &[DiskIndex],
    commands: &Receiver<LaneCommand>,
    readers: &Readers,
    looking: &SyncSender<Step<Digesting>>,
) -> Result<()> {
    while let Some(segment) = next(commands)? {
        let device = device_of(devices, segment, readers)?;
        if compared.contains(&segment.disk) {
            let digesting = readers.digest(device, segment.offset, segment.len)?;
            looking.send(Step::Compared(segment, Arc::clone(device), digesting)).map_err(gone)?;
        } else {
            read_all(device, segment, readers, &|item| looking.send(Step::Item(item)).map_err(gone))?;
        }
    }
    looking.send(Step::Item(Item::Finish)).map_err(gone)
}

fn ask(
    looked: &Receiver<Step<Digesting>>,
    their_groups: &Receiver<Heard<Vec<(u32, Digest)>>>,
    (key, block): (&ListKey, BlockSize),
    sending: &Sending,
    asking: &SyncSender<Step<Found>>,
) -> Result<()> {
    while let Ok(step) = looked.recv() {
        let step = match step {
            Step::Item(item) => Step::Item(item),
            Step::Compared(segment, device, digesting) => {
                let (ours, read) = digesting.finish()?;
                let groups = hear(&answer(their_groups, segment)?, ours.len(), block)
                    .ok_or_else(|| broken("digests that are not those of its segment"))?;
                let comparison = Comparison::new(key, ours, &groups, block);
                let groups = comparison.wanted().to_vec();
                if !groups.is_empty() {
                    let sent = sending.send(&LaneMessage::Want { segment, groups }, &[])?;
                    sending.digests.fetch_add(sent, Ordering::Relaxed);
                }
                Step::Compared(segment, device, Found { comparison, read })
            }
        };
        asking.send(step).map_err(gone)?;
    }
    Ok(())
}

fn settle(
    asked: &Receiver<Step<Found>>,
    their_blocks: &Receiver<Heard<Vec<Digest>>>,
    readers: &Readers,
    items: &SyncSender<Item>,
) -> Result<()> {
    let give = |item| items.send(item).map_err(gone);
    while let Ok(step) = asked.recv() {
        match step {
            Step::Item(item) => give(item)?,
            Step::Compared(segment, device, Found { comparison, read }) => {
                let answer = if comparison.wanted().is_empty() { Vec::new() } else { answer(their_blocks, segment)? };
                let (digests, runs) = comparison
                    .complete(&answer)
                    .ok_or_else(|| broken("another number of digests than was asked for"))?;
                give(Item::Begin(segment, Known::All(digests, read)))?;
                for run in runs {
                    settle_run(segment, run, &device, readers, &give)?;
                }
                give(Item::End(segment, device))?;
            }
        }
    }
    Ok(())
}

/// Has blocks that differ read again, so that they are sent; zeros are only told.
fn settle_run(
    segment: Segment,
    run: Run,
    device: &Device,
    readers: &Readers,
    give: &dyn Fn(Item) -> Result<()>,
) -> Result<()> {
    let block = readers.block().bytes();
    let start = segment.offset + run.first as u64 * block;
    let end = (start + run.blocks as u64 * block).min(segment.offset + segment.len);
    if run.kind == ExtentKind::Zero {
        return give(Item::Zero { offset: start, blocks: u32::try_from(run.blocks).unwrap_or(u32::MAX) });
    }
    let mut at = start;
    while at < end {
        let len = UNIT.min(end - at);
        give(Item::Piece(readers.read(device, at, usize::try_from(len).unwrap_or(usize::MAX))?))?;
        at += len;
    }
    Ok(())
}

/// What the target told of this segment. It tells of segments in the order in which they were dealt, to both ends alike.
fn answer<T>(heard: &Receiver<Heard<T>>, segment: Segment) -> Result<T> {
    match heard.recv() {
        Ok(Heard(of, answer)) if of == segment => Ok(answer),
        Ok(_) => Err(broken("digests of another segment than the next one")),
        Err(_) => Err(Error::transfer("the lane ended before its last segment")
            .help("The connection or the target's agent died; run the command again")
            .transient()),
    }
}

/// Takes what the target tells. That it is more than the segments that were dealt have room for is an error, not a reason
/// to wait.
fn listen(
    input: &mut Input,
    sending: &Sending,
    groups: &SyncSender<Heard<Vec<(u32, Digest)>>>,
    blocks: &SyncSender<Heard<Vec<Digest>>>,
) -> Result<()> {
    let too_many = || broken("digests that nobody waits for");
    let mut input = FrameReader::new(input);
    input.expect_magic()?;
    while let Some((header, body)) = input.next()? {
        if header.kind != Kind::Lane || header.payload_len != 0 {
            return Err(broken("a frame that does not belong on a lane"));
        }
        sending.digests.fetch_add((HEADER_LEN + body.len()) as u64, Ordering::Relaxed);
        match decode(body)? {
            LaneAnswer::Groups { segment, digests } => {
                groups.try_send(Heard(segment, digests)).map_err(|_| too_many())?;
            }
            LaneAnswer::Blocks { segment, digests } => {
                blocks.try_send(Heard(segment, digests)).map_err(|_| too_many())?;
            }
        }
    }
    Ok(())
}
