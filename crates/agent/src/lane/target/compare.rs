//! Disks of which there is something already: the source is told what.
//!
//! ```text
//! orders ──> look ──> tell ──> talk ──> the source
//!                               ▲
//! the source ──> (receive) ─────┘
//! ```
//!
//! `look` has segments digested, `tell` tells the digests of their groups, `talk` alone writes to the source: who receives
//! never waits for the writing of answers longer than the source takes to hear them, and it always hears.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_clone_core::blocks::groups::{ListKey, are_groups, group_blocks, told};
use kvm_clone_core::blocks::{BlockSize, Digest, DigestKey};
use kvm_clone_core::wire::frame::Kind;
use kvm_clone_core::wire::lane::{Base, ImageSpec, LaneAnswer, LaneEvent, Segment};
use kvm_clone_core::{Error, Result};

use super::super::crew::gone;
use super::super::direct::Output;
use super::super::join::Events;
use super::super::readers::{Readers, is_sane};
use super::super::{ANSWERS_WAITING, broken};
use super::base::{Looked, Looking, OpenBase};
use crate::stream::FrameWriter;

/// What is there of a segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct There {
    pub(super) digests: Vec<Digest>,
    /// Of these, what an interrupted try has left, by the numbers of the blocks.
    pub(super) begun: Vec<Range<usize>>,
}

/// Segments of which the source was told, and that it has not begun.
pub(super) struct Told {
    entries: Mutex<HashMap<Segment, Entry>>,
    block: BlockSize,
}

struct Entry {
    there: There,
    /// The source asks once.
    asked: bool,
}

impl Told {
    pub(super) fn of(block: BlockSize) -> Self {
        Self { entries: Mutex::default(), block }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Segment, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keep(&self, segment: Segment, there: There) -> Result<()> {
        let mut entries = self.entries();
        if entries.len() >= ANSWERS_WAITING {
            return Err(Error::internal("too many segments are compared at a time"));
        }
        entries.insert(segment, Entry { there, asked: false });
        Ok(())
    }

    /// The digests of the blocks that the source asks for.
    pub(super) fn blocks(&self, segment: Segment, groups: &[u32]) -> Result<Vec<Digest>> {
        let mut entries = self.entries();
        let entry = entries.get_mut(&segment).filter(|entry| {
            let numbers = groups.iter().copied();
            !entry.asked && !groups.is_empty() && are_groups(numbers, entry.there.digests.len(), self.block)
        });
        let Some(entry) = entry else { return Err(broken("a question that nobody can answer")) };
        entry.asked = true;
        let digests = &entry.there.digests;
        let blocks = |group: &u32| digests[group_blocks(*group, digests.len(), self.block)].iter().copied();
        Ok(groups.iter().flat_map(blocks).collect())
    }

    /// What the source was told of a segment that begins.
    pub(super) fn take(&self, segment: Segment) -> Result<There> {
        let entry = self.entries().remove(&segment);
        entry.map(|entry| entry.there).ok_or_else(|| broken("a segment that was not compared"))
    }
}

/// The bases of all disks, opened when they are needed.
pub(super) struct Bases {
    /// Each base, with the image that is written and the size that its disk has now.
    pub(super) bases: Vec<Option<(Base, ImageSpec, u64)>>,
    pub(super) key: DigestKey,
    pub(super) block: BlockSize,
    pub(super) open: HashMap<u16, Arc<OpenBase>>,
}

impl Bases {
    fn of(&mut self, segment: Segment, events: &Events) -> Result<Arc<OpenBase>> {
        if let Some(open) = self.open.get(&segment.disk) {
            return Ok(Arc::clone(open));
        }
        let (base, staging, size) = self
            .bases
            .get(usize::from(segment.disk))
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::internal(format!("disk {} has nothing to be compared with", segment.disk)))?;
        let (open, why) = OpenBase::open(base, staging, &self.key, (self.block, *size))?;
        if let Some(why) = why {
            events.tell(&LaneEvent::Disbelieved { disk: segment.disk, why });
        }
        Ok(Arc::clone(self.open.entry(segment.disk).or_insert(Arc::new(open))))
    }
}

pub(super) fn look(
    bases: &mut Bases,
    orders: &Receiver<Segment>,
    readers: &Readers,
    events: &Events,
    looking: &SyncSender<Looking>,
) -> Result<()> {
    while let Ok(segment) = orders.recv() {
        if !is_sane(segment, bases.bases.len(), readers.block()) {
            return Err(Error::internal(format!("there is no segment {segment:?}")));
        }
        let base = bases.of(segment, events)?;
        looking.send(base.look(readers, segment)?).map_err(gone)?;
    }
    Ok(())
}

pub(super) fn tell(
    looking: &Receiver<Looking>,
    (key, block): (&ListKey, BlockSize),
    known: &Told,
    events: &Events,
    answers: &SyncSender<LaneAnswer>,
) -> Result<()> {
    while let Ok(next) = looking.recv() {
        let segment = next.segment;
        let Looked { digests, read, diverged, begun } = next.finish()?;
        events.tell(&LaneEvent::Looked(read));
        if diverged > 0 {
            events.tell(&LaneEvent::Diverged { segment, blocks: diverged });
        }
        let groups = told(&key.groups(&digests, block));
        known.keep(segment, There { digests, begun })?;
        answers.send(LaneAnswer::Groups { segment, digests: groups }).map_err(gone)?;
    }
    Ok(())
}

/// Writes what is to be told to the source.
pub(super) fn talk(output: &mut Output, answers: &Receiver<LaneAnswer>) -> Result<()> {
    let mut output = FrameWriter::new(output);
    output.magic()?;
    while let Ok(answer) = answers.recv() {
        output.send(Kind::Lane, &answer, &[])?;
    }
    Ok(())
}
