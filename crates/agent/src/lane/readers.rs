//! Reading ahead: several threads read and digest, one takes the results in order.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_clone_core::blocks::compare::GROUP_LEN;
use kvm_clone_core::blocks::{BLOCK, BlockSize, Digest, DigestKey, Extent, extents};
use kvm_clone_core::wire::lane::Segment;
use kvm_clone_core::{Error, Result};

use crate::buffer::Buffer;
use crate::device::ReadDevice;

/// Bytes read at once; whole blocks, whatever their size.
pub(super) const UNIT: u64 = GROUP_LEN;
/// Threads that read and digest.
const READERS: usize = 4;
/// Units in flight, which bounds the memory of a lane agent: with [`UNIT`] bytes each, 12 MiB.
pub(super) const IN_FLIGHT: usize = 12;

/// A piece of a disk with the digest of each of its blocks.
pub(super) struct Piece {
    pub(super) offset: u64,
    /// What was read; empty where only digests were asked for.
    pub(super) data: Buffer,
    pub(super) digests: Vec<Digest>,
}

/// What becomes of the data of a piece.
#[derive(Clone, Copy)]
enum Keep {
    Data,
    DigestsOnly,
}

/// Where a piece will arrive.
pub(super) type Coming = Receiver<Result<Piece>>;

struct Job {
    device: Arc<dyn ReadDevice>,
    offset: u64,
    len: usize,
    block: BlockSize,
    keep: Keep,
    done: SyncSender<Result<Piece>>,
}

/// A few threads that read pieces of disks and digest them.
pub(crate) struct Readers {
    jobs: SyncSender<Job>,
    spare: SyncSender<Buffer>,
    block: BlockSize,
}

impl Readers {
    /// Readers of blocks of this size.
    pub(crate) fn start(key: &DigestKey, block: BlockSize) -> Self {
        let (jobs, waiting) = mpsc::sync_channel::<Job>(IN_FLIGHT);
        let (spare, spares) = mpsc::sync_channel::<Buffer>(IN_FLIGHT * 2);
        let (waiting, spares) = (Arc::new(Mutex::new(waiting)), Arc::new(Mutex::new(spares)));
        for _ in 0..READERS {
            let (waiting, spares, key) = (Arc::clone(&waiting), Arc::clone(&spares), key.clone());
            std::thread::spawn(move || {
                let mut own = Buffer::default();
                while let Some(job) = take(&waiting) {
                    let piece = match job.keep {
                        Keep::DigestsOnly => digest(&job, &key, &mut own),
                        Keep::Data => {
                            let mut data =
                                spares.lock().unwrap_or_else(PoisonError::into_inner).try_recv().unwrap_or_default();
                            digest(&job, &key, &mut data).map(|piece| Piece { data, ..piece })
                        }
                    };
                    let _ = job.done.send(piece);
                }
            });
        }
        Self { jobs, spare, block }
    }

    /// The length of the blocks that are digested.
    pub(super) fn block(&self) -> BlockSize {
        self.block
    }

    /// Has a piece read; waits while too many are in flight.
    pub(super) fn read(&self, device: &Arc<dyn ReadDevice>, offset: u64, len: usize) -> Result<Coming> {
        self.order(device, (offset, len), self.block, Keep::Data)
    }

    /// Has what may hold data in a range digested; waits while too much is in flight, but never for all of it. Of the range
    /// only the digests are kept.
    pub(crate) fn digest(&self, device: &Arc<dyn ReadDevice>, offset: u64, len: u64) -> Result<Digesting> {
        self.digest_by(self.block, device, offset, len)
    }

    /// The same in blocks of another size.
    pub(super) fn digest_by(
        &self,
        block: BlockSize,
        device: &Arc<dyn ReadDevice>,
        offset: u64,
        len: u64,
    ) -> Result<Digesting> {
        let mut digesting = Digesting { offset, block, blocks: block.count(len), read: 0, coming: Vec::new() };
        for (offset, len) in pieces(&**device, offset, len, block)? {
            digesting.coming.push(self.order(device, (offset, len), block, Keep::DigestsOnly)?);
            digesting.read += len as u64;
        }
        Ok(digesting)
    }

    fn order(
        &self,
        device: &Arc<dyn ReadDevice>,
        (offset, len): (u64, usize),
        block: BlockSize,
        keep: Keep,
    ) -> Result<Coming> {
        let (done, coming) = mpsc::sync_channel(1);
        let job = Job { device: Arc::clone(device), offset, len, block, keep, done };
        self.jobs.send(job).map_err(|_| Error::internal("the reader threads are gone"))?;
        Ok(coming)
    }

    /// Gives a buffer back.
    pub(super) fn recycle(&self, buffer: Buffer) {
        let _ = self.spare.try_send(buffer);
    }
}

fn take(waiting: &Mutex<Receiver<Job>>) -> Option<Job> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Reads a piece into a buffer that is used again and again.
fn digest(job: &Job, key: &DigestKey, buffer: &mut Buffer) -> Result<Piece> {
    buffer.resize(job.len);
    job.device.read_at(buffer, job.offset)?;
    let digests = buffer.chunks(job.block.in_memory()).map(|block| key.block(block)).collect();
    Ok(Piece { offset: job.offset, data: Buffer::default(), digests })
}

/// The digests of a range, on their way.
pub(crate) struct Digesting {
    offset: u64,
    block: BlockSize,
    blocks: usize,
    read: u64,
    coming: Vec<Coming>,
}

impl Digesting {
    /// How many bytes are read for them.
    pub(crate) fn bytes(&self) -> u64 {
        self.read
    }

    /// The digests of all blocks of the range, and how many bytes were read for them.
    pub(crate) fn finish(self) -> Result<(Vec<Digest>, u64)> {
        let mut found = vec![Digest::ZERO; self.blocks];
        for coming in self.coming {
            let piece = arrived(&coming)?;
            let first = self.block.count(piece.offset - self.offset);
            found[first..first + piece.digests.len()].copy_from_slice(&piece.digests);
        }
        Ok((found, self.read))
    }
}

/// A piece, once it is there.
pub(super) fn arrived(coming: &Coming) -> Result<Piece> {
    coming.recv().map_err(|_| Error::internal("a reader thread is gone"))?
}

/// Whether a segment that somebody named can be one. Whatever the size of the blocks, it has whole clusters of a staging image:
/// those of another segment may be another lane's.
pub(super) fn is_sane(segment: Segment, disks: usize, block: BlockSize) -> bool {
    usize::from(segment.disk) < disks
        && segment.offset.is_multiple_of(block.bytes().max(BLOCK))
        && segment.len <= 1 << 30
        && segment.offset.checked_add(segment.len).is_some()
}

/// The pieces of a range of whole blocks (the disk's end aside) that may hold data: whole blocks as well, none larger
/// than [`UNIT`].
pub(super) fn pieces(device: &dyn ReadDevice, offset: u64, len: u64, block: BlockSize) -> Result<Vec<(u64, usize)>> {
    let found: Vec<Extent> = device.extents(offset, len)?;
    let Some(block) = std::num::NonZeroU64::new(block.bytes()) else { return Ok(Vec::new()) };
    let mut pieces = Vec::new();
    for extent in extents::align_outward(&found, block, offset.saturating_add(len)) {
        let mut at = extent.offset;
        while extent.kind == extents::ExtentKind::Data && at < extent.end() {
            let len = UNIT.min(extent.end() - at);
            pieces.push((at, usize::try_from(len).unwrap_or(usize::MAX)));
            at += len;
        }
    }
    Ok(pieces)
}
