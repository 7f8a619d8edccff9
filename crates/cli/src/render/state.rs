//! Events folded into what is so at the moment; bars and lines are drawn from it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use kvm_clone_core::event::{Event, Phase};
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::size::ByteSize;

/// A rate is measured over this time, so that it neither jumps nor lags.
const WINDOW: Duration = Duration::from_secs(15);

/// How far something is.
#[derive(Debug, Clone, Default)]
pub(super) struct Track {
    pub(super) done: u64,
    pub(super) total: u64,
    samples: VecDeque<(Instant, u64)>,
}

impl Track {
    fn begin(total: u64, now: Instant) -> Self {
        Self { done: 0, total, samples: [(now, 0)].into() }
    }

    fn reach(&mut self, done: u64, now: Instant) {
        self.done = done.max(self.done).min(self.total);
        self.samples.push_back((now, self.done));
        while self.samples.len() > 2 && self.samples.front().is_some_and(|(then, _)| now - *then > WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Bytes a second; nothing before there is something to measure.
    fn rate(&self, now: Instant) -> Option<u64> {
        let (then, before) = self.samples.front()?;
        let millis = now.checked_duration_since(*then)?.as_millis();
        let moved = u128::from(self.done.saturating_sub(*before));
        let rate = (moved * 1000).checked_div(millis)?;
        u64::try_from(rate).ok().filter(|rate| *rate > 0)
    }

    fn eta(&self, now: Instant) -> Option<Duration> {
        (self.total - self.done).checked_div(self.rate(now)?).map(Duration::from_secs)
    }

    /// `37 %, 1.2 GiB of 3.4 GiB, 120.0 MiB/s, 0:21 left`
    pub(super) fn words(&self, now: Instant) -> String {
        let percent = (u128::from(self.done) * 100).checked_div(u128::from(self.total)).unwrap_or(100);
        let mut words = format!("{percent} %, {} of {}", ByteSize(self.done), ByteSize(self.total));
        if let (Some(rate), Some(eta)) = (self.rate(now), self.eta(now)) {
            words += &format!(", {}/s", ByteSize(rate));
            if self.done < self.total {
                words += &format!(", {} left", clock(eta));
            }
        }
        words
    }
}

/// `1:02:03` or `2:03`.
fn clock(span: Duration) -> String {
    let seconds = span.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// What is so at the moment.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) phase: Option<Phase>,
    pub(super) whole: Track,
    pub(super) disks: BTreeMap<DiskTarget, Track>,
    pub(super) warnings: Vec<String>,
}

impl State {
    /// Something happened.
    pub(super) fn apply(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Started { .. } | Event::Retry { .. } => {}
            Event::Phase { phase } => self.phase = Some(*phase),
            Event::Disk { disk, bytes_total } => {
                self.disks.insert(disk.clone(), Track::begin(*bytes_total, now));
                self.whole = Track::begin(self.disks.values().map(|track| track.total).sum(), now);
            }
            Event::Progress { disk, bytes_done, bytes_total } => {
                let track = self.disks.entry(disk.clone()).or_insert_with(|| Track::begin(*bytes_total, now));
                track.total = *bytes_total;
                track.reach(*bytes_done, now);
                self.whole.reach(self.disks.values().map(|track| track.done).sum(), now);
            }
            // Disks tell whole segments; what was written tells what is between them.
            Event::Moved { bytes_written, .. } => self.whole.reach(*bytes_written, now),
            Event::Warning { message } => self.warnings.push(message.clone()),
        }
    }

    /// Everything in one line.
    pub(super) fn words(&self, now: Instant) -> String {
        let phase = self.phase.map_or("begin", Phase::word);
        match self.phase {
            Some(Phase::Copy) if self.whole.total > 0 => format!("{phase}: {}", self.whole.words(now)),
            _ => phase.to_owned(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn events_become_percent_rate_and_time_left() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let vda: DiskTarget = "vda".parse().unwrap();
        let mut state = State::default();
        state.apply(&Event::Phase { phase: Phase::Copy }, start);
        state.apply(&Event::Disk { disk: vda.clone(), bytes_total: 100 * MIB }, start);
        assert_eq!(state.words(start), "copy: 0 %, 0 B of 100.0 MiB");
        state.apply(&Event::Progress { disk: vda, bytes_done: 20 * MIB, bytes_total: 100 * MIB }, at(2));
        assert_eq!(state.words(at(2)), "copy: 20 %, 20.0 MiB of 100.0 MiB, 10.0 MiB/s, 0:08 left");
        state.apply(&Event::Moved { bytes_read: 0, bytes_sent: 0, bytes_written: 900 * MIB }, at(4));
        assert_eq!(state.words(at(4)), "copy: 100 %, 100.0 MiB of 100.0 MiB, 25.0 MiB/s");
        state.apply(&Event::Phase { phase: Phase::Finish }, at(5));
        assert_eq!(state.words(at(5)), "finish");
    }

    #[test]
    fn a_stall_lets_the_rate_fall() {
        let start = Instant::now();
        let mut track = Track::begin(100 * MIB, start);
        track.reach(10 * MIB, start + Duration::from_secs(1));
        assert_eq!(track.rate(start + Duration::from_secs(10)), Some(MIB));
    }

    #[test]
    fn time_is_written_as_on_a_clock() {
        assert_eq!(clock(Duration::from_secs(59)), "0:59");
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
    }
}
