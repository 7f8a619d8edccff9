//! Events folded into how far an operation is: what bars and lines are drawn from, and what `status` tells.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::{Event, Phase};
use crate::name::DiskTarget;
use crate::size::ByteSize;

/// A rate is measured over this time, so that it neither jumps nor lags.
const WINDOW: Duration = Duration::from_secs(15);

/// How far something is. Moments are times since one beginning, whichever.
#[derive(Debug, Clone, Default)]
pub struct Track {
    /// Bytes that are done.
    pub done: u64,
    /// Bytes in total.
    pub total: u64,
    samples: VecDeque<(Duration, u64)>,
}

impl Track {
    fn begin(total: u64, now: Duration) -> Self {
        Self { done: 0, total, samples: [(now, 0)].into() }
    }

    fn reach(&mut self, done: u64, now: Duration) {
        self.done = done.max(self.done).min(self.total);
        self.samples.push_back((now, self.done));
        while self.samples.len() > 2 && self.samples.front().is_some_and(|(then, _)| now.saturating_sub(*then) > WINDOW)
        {
            self.samples.pop_front();
        }
    }

    /// Bytes a second; nothing before there is something to measure.
    fn rate(&self, now: Duration) -> Option<u64> {
        let (then, before) = self.samples.front()?;
        let millis = now.checked_sub(*then)?.as_millis();
        let moved = u128::from(self.done.saturating_sub(*before));
        let rate = (moved * 1000).checked_div(millis)?;
        u64::try_from(rate).ok().filter(|rate| *rate > 0)
    }

    fn eta(&self, now: Duration) -> Option<Duration> {
        (self.total - self.done).checked_div(self.rate(now)?).map(Duration::from_secs)
    }

    /// Tenths of a percent that are done; of nothing, all.
    fn tenths(&self) -> u16 {
        let tenths = (u128::from(self.done) * 1000).checked_div(u128::from(self.total)).unwrap_or(1000);
        u16::try_from(tenths).unwrap_or(1000)
    }

    /// `37 %, 1.2 GiB of 3.4 GiB, 120.0 MiB/s, 0:21 left`
    #[must_use]
    pub fn words(&self, now: Duration) -> String {
        let mut words = format!("{} %, {} of {}", self.tenths() / 10, ByteSize(self.done), ByteSize(self.total));
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
pub struct State {
    /// The phase, once one has begun.
    pub phase: Option<Phase>,
    /// All disks together.
    pub whole: Track,
    /// Each disk.
    pub disks: BTreeMap<DiskTarget, Track>,
    /// What the user should know, so far.
    pub warnings: Vec<String>,
}

impl State {
    /// Something happened.
    pub fn apply(&mut self, event: &Event, now: Duration) {
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

    fn is_copying(&self) -> bool {
        matches!(self.phase, Some(Phase::Copy | Phase::Compare)) && self.whole.total > 0
    }

    /// Everything in one line.
    #[must_use]
    pub fn words(&self, now: Duration) -> String {
        let phase = self.phase.map_or("begin", Phase::word);
        if self.is_copying() { format!("{phase}: {}", self.whole.words(now)) } else { phase.to_owned() }
    }

    /// The same as numbers.
    #[must_use]
    pub fn progress(&self, now: Duration) -> Progress {
        let whole = &self.whole;
        let is_under_way = self.is_copying() && whole.done < whole.total;
        Progress {
            progress_percent: if whole.total > 0 { f64::from(whole.tenths()) / 10.0 } else { 0.0 },
            bytes_transferred: whole.done,
            total_bytes: whole.total,
            speed: whole.rate(now).filter(|_| is_under_way),
            eta: whole.eta(now).map(|eta| eta.as_secs()).filter(|_| is_under_way),
            phase: self.phase,
            message: self.words(now),
        }
    }
}

/// How far an operation is, for whoever asks from outside. Field names are a contract.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// How much of the data is at the target, 0 to 100, in tenths.
    pub progress_percent: f64,
    /// Bytes of the disks' data that are at the target.
    pub bytes_transferred: u64,
    /// Bytes of the disks' data in total; 0 before that is known.
    pub total_bytes: u64,
    /// Bytes a second, while disks are copied.
    pub speed: Option<u64>,
    /// Seconds that copying will still take, at this speed.
    pub eta: Option<u64>,
    /// The phase, where one is known.
    pub phase: Option<Phase>,
    /// All of it in one line.
    pub message: String,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn copying(total: u64) -> State {
        let mut state = State::default();
        state.apply(&Event::Phase { phase: Phase::Copy }, at(0));
        state.apply(&Event::Disk { disk: "vda".parse().unwrap(), bytes_total: total }, at(0));
        state
    }

    #[test]
    fn events_become_percent_rate_and_time_left() {
        let mut state = copying(100 * MIB);
        assert_eq!(state.words(at(0)), "copy: 0 %, 0 B of 100.0 MiB");
        let vda = "vda".parse().unwrap();
        state.apply(&Event::Progress { disk: vda, bytes_done: 20 * MIB, bytes_total: 100 * MIB }, at(2));
        assert_eq!(state.words(at(2)), "copy: 20 %, 20.0 MiB of 100.0 MiB, 10.0 MiB/s, 0:08 left");
        state.apply(&Event::Moved { bytes_read: 0, bytes_sent: 0, bytes_written: 900 * MIB }, at(4));
        assert_eq!(state.words(at(4)), "copy: 100 %, 100.0 MiB of 100.0 MiB, 25.0 MiB/s");
        state.apply(&Event::Phase { phase: Phase::Finish }, at(5));
        assert_eq!(state.words(at(5)), "finish");
    }

    #[test]
    fn the_numbers_are_those_of_the_words() {
        assert_eq!(State::default().progress(at(9)), Progress { message: "begin".to_owned(), ..Progress::default() });
        let mut state = copying(1000 * MIB);
        state.apply(&Event::Moved { bytes_read: 0, bytes_sent: 0, bytes_written: 255 * MIB }, at(5));
        let progress = state.progress(at(5));
        assert_eq!((progress.bytes_transferred, progress.total_bytes), (255 * MIB, 1000 * MIB));
        assert_eq!((progress.speed, progress.eta), (Some(51 * MIB), Some(14)));
        assert!((progress.progress_percent - 25.5).abs() < f64::EPSILON, "{progress:?}");
        assert_eq!(progress.message, state.words(at(5)));
        // What is copied is under way no more.
        state.apply(&Event::Phase { phase: Phase::Undo }, at(6));
        let progress = state.progress(at(6));
        assert_eq!((progress.speed, progress.eta, progress.phase), (None, None, Some(Phase::Undo)));
    }

    #[test]
    fn a_stall_lets_the_rate_fall() {
        let mut track = Track::begin(100 * MIB, at(0));
        track.reach(10 * MIB, at(1));
        assert_eq!(track.rate(at(10)), Some(MIB));
    }

    #[test]
    fn time_is_written_as_on_a_clock() {
        assert_eq!(clock(at(59)), "0:59");
        assert_eq!(clock(at(3723)), "1:02:03");
    }
}
