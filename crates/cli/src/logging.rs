//! The log: what happened inside, for whoever looks for a fault. To stderr, past the bars.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::render::{Format, Screen};
use crate::settings::{LogFormat, Origin, Settings};

/// Begins to log.
pub(crate) fn begin(settings: &Settings, screen: &Screen, format: Format) {
    let level = settings.logging.level.value;
    // Other people's crates speak only when something is wrong.
    let filter = EnvFilter::new(format!("error,kvm_clone={level}"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Lines(screen.clone()));
    let chosen = &settings.logging.format;
    // With JSON events on stderr, the log is JSON too unless somebody chose.
    let json = chosen.value == LogFormat::Json || chosen.origin == Origin::Default && format == Format::Json;
    let begun = if json { log.json().try_init() } else { log.without_time().try_init() };
    // A second subscriber in one process happens in tests only.
    let _ = begun;
}

/// Makes writers that do not tear the bars.
struct Lines(Screen);

impl MakeWriter<'_> for Lines {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line { screen: self.0.clone(), text: Vec::new() }
    }
}

/// One line in the making, shown when it is complete.
struct Line {
    screen: Screen,
    text: Vec<u8>,
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.screen.line(String::from_utf8_lossy(&self.text).trim_end());
    }
}
