//! Which segment goes to which lane. Pure.

use std::collections::{HashMap, HashSet, VecDeque};

use kvm_clone_core::wire::lane::{LaneCommand, Segment};
use kvm_clone_core::{Error, Result};

/// Segments that a lane has at once: while one is read back, the next one is on its way.
const AHEAD: usize = 2;
/// Where they hold little, a lane has more of them, or it would wait for the next one most of the time: so many bytes of
/// data, in so many segments at most.
const AHEAD_BYTES: u64 = 32 << 20;
const AHEAD_SMALL: usize = 32;
/// What is compared mostly stays where it is, and a lane keeps 16 KiB of it: it has so many segments, as long as others find
/// as many.
const AHEAD_COMPARED: usize = 8;

/// What is to be carried.
#[derive(Debug, Default)]
pub(super) struct Work {
    segments: VecDeque<(Segment, u64)>,
    /// Disks of which segments are compared.
    compared: HashSet<u16>,
}

impl Work {
    /// Adds a segment that may hold so many bytes of data.
    pub(super) fn add(&mut self, segment: Segment, bytes: u64) {
        self.segments.push_back((segment, bytes));
    }

    /// Adds a segment that is compared, of which either end may hold so many bytes of data.
    pub(super) fn add_compared(&mut self, segment: Segment, bytes: u64) {
        self.compared.insert(segment.disk);
        self.add(segment, bytes);
    }

    /// Bytes of data in all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes of data by disk.
    pub(super) fn totals(&self, disks: usize) -> Vec<u64> {
        let mut totals = vec![0; disks];
        for (segment, bytes) in &self.segments {
            if let Some(total) = totals.get_mut(usize::from(segment.disk)) {
                *total += bytes;
            }
        }
        totals
    }
}

/// How far a disk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DiskProgress {
    pub(super) done: u64,
    pub(super) total: u64,
}

/// The state of a copy.
#[derive(Debug)]
pub(super) struct Schedule {
    waiting: VecDeque<(Segment, u64)>,
    lanes: Vec<LaneState>,
    disks: HashMap<u16, DiskProgress>,
    compared: HashSet<u16>,
}

#[derive(Debug, Default, Clone)]
struct LaneState {
    carrying: Vec<(Segment, u64)>,
    finishing: bool,
}

impl LaneState {
    fn wants_more(&self) -> bool {
        let bytes: u64 = self.carrying.iter().map(|(_, bytes)| bytes).sum();
        self.carrying.len() < AHEAD || (self.carrying.len() < AHEAD_SMALL && bytes < AHEAD_BYTES)
    }
}

impl Schedule {
    pub(super) fn new(work: Work, lanes: usize) -> Self {
        let mut disks: HashMap<u16, DiskProgress> = HashMap::new();
        for (segment, bytes) in &work.segments {
            disks.entry(segment.disk).or_default().total += bytes;
        }
        let lanes = vec![LaneState::default(); lanes];
        Self { waiting: work.segments, lanes, disks, compared: work.compared }
    }

    /// Whether a lane is given one more segment of those that are compared.
    fn compares_more(&self, lane: &LaneState) -> bool {
        let next_is_compared = self.waiting.front().is_some_and(|(segment, _)| self.compared.contains(&segment.disk));
        let carrying = lane.carrying.len();
        next_is_compared && carrying < AHEAD_COMPARED && carrying * self.lanes.len() <= self.waiting.len()
    }

    /// What the lane is told now.
    pub(super) fn next(&mut self, lane: usize) -> Vec<LaneCommand> {
        let mut commands = Vec::new();
        while self.lanes.get(lane).is_some_and(|state| state.wants_more() || self.compares_more(state)) {
            let Some(work) = self.waiting.pop_front() else { break };
            commands.push(LaneCommand::Send(work.0));
            self.lanes[lane].carrying.push(work);
        }
        let Some(state) = self.lanes.get_mut(lane) else { return commands };
        if self.waiting.is_empty() && !state.finishing {
            state.finishing = true;
            commands.push(LaneCommand::Finish);
        }
        commands
    }

