//! Events as lines of JSON.

use std::collections::BTreeMap;

use kvm_clone_core::event::Event;
use kvm_clone_core::name::DiskTarget;

use super::output::Screen;

/// Writes events down. Those that only count on are held back and written now and then, the latest of each: a large
/// disk tells of itself a million times.
pub(super) struct EventLines {
    screen: Screen,
    held: Held,
}

/// The latest of what only counts on.
#[derive(Default)]
struct Held {
    moved: Option<Event>,
    progress: BTreeMap<DiskTarget, Event>,
}

impl Held {
    /// Holds the event back, if it is one that can wait.
    fn take(&mut self, event: &Event) -> bool {
        match event {
            Event::Moved { .. } => self.moved = Some(event.clone()),
            Event::Progress { disk, .. } => {
                self.progress.insert(disk.clone(), event.clone());
            }
            _ => return false,
        }
        true
    }

    fn release(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.progress).into_values().chain(self.moved.take()).collect()
    }
}

impl EventLines {
    pub(super) fn new(screen: Screen) -> Self {
        Self { screen, held: Held::default() }
    }

    /// Writes the event, or holds it back; what was held back stays before what follows.
    pub(super) fn take(&mut self, event: &Event) {
        if !self.held.take(event) {
            self.flush();
            self.screen.event(event);
        }
    }

    /// Writes what was held back.
    pub(super) fn flush(&mut self) {
        self.held.release().iter().for_each(|event| self.screen.event(event));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn of_what_counts_on_only_the_latest_is_told() {
        let mut held = Held::default();
        let progress = |done| Event::Progress { disk: "vda".parse().unwrap(), bytes_done: done, bytes_total: 9 };
        let moved = |written| Event::Moved { bytes_read: 0, bytes_sent: 0, bytes_written: written };
        assert!([moved(1), progress(1), moved(2), progress(2)].iter().all(|event| held.take(event)));
        assert!(!held.take(&Event::Warning { message: "x".into() }));
        assert_eq!(held.release(), [progress(2), moved(2)]);
        assert!(held.release().is_empty());
    }
}
