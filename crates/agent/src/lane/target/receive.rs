//! Taking frames from the stream. Everything in them is checked here, before anything is written.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use kvm_clone_core::blocks::{BlockSize, Digest, ListKey};
use kvm_clone_core::wire::frame::{Header, Kind, MAX_PAYLOAD, decode};
use kvm_clone_core::wire::lane::{Compared, LaneAnswer, LaneMessage, Segment, Verify};
use kvm_clone_core::{Error, Result};

use super::super::broken;
use super::super::crew::gone;
use super::super::direct::Input;
use super::super::readers::is_sane;
use super::compare::{There, Told};
use super::{Item, Target};
use crate::buffer::Buffer;
use crate::stream::FrameReader;

/// Who takes frames, and where what is in them goes.
pub(super) struct Receiving {
    pub(super) target: Arc<Target>,
    pub(super) lists: ListKey,
    pub(super) told: Arc<Told>,
    pub(super) items: SyncSender<Item>,
    pub(super) answers: SyncSender<LaneAnswer>,
    pub(super) spares: Receiver<Buffer>,
}

impl Receiving {
    /// Takes frames until the source says that there are no more.
    pub(super) fn run(&self, input: &mut Input) -> Result<()> {
        let mut input = FrameReader::new(input);
        input.expect_magic()?;
        let mut current: Option<Incoming> = None;
        while let Some((header, body)) = input.next()? {
            if header.kind != Kind::Lane || header.payload_len > MAX_PAYLOAD {
                return Err(broken("a frame that does not belong on a lane"));
            }
            match (decode(body)?, current.as_mut()) {
                (LaneMessage::Begin(segment), None) => current = Some(self.begin(segment)?),
                (LaneMessage::Blocks { offset, digests, crc }, Some(incoming)) => {
                    let len = incoming.accept(offset, &digests)?;
                    let data = self.blocks(&mut input, header, len, offset, crc)?;
                    if self.target.verify == Verify::Off {
                        compare(&self.target, offset, &data, &digests)?;
                    }
                    self.items.send(Item::Blocks { disk: incoming.segment.disk, offset, data }).map_err(gone)?;
                }
                (LaneMessage::Zero { offset, blocks }, Some(incoming)) => {
                    let len = incoming.accept_zeros(offset, blocks)?;
                    self.items.send(Item::Zero { disk: incoming.segment.disk, offset, len }).map_err(gone)?;
                }
                (LaneMessage::End(digest), Some(_)) => {
                    if let Some(incoming) = current.take() {
                        self.items.send(Item::End(self.complete(incoming, digest)?)).map_err(gone)?;
                    }
                }
                (LaneMessage::Want { segment, groups }, _) => {
                    let digests = self.told.blocks(segment, &groups)?;
                    self.answers.send(LaneAnswer::Blocks { segment, digests }).map_err(gone)?;
                }
                (LaneMessage::Finish, None) => return Ok(()),
                (LaneMessage::Begin(_) | LaneMessage::Finish, Some(_)) => {
                    return Err(broken("a segment inside another"));
                }
                (_, None) => return Err(broken("parts of no segment")),
            }
        }
        Err(Error::transfer("the lane ended before its last segment")
            .help("The connection or the source's agent died; run the command again")
            .transient())
    }

    fn begin(&self, segment: Segment) -> Result<Incoming> {
        if !is_sane(segment, self.target.disks.len(), self.target.block) {
            return Err(broken("an impossible segment"));
        }
        let compared = self.target.bases.get(usize::from(segment.disk)).is_some_and(Option::is_some);
        Ok(Incoming::new(self.target.block, segment, if compared { Some(self.told.take(segment)?) } else { None }))
    }

    /// The payload of a frame of blocks.
    fn blocks(
        &self,
        input: &mut FrameReader<&mut Input>,
        header: Header,
        len: usize,
        offset: u64,
        crc: Option<u32>,
    ) -> Result<Buffer> {
        if header.payload_len as usize != len {
            return Err(broken("another number of bytes than its digests say"));
        }
        let mut data = self.spares.try_recv().unwrap_or_default();
        data.resize(len);
        input.payload(&mut data)?;
        if crc.is_some_and(|crc| crc32fast::hash(&data) != crc) {
            return Err(broken("blocks that were damaged on the way").with("offset", offset));
        }
        Ok(data)
    }

    /// What a segment is now at the target must be what it is at the source: also where nothing was sent.
    fn complete(&self, incoming: Incoming, digest: Digest) -> Result<Complete> {
        if self.lists.list(&incoming.digests) == digest {
            return Ok(incoming.complete());
        }
        let Segment { disk, offset, len } = incoming.segment;
        let path = self.target.disks.get(usize::from(disk)).map_or("", |image| &image.path);
        let end = offset + len;
        Err(Error::verification(format!("{path} from offset {offset} to {end} would not be what its source is"))
            .with("path", path)
            .with("offset", offset)
            .help("Memory of one of the hosts may be faulty: look at their kernel logs; nothing was made there"))
    }
}