    /// A lane is done with a segment.
    ///
    /// # Errors
    /// It was not given that segment.
    pub(super) fn done(&mut self, lane: usize, segment: Segment) -> Result<DiskProgress> {
        let state = self.lanes.get_mut(lane);
        let carried = state.and_then(|state| {
            let position = state.carrying.iter().position(|(carrying, _)| *carrying == segment)?;
            Some(state.carrying.remove(position))
        });
        let (_, bytes) = carried
            .ok_or_else(|| Error::transfer(format!("lane {lane} is done with a segment that it was not given")))?;
        let progress = self.disks.entry(segment.disk).or_default();
        progress.done += bytes;
        Ok(*progress)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn segment(index: u64) -> Segment {
        Segment { disk: 0, offset: index * 64, len: 64 }
    }

    /// Segments that hold enough for two of them to keep a lane busy.
    fn schedule(segments: u64, lanes: usize) -> Schedule {
        schedule_of(segments, AHEAD_BYTES, lanes)
    }

    fn schedule_of(segments: u64, bytes: u64, lanes: usize) -> Schedule {
        let mut work = Work::default();
        (0..segments).for_each(|index| work.add(segment(index), bytes));
        Schedule::new(work, lanes)
    }

    #[test]
    fn a_lane_has_many_segments_at_once_only_if_they_hold_little() {
        let sent = |bytes| {
            let commands = schedule_of(100, bytes, 1).next(0);
            commands.iter().filter(|command| matches!(command, LaneCommand::Send(_))).count()
        };
        assert_eq!(sent(64 << 20), AHEAD);
        assert_eq!(sent(AHEAD_BYTES / 8), 8);
        assert_eq!(sent(1 << 20), AHEAD_SMALL);
    }

    #[test]
    fn what_is_compared_is_dealt_ahead_unless_others_would_lack_it() {
        let ahead = |segments, lanes| {
            let mut work = Work::default();
            (0..segments).for_each(|index| work.add_compared(segment(index), AHEAD_BYTES));
            let mut schedule = Schedule::new(work, lanes);
            (0..lanes).map(|lane| schedule.next(lane).len()).collect::<Vec<_>>()
        };
        assert_eq!(ahead(100, 2), [AHEAD_COMPARED, AHEAD_COMPARED]);
        let fair = ahead(16, 4);
        assert!(fair.iter().all(|count| (AHEAD..=6).contains(count)), "{fair:?}");
    }

    #[test]
    fn every_segment_is_carried_once_and_every_lane_finishes_once() {
        let mut schedule = schedule(7, 2);
        let mut carrying: Vec<(usize, Segment)> = Vec::new();
        let (mut sent, mut finished) = (0, 0);
        let mut take = |schedule: &mut Schedule, carrying: &mut Vec<(usize, Segment)>, lane| {
            for command in schedule.next(lane) {
                match command {
                    LaneCommand::Send(segment) => {
                        sent += 1;
                        carrying.push((lane, segment));
                    }
                    _ => finished += 1,
                }
            }
        };
        take(&mut schedule, &mut carrying, 0);
        take(&mut schedule, &mut carrying, 1);
        let mut last = DiskProgress::default();
        while let Some((lane, segment)) = carrying.pop() {
            last = schedule.done(lane, segment).unwrap();
            take(&mut schedule, &mut carrying, lane);
        }
        assert_eq!((sent, finished), (7, 2));
        assert_eq!(last, DiskProgress { done: 7 * AHEAD_BYTES, total: 7 * AHEAD_BYTES });
    }

    #[test]
    fn a_copy_of_nothing_just_finishes() {
        assert_eq!(schedule(0, 1).next(0), vec![LaneCommand::Finish]);
    }

    #[test]
    fn a_segment_that_was_not_given_is_an_error() {
        let mut schedule = schedule(3, 1);
        schedule.next(0);
        assert!(schedule.done(0, segment(2)).is_err());
        schedule.done(0, segment(0)).unwrap();
        assert!(schedule.done(0, segment(0)).is_err());
    }
}
