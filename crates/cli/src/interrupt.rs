//! Ctrl-C and its like: the first stops and undoes, the second explains, the third gives up.

use kvm_clone_core::event::Event;
use kvm_clone_core::{Code, Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::render::{Screen, Style};

/// What signals ask for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupts {
    /// Stop and undo.
    pub(crate) cancel: CancellationToken,
    /// Leave at once; somebody else undoes.
    pub(crate) abort: CancellationToken,
}

const SECOND: &str = "undoing what was done goes on; a third signal leaves it to kvm-clone recover";

/// Begins to watch for SIGINT, SIGTERM and, unless we run under `nohup`, SIGHUP: a terminal that is closed must not
/// leave a half-made machine.
pub(crate) fn watch(screen: Screen, style: Style, hangup_ignored: bool) -> Result<Interrupts> {
    let on = |kind| signal(kind).map_err(|error| Error::internal(format!("watching for signals: {error}")));
    let hangup = if hangup_ignored { None } else { Some(on(SignalKind::hangup())?) };
    let mut signals = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?, hangup);
    let interrupts = Interrupts::default();
    let told = interrupts.clone();
    tokio::spawn(async move {
        for count in 1_u32.. {
            any(&mut signals).await;
            match count {
                1 => {
                    say(&screen, style, "interrupted: stopping");
                    told.cancel.cancel();
                }
                2 => say(&screen, style, SECOND),
                _ => told.abort.cancel(),
            }
        }
    });
    Ok(interrupts)
}

async fn any(signals: &mut (Signal, Signal, Option<Signal>)) {
    let hangup = async {
        match &mut signals.2 {
            Some(hangup) => hangup.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = signals.0.recv() => {}
        _ = signals.1.recv() => {}
        _ = hangup => {}
    }
}

fn say(screen: &Screen, style: Style, message: &str) {
    match style {
        Style::Silent => {}
        Style::Json => screen.event(&Event::Warning { message: message.to_owned() }),
        Style::Bars | Style::Lines => screen.line(message),
    }
}

/// Does something that leaves nothing behind when it is stopped in the middle.
pub(crate) async fn unless_stopped<T>(interrupts: &Interrupts, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        () = interrupts.cancel.cancelled() => Err(Error::new(Code::Cancelled, "stopped by the user")),
        done = work => done,
    }
}

/// What the third signal ends with.
pub(crate) fn aborted() -> Error {
    Error::new(Code::UndoFailed, "aborted before undoing had ended")
        .help("kvm-clone recover HOST finishes or undoes what is left, on both hosts")
}
