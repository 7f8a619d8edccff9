//! Reading ahead: several threads read and digest, one takes the results in order.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_clone_core::blocks::{BLOCK, BLOCK_LEN, Digest, DigestKey, Extent, extents};
use kvm_clone_core::wire::lane::FRAME_BLOCKS;
use kvm_clone_core::{Error, Result};

use crate::device::ReadDevice;

/// Bytes read at once.
pub(super) const UNIT: u64 = FRAME_BLOCKS as u64 * BLOCK;
/// Threads that read and digest.
const READERS: usize = 4;
/// Units in flight, which bounds the memory of a lane agent: with [`UNIT`] bytes each, 12 MiB.
pub(super) const IN_FLIGHT: usize = 12;

/// A piece of a disk with the digest of each of its blocks.
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) data: Vec<u8>,
    pub(super) digests: Vec<Digest>,
}

/// Where a piece will arrive.
pub(super) type Coming = Receiver<Result<Piece>>;

struct Job {
    device: Arc<dyn ReadDevice>,
    offset: u64,
    len: usize,
    done: SyncSender<Result<Piece>>,
}

/// A few threads that read pieces of disks and digest them.
pub(super) struct Readers {
    jobs: SyncSender<Job>,
    spare: SyncSender<Vec<u8>>,
}

impl Readers {
    pub(super) fn start(key: &DigestKey) -> Self {
        let (jobs, waiting) = mpsc::sync_channel::<Job>(IN_FLIGHT);
        let (spare, spares) = mpsc::sync_channel::<Vec<u8>>(IN_FLIGHT * 2);
        let (waiting, spares) = (Arc::new(Mutex::new(waiting)), Arc::new(Mutex::new(spares)));
        for _ in 0..READERS {
            let (waiting, spares, key) = (Arc::clone(&waiting), Arc::clone(&spares), key.clone());
            std::thread::spawn(move || {
                while let Some(job) = take(&waiting) {
                    let buffer = spares.lock().unwrap_or_else(PoisonError::into_inner).try_recv().unwrap_or_default();
                    let _ = job.done.send(read(&job, &key, buffer));
                }
            });
        }
        Self { jobs, spare }
    }

    /// Has a piece read; waits while too many are in flight.
    pub(super) fn read(&self, device: &Arc<dyn ReadDevice>, offset: u64, len: usize) -> Result<Coming> {
        let (done, coming) = mpsc::sync_channel(1);
        let job = Job { device: Arc::clone(device), offset, len, done };
        self.jobs.send(job).map_err(|_| Error::internal("the reader threads are gone"))?;
        Ok(coming)
    }

    /// Gives a buffer back.
    pub(super) fn recycle(&self, buffer: Vec<u8>) {
        let _ = self.spare.try_send(buffer);
    }
}

fn take(waiting: &Mutex<Receiver<Job>>) -> Option<Job> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn read(job: &Job, key: &DigestKey, mut data: Vec<u8>) -> Result<Piece> {
    data.resize(job.len, 0);
    job.device.read_at(&mut data, job.offset)?;
    let digests = data.chunks(BLOCK_LEN).map(|block| key.block(block)).collect();
    Ok(Piece { offset: job.offset, data, digests })
}

/// The pieces of a segment that may hold data: whole blocks (the disk's end aside), none larger than [`UNIT`].
pub(super) fn pieces(device: &dyn ReadDevice, offset: u64, len: u64) -> Result<Vec<(u64, usize)>> {
    let found: Vec<Extent> = device.extents(offset, len)?;
    let Some(block) = std::num::NonZeroU64::new(BLOCK) else { return Ok(Vec::new()) };
    let mut pieces = Vec::new();
    for extent in extents::align_outward(&found, block, device.size()) {
        let mut at = extent.offset;
        while extent.kind == extents::ExtentKind::Data && at < extent.end() {
            let len = UNIT.min(extent.end() - at);
            pieces.push((at, usize::try_from(len).unwrap_or(usize::MAX)));
            at += len;
        }
    }
    Ok(pieces)
}
