//! Progress: events go into a channel, and one thread shows them.
//!
//! The engine must not wait for a terminal, so its callback only sends.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_clone_core::event::Event;
use kvm_clone_core::progress::State;
use kvm_clone_engine::Events;

use super::bars::Bars;
use super::events::EventLines;
use super::{Format, Screen};
use crate::surroundings::Surroundings;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Not at all.
    Silent,
    /// Bars at a terminal.
    Bars,
    /// A line now and then.
    Lines,
    /// Each event as a line of JSON.
    Json,
}

impl Style {
    /// The one place where it is chosen.
    pub(crate) fn choose(format: Format, quiet: bool, surroundings: &Surroundings) -> Self {
        match format {
            _ if quiet => Self::Silent,
            Format::Json => Self::Json,
            Format::Text if surroundings.stderr_terminal && !surroundings.dumb() => Self::Bars,
            Format::Text | Format::Yaml => Self::Lines,
        }
    }
}

const BETWEEN_LINES: Duration = Duration::from_secs(10);
const BETWEEN_EVENTS: Duration = Duration::from_millis(500);
const BETWEEN_FRAMES: Duration = Duration::from_millis(100);

enum Message {
    Event(Event),
    End,
}

/// Progress that is being shown, until it is ended or dropped.
pub(crate) struct Progress {
    sender: Sender<Message>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Progress {
    /// Begins to show.
    pub(crate) fn start(style: Style, screen: Screen) -> Self {
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || show(&receiver, View::new(style, screen)));
        Self { sender, thread: Some(thread) }
    }

    /// What the engine calls.
    pub(crate) fn events(&self) -> Events {
        let sender = self.sender.clone();
        Arc::new(move |event| {
            // After the end nobody listens.
            let _ = sender.send(Message::Event(event));
        })
    }

    /// Erases what was shown; the warnings on the way are handed back, since the result repeats them only if there is one.
    pub(crate) fn end(mut self) -> Vec<String> {
        self.stop()
    }

    fn stop(&mut self) -> Vec<String> {
        let _ = self.sender.send(Message::End);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop();
    }
}

fn show(receiver: &Receiver<Message>, mut view: View) -> Vec<String> {
    let mut state = State::default();
    let begun = Instant::now();
    loop {
        let received = receiver.recv_timeout(BETWEEN_FRAMES);
        let now = Instant::now();
        match received {
            Ok(Message::Event(event)) => {
                view.event(&event);
                state.apply(&event, now - begun);
            }
            Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        view.draw(&state, begun, now);
    }
    view.erase();
    state.warnings
}

/// Where it is shown, and when next.
enum View {
    Silent,
    Json { lines: EventLines, next: Instant },
    Lines { screen: Screen, next: Instant },
    Bars { bars: Box<Bars>, next: Instant },
}

impl View {
    fn new(style: Style, screen: Screen) -> Self {
        let now = Instant::now();
        match style {
            Style::Silent => Self::Silent,
            Style::Json => Self::Json { lines: EventLines::new(screen), next: now },
            Style::Lines => Self::Lines { screen, next: now + BETWEEN_LINES },
            Style::Bars => Self::Bars { bars: Box::new(Bars::new(screen)), next: now },
        }
    }

    fn event(&mut self, event: &Event) {
        if let Self::Json { lines, .. } = self {
            lines.take(event);
        }
    }

    fn draw(&mut self, state: &State, begun: Instant, now: Instant) {
        match self {
            Self::Json { lines, next } if now >= *next => {
                *next = now + BETWEEN_EVENTS;
                lines.flush();
            }
            Self::Lines { screen, next } if now >= *next => {
                *next = now + BETWEEN_LINES;
                screen.line(&state.words(now - begun));
            }
            Self::Bars { bars, next } if now >= *next => {
                *next = now + BETWEEN_FRAMES;
                bars.draw(state, now - begun);
            }
            _ => {}
        }
    }

    /// Leaves nothing unsaid, and no bar.
    fn erase(&mut self) {
        match self {
            Self::Json { lines, .. } => lines.flush(),
            Self::Bars { bars, .. } => bars.erase(),
            Self::Silent | Self::Lines { .. } => {}
        }
    }
}
