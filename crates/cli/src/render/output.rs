//! Where text goes.

use std::io::{self, Write};

use indicatif::MultiProgress;
use kvm_clone_core::event::Event;
use kvm_clone_core::{Code, Error, Result};
use serde::Serialize;

use super::document::{self, ErrorView};
use super::paint::Paint;
use super::{Format, error};
use crate::surroundings::Surroundings;

/// How results and errors are written.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) format: Format,
    /// Colours of stdout.
    pub(crate) paint: Paint,
    paint_errors: Paint,
}

impl Output {
    /// Colours only at a terminal that wants them.
    pub(crate) fn new(format: Format, surroundings: &Surroundings) -> Self {
        let welcome = !surroundings.plain() && !surroundings.dumb();
        Self {
            format,
            paint: Paint { on: welcome && surroundings.stdout_terminal },
            paint_errors: Paint { on: welcome && surroundings.stderr_terminal },
        }
    }

    /// Writes data as it is.
    #[allow(clippy::unused_self)]
    pub(crate) fn text(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // A reader that went away has seen enough: `kvm-clone list | head`.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::new(Code::Internal, format!("the output cannot be written: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// Writes data as a document; as text, what `text` makes of it.
    pub(crate) fn data<T: Serialize>(&self, data: &T, text: impl FnOnce() -> String) -> Result<()> {
        match self.format {
            Format::Text => self.text(&text()),
            Format::Json => self.text(&document::json(data)?),
            Format::Yaml => self.text(&document::yaml(data)?),
        }
    }

    /// Writes one of several data that follow each other: JSON as a line, YAML as a document.
    pub(crate) fn item<T: Serialize>(&self, data: &T, text: impl FnOnce() -> String) -> Result<()> {
        match self.format {
            Format::Text => self.text(&text()),
            Format::Json => self.text(&(document::line(data) + "\n")),
            Format::Yaml => self.text(&format!("---\n{}", document::yaml(data)?)),
        }
    }

    /// The error that ended the command: a document on stdout, or text on stderr.
    pub(crate) fn error(&self, error: &Error) {
        if self.format == Format::Text {
            return self.note(&error::text(error, self.paint_errors));
        }
        // There is no further way to say that saying it failed; the exit status still tells.
        let _ = self.data(&ErrorView::now(error), String::new);
    }

    /// An error beside data that is written all the same: on stderr, where JSON is one line.
    pub(crate) fn side_error(&self, error: &Error) {
        match self.format {
            Format::Json => self.note(&document::line(&ErrorView::now(error))),
            Format::Text | Format::Yaml => self.note(&error::text(error, self.paint_errors)),
        }
    }

    /// Something that is not data.
    #[allow(clippy::unused_self)]
    pub(crate) fn note(&self, text: &str) {
        // Nobody is left to be told when stderr is gone.
        let _ = writeln!(io::stderr().lock(), "{}", text.trim_end());
    }
}

/// The terminal's screen with its bars; lines go past them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Screen(pub(super) MultiProgress);

impl Screen {
    /// A line on stderr.
    pub(crate) fn line(&self, text: &str) {
        self.0.suspend(|| {
            let _ = writeln!(io::stderr().lock(), "{text}");
        });
    }

    /// An event as a JSON line on stderr.
    pub(crate) fn event(&self, event: &Event) {
        self.line(&document::line(event));
    }
}
