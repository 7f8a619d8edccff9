//! Bars at a terminal: one for the whole, one for each disk.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kvm_clone_core::event::Phase;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::progress::{State, Track};

use super::output::Screen;

/// What ends sooner shows nothing: a flicker tells nobody anything.
const PATIENCE: Duration = Duration::from_millis(250);

const BAR: &str = "{prefix:8} [{bar:30}] {msg}";
const WORDS: &str = "{prefix:8} {msg}";

/// The bars on the screen.
pub(super) struct Bars {
    screen: Screen,
    whole: Option<ProgressBar>,
    disks: BTreeMap<DiskTarget, ProgressBar>,
}

impl Bars {
    pub(super) fn new(screen: Screen) -> Self {
        Self { screen, whole: None, disks: BTreeMap::new() }
    }

    /// Brings the bars up to date; `now` is the time since the beginning.
    pub(super) fn draw(&mut self, state: &State, now: Duration) {
        if now < PATIENCE {
            return;
        }
        let copying = matches!(state.phase, Some(Phase::Copy | Phase::Compare)) && state.whole.total > 0;
        let whole = self.whole.get_or_insert_with(|| self.screen.0.add(ProgressBar::new(1)));
        whole.set_style(style(if copying { BAR } else { WORDS }));
        whole.set_prefix(state.phase.map_or("begin", Phase::word));
        if !copying {
            for (_, bar) in std::mem::take(&mut self.disks) {
                bar.finish_and_clear();
            }
            whole.set_message(format!("{} s", now.as_secs()));
            whole.tick();
            return;
        }
        set(whole, &state.whole, now);
        for (disk, track) in &state.disks {
            let bar = self.disks.entry(disk.clone()).or_insert_with(|| {
                let bar = self.screen.0.add(ProgressBar::new(track.total).with_style(style(BAR)));
                bar.set_prefix(format!("  {disk}"));
                bar
            });
            set(bar, track, now);
        }
    }

    /// Leaves nothing behind.
    pub(super) fn erase(&mut self) {
        for bar in std::mem::take(&mut self.disks).into_values().chain(self.whole.take()) {
            bar.finish_and_clear();
        }
        // What cannot be erased is only ugly.
        let _ = self.screen.0.clear();
    }
}

fn set(bar: &ProgressBar, track: &Track, now: Duration) {
    bar.set_length(track.total);
    bar.set_position(track.done);
    bar.set_message(track.words(now));
}

fn style(template: &str) -> ProgressStyle {
    // The templates are ours, and a test reads them.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_sound() {
        for template in [BAR, WORDS] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
