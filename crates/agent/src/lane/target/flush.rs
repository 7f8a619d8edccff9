//! Making durable what was written, while more of it comes.
//!
//! Starting to write it back is not enough: storage with a volatile cache of its own (a virtual disk whose host caches it, most
//! drives) takes the data and keeps it until it is told to flush. Told only at the end, all of it is waited for there, while
//! nothing else gets on.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use kvm_clone_core::Result;
use kvm_clone_core::wire::control::DiskIndex;
use kvm_clone_core::wire::lane::LaneEvent;

use super::super::crew::gone;
use super::super::join::Events;
use crate::device::{PIECE, WriteDevice};

/// What is written to a disk before it is flushed. A flush costs a rotating disk some seeks, a tenth of the time that it takes to write
/// this much.
const EVERY: u64 = 32 << 20;
/// What may be written beyond what is flushed. It bounds what waits in the page cache of a host whose guests need that too, and
/// how long a slow disk has to work when all has arrived.
const MOST: u64 = 256 << 20;
/// How often whoever waits for us hears that we get on.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What was written to a disk.
#[derive(Debug, Default)]
struct Written {
    ranges: Vec<(u64, u64)>,
    bytes: u64,
}

/// A disk that is to be flushed, and what was written to it since the last time.
pub(super) struct Flush {
    disk: DiskIndex,
    ranges: Vec<(u64, u64)>,
}

/// Counts what is written, and has it flushed.
pub(super) struct Flushes {
    /// By disk, since its last flush was asked for.
    written: Vec<Written>,
    orders: SyncSender<Flush>,
}

impl Flushes {
    /// For so many disks; also returns where the orders come out, for [`run`].
    pub(super) fn new(disks: usize) -> (Self, Receiver<Flush>) {
        // One waits while another one is done.
        let (orders, to_flush) = mpsc::sync_channel(1);
        (Self { written: (0..disks).map(|_| Written::default()).collect(), orders }, to_flush)
    }

    /// Notes what was written to a disk. Waits only when far more was written than is flushed.
    pub(super) fn note(&mut self, disk: DiskIndex, offset: u64, len: u64) -> Result<()> {
        let written = &mut self.written[usize::from(disk)];
        match written.ranges.last_mut() {
            Some((start, before)) if *start + *before == offset => *before += len,
            _ => written.ranges.push((offset, len)),
        }
        written.bytes += len;
        if written.bytes < EVERY {
            return Ok(());
        }
        let Written { ranges, bytes } = std::mem::take(written);
        match self.orders.try_send(Flush { disk, ranges }) {
            Err(TrySendError::Full(order)) if bytes >= MOST => self.orders.send(order).map_err(gone),
            Err(TrySendError::Full(Flush { ranges, .. })) => {
                *written = Written { ranges, bytes };
                Ok(())
            }
            outcome => outcome.map_err(gone),
        }
    }
}

/// Flushes as ordered. Whoever ends the lane waits for this to end: the kernel tells of a failed write once, and only whoever had the file
/// open by then, so a failure that is told here is told nowhere else.
pub(super) fn run(devices: &[Arc<dyn WriteDevice>], orders: &Receiver<Flush>, events: &Events) -> Result<()> {
    let mut told = Instant::now();
    while let Ok(Flush { disk, ranges }) = orders.recv() {
        let device = &devices[usize::from(disk)];
        for (start, len) in ranges {
            let (mut at, end) = (start, start + len);
            // Piece by piece: how a flush gets on that is asked for as a whole, nobody can tell.
            while at < end {
                let len = PIECE.min(end - at);
                device.write_back(at, len)?;
                at += len;
                if told.elapsed() >= TELL_EVERY {
                    events.tell(&LaneEvent::Written(0));
                    told = Instant::now();
                }
            }
        }
        device.sync()?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn who_writes_waits_only_when_far_more_is_written_than_flushed() {
        let (mut flushes, orders) = Flushes::new(2);
        for at in 0..32 {
            flushes.note(1, at * MIB, MIB).unwrap();
        }
        // Nobody flushes: none of these may wait.
        for at in 32..32 + 255 {
            flushes.note(1, at * MIB, MIB).unwrap();
        }
        flushes.note(0, 0, 31 * MIB).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || flushes.note(1, 300 * MIB, MIB));
            let ordered: Vec<_> = [orders.recv(), orders.recv()].map(|order| order.unwrap().ranges).into();
            assert_eq!(ordered, [vec![(0, 32 * MIB)], vec![(32 * MIB, 255 * MIB), (300 * MIB, MIB)]]);
            waiting.join().unwrap().unwrap();
        });
        assert!(orders.recv().is_err(), "too little was written to the other disk");
    }
}
