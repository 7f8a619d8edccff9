//! How long each phase of an operation takes.

use std::time::Instant;

use kvm_clone_core::event::{Event, Phase};

use crate::clone::Events;
use crate::outcome::PhaseTime;

/// Measures phases as they follow each other.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    times: Vec<PhaseTime>,
    current: Option<(Phase, Instant)>,
}

impl Phases {
    /// A phase begins, unless it is the current one.
    pub(crate) fn enter(&mut self, phase: Phase, events: &Events) {
        if self.current.is_some_and(|(current, _)| current == phase) {
            return;
        }
        self.finish();
        self.current = Some((phase, Instant::now()));
        tracing::debug!(?phase, "entered");
        events(Event::Phase { phase });
    }

    fn finish(&mut self) {
        if let Some((name, since)) = self.current.take() {
            self.times.push(PhaseTime { name, duration: since.elapsed().as_secs_f64(), bytes: 0 });
        }
    }

    pub(crate) fn close(&mut self, copied: u64) -> Vec<PhaseTime> {
        self.finish();
        for time in self.times.iter_mut().filter(|time| time.name == Phase::Copy) {
            time.bytes = copied;
        }
        std::mem::take(&mut self.times)
    }
}
