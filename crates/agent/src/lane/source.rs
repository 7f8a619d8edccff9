//! The source end of a lane: reads segments, digests their blocks, sends those that are not zero.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use kvm_clone_core::blocks::{BLOCK_LEN, DigestKey};
use kvm_clone_core::wire::frame::Kind;
use kvm_clone_core::wire::lane::{ImageSpec, LaneCommand, LaneEvent, LaneMessage, Segment};
use kvm_clone_core::{Error, Result};

use super::direct::Output;
use super::images::open_reader;
use super::join::Events;
use super::readers::{self, Coming, IN_FLIGHT, Piece, Readers};
use crate::device::ReadDevice;
use crate::stream::FrameWriter;

/// Progress is told after so many bytes.
const TELL_EVERY: u64 = 4 << 20;

enum Item {
    Begin(Segment),
    Piece(Coming),
    End(Segment, Arc<dyn ReadDevice>),
    Finish,
}

/// Sends what it is told to until it is told to finish.
pub(super) fn run(
    disks: &[ImageSpec],
    key: &DigestKey,
    output: Output,
    commands: &Receiver<LaneCommand>,
    events: &Arc<Events>,
) -> Result<()> {
    let devices = disks.iter().map(|disk| open_reader(disk).map(Arc::from)).collect::<Result<Vec<_>>>()?;
    let readers = Arc::new(Readers::start(key));
    let (items, queue) = mpsc::sync_channel(IN_FLIGHT);
    let sender = {
        let (readers, events) = (Arc::clone(&readers), Arc::clone(events));
        std::thread::spawn(move || send(output, &queue, &readers, &events))
    };
    let outcome = enqueue(&devices, commands, &readers, &items);
    drop(items);
    // The sender's error is the cause when it stopped taking; ours is when it did not.
    sender.join().map_err(|_| Error::internal("the sending thread panicked"))?.and(outcome)
}

fn enqueue(
    devices: &[Arc<dyn ReadDevice>],
    commands: &Receiver<LaneCommand>,
    readers: &Readers,
    items: &mpsc::SyncSender<Item>,
) -> Result<()> {
    let stopped = |_| Error::internal("the sending thread stopped");
    while let Ok(command) = commands.recv() {
        match command {
            LaneCommand::Send(segment) => {
                let device = devices.get(usize::from(segment.disk)).ok_or_else(|| bad(segment))?;
                items.send(Item::Begin(segment)).map_err(stopped)?;
                for (offset, len) in readers::pieces(&**device, segment.offset, segment.len)? {
                    items.send(Item::Piece(readers.read(device, offset, len)?)).map_err(stopped)?;
                }
                items.send(Item::End(segment, Arc::clone(device))).map_err(stopped)?;
            }
            LaneCommand::Finish => return items.send(Item::Finish).map_err(stopped),
            _ => return Err(Error::internal("a source lane agent got a command for a target")),
        }
    }
    Err(Error::transfer("the control agent is gone"))
}

fn send(output: Output, queue: &Receiver<Item>, readers: &Readers, events: &Events) -> Result<()> {
    let mut output = FrameWriter::new(output);
    output.magic()?;
    let (mut read, mut sent, mut data_blocks) = (0, 0, 0);
    for item in queue {
        match item {
            Item::Begin(segment) => sent += output.send(Kind::Lane, &LaneMessage::Begin(segment), &[])?,
            Item::Piece(coming) => {
                let piece = coming.recv().map_err(|_| Error::internal("a reader thread is gone"))??;
                read += piece.data.len() as u64;
                data_blocks += piece.digests.iter().filter(|digest| !digest.is_zero()).count() as u64;
                sent += send_piece(&mut output, &piece)?;
                readers.recycle(piece.data);
            }
            Item::End(segment, device) => {
                sent += output.send(Kind::Lane, &LaneMessage::End, &[])?;
                device.drop_cache(segment.offset, segment.len);
                events.tell(&LaneEvent::Read { segment, data_blocks: std::mem::take(&mut data_blocks) });
            }
            Item::Finish => {
                sent += output.send(Kind::Lane, &LaneMessage::Finish, &[])?;
                events.tell(&LaneEvent::Sent { read, sent });
                return Ok(());
            }
        }
        if read + sent >= TELL_EVERY {
            events.tell(&LaneEvent::Sent { read: std::mem::take(&mut read), sent: std::mem::take(&mut sent) });
        }
    }
    Ok(())
}

/// Sends each run of blocks that are not zero as one frame.
fn send_piece(output: &mut FrameWriter<Output>, piece: &Piece) -> Result<u64> {
    let mut sent = 0;
    let mut index = 0;
    while index < piece.digests.len() {
        let zero = piece.digests[index].is_zero();
        let run = piece.digests[index..].iter().take_while(|digest| digest.is_zero() == zero).count();
        if !zero {
            let start = index * BLOCK_LEN;
            let end = piece.data.len().min(start + run * BLOCK_LEN);
            let digests = piece.digests[index..index + run].to_vec();
            let payload = &piece.data[start..end];
            let crc = crc32fast::hash(payload);
            let message = LaneMessage::Blocks { offset: piece.offset + start as u64, digests, crc };
            sent += output.send(Kind::Lane, &message, payload)?;
        }
        index += run;
    }
    Ok(sent)
}

fn bad(segment: Segment) -> Error {
    Error::internal(format!("there is no disk {}", segment.disk))
}