/// A segment that is arriving.
struct Incoming {
    block: BlockSize,
    segment: Segment,
    /// What is there already; none where the image is new.
    base: Option<There>,
    /// What it will be: what is there, with what has arrived.
    digests: Vec<Digest>,
    /// Where the next block may lie.
    next: u64,
    /// What is written, by the numbers of its blocks.
    written: Vec<Range<usize>>,
}

/// A segment that has arrived.
pub(super) struct Complete {
    pub(super) segment: Segment,
    pub(super) digests: Vec<Digest>,
    /// Blocks to be read back, by their numbers.
    pub(super) written: Vec<Range<usize>>,
    pub(super) compared: Compared,
    /// Bytes of data that an interrupted try had left, and that were right.
    pub(super) kept: u64,
}

impl Incoming {
    fn new(block: BlockSize, segment: Segment, base: Option<There>) -> Self {
        let there = base.as_ref().map(|there| there.digests.clone());
        let digests = there.unwrap_or_else(|| vec![Digest::ZERO; block.count(segment.len)]);
        Self { block, segment, base, digests, next: segment.offset, written: Vec::new() }
    }

    fn end(&self) -> u64 {
        self.segment.offset + self.segment.len
    }

    /// The numbers of blocks that arrive, and how many bytes they have; none if they are not the next ones.
    fn advance(&mut self, offset: u64, blocks: u64) -> Option<(Range<usize>, u64)> {
        let (end, block) = (self.end(), self.block.bytes());
        let whole = blocks.saturating_mul(block);
        let sane = blocks > 0
            && offset >= self.next
            && offset < end
            && offset.is_multiple_of(block)
            && offset.saturating_add(whole) < end.saturating_add(block);
        if !sane {
            return None;
        }
        let first = self.block.count(offset - self.segment.offset);
        self.next = offset + whole;
        let range = first..first + usize::try_from(blocks).ok()?;
        match self.written.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.written.push(range.clone()),
        }
        Some((range, self.next.min(end) - offset))
    }

    /// Notes the digests of blocks that arrive; returns how many bytes they have.
    fn accept(&mut self, offset: u64, digests: &[Digest]) -> Result<usize> {
        let sane = (1..=self.block.in_group()).contains(&digests.len()) && !digests.iter().any(Digest::is_zero);
        let taken = if sane { self.advance(offset, digests.len() as u64) } else { None };
        let Some((range, len)) = taken else {
            return Err(broken("blocks that are not the next ones of their segment").with("offset", offset));
        };
        self.digests[range].copy_from_slice(digests);
        Ok(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// Notes blocks that have become zero; returns how many bytes they have.
    fn accept_zeros(&mut self, offset: u64, blocks: u32) -> Result<u64> {
        let wrong = || broken("zeros that are not the next blocks of their segment").with("offset", offset);
        let (range, len) = self.advance(offset, u64::from(blocks)).ok_or_else(wrong)?;
        let base = self.base.as_ref().ok_or_else(wrong)?;
        if base.digests[range.clone()].iter().any(Digest::is_zero) {
            return Err(wrong());
        }
        self.digests[range].fill(Digest::ZERO);
        Ok(len)
    }

    fn complete(self) -> Complete {
        let Self { block, segment, base, digests, written, .. } = self;
        match base {
            // What was not sent must be zero, too.
            None => {
                let all = Range { start: 0, end: digests.len() };
                Complete { segment, digests, written: vec![all], compared: Compared::default(), kept: 0 }
            }
            Some(base) => {
                let both = digests.iter().zip(&base.digests);
                let blocks = both.filter(|(now, then)| !now.is_zero() || !then.is_zero()).count() as u64;
                let differing = written.iter().map(|range| range.len() as u64).sum();
                let kept = kept(&base.begun, &written, &digests) * block.bytes();
                Complete { segment, digests, written, compared: Compared { blocks, differing }, kept }
            }
        }
    }
}

/// How many of the blocks that an interrupted try had left were not written again, and hold data.
fn kept(begun: &[Range<usize>], written: &[Range<usize>], digests: &[Digest]) -> u64 {
    let is_written = |block: usize| {
        let after = written.partition_point(|range| range.end <= block);
        written.get(after).is_some_and(|range| range.contains(&block))
    };
    let blocks = begun.iter().cloned().flatten();
    blocks.filter(|block| !is_written(*block) && !digests[*block].is_zero()).count() as u64
}

fn compare(target: &Target, offset: u64, data: &[u8], digests: &[Digest]) -> Result<()> {
    let mut blocks = data.chunks(target.block.in_memory()).zip(digests);
    let differs = blocks.position(|(block, digest)| target.key.block(block) != *digest);
    differs.map_or(Ok(()), |block| {
        let offset = offset + block as u64 * target.block.bytes();
        Err(Error::verification(format!("the block at offset {offset} is not what was sent")).with("offset", offset))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
