//! The lane agent's end of its control agent's socket.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Mutex, PoisonError};

use kvm_clone_core::wire::control::LaneId;
use kvm_clone_core::wire::frame::{Kind, decode};
use kvm_clone_core::wire::lane::{LaneCommand, LaneEvent};
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use crate::control::lane_socket;
use crate::place::Place;
use crate::stream::{FrameReader, FrameWriter};

/// Commands that may wait here; the controller keeps two segments in flight, so this is never reached.
const WAITING: usize = 64;

/// Where a lane agent tells what happened.
pub(super) struct Events {
    output: Mutex<FrameWriter<UnixStream>>,
}

impl Events {
    /// Events that go to this socket.
    pub(super) fn to(socket: UnixStream) -> Result<Self> {
        let mut output = FrameWriter::new(socket);
        output.magic()?;
        Ok(Self { output: Mutex::new(output) })
    }

    /// Tells the control agent. A failure means that it is gone, which ends this process from another thread.
    pub(super) fn tell(&self, event: &LaneEvent) {
        let _ = self.send(event);
    }

    fn send<M: serde::Serialize>(&self, message: &M) -> Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.send(Kind::Message, message, &[]).map(drop)
    }
}

/// Joins; from now on the end of the socket is told to `ends`.
pub(super) fn join(
    place: &Place,
    session: Uuid,
    lane: LaneId,
    ends: SyncSender<Result<()>>,
) -> Result<(Events, Receiver<LaneCommand>)> {
    let lost = |error: std::io::Error| Error::transfer(format!("the control agent cannot be joined: {error}"));
    let socket = UnixStream::connect(lane_socket(place, session)).map_err(lost)?;
    let events = Events::to(socket.try_clone().map_err(lost)?)?;
    events.send(&lane)?;
    let (commands, waiting) = mpsc::sync_channel(WAITING);
    std::thread::spawn(move || {
        let outcome = pass_commands(socket, &commands);
        let _ = ends.send(outcome);
    });
    Ok((events, waiting))
}

fn pass_commands(socket: UnixStream, commands: &SyncSender<LaneCommand>) -> Result<()> {
    let mut input = FrameReader::new(socket);
    while let Some((_, body)) = input.next()? {
        if commands.send(decode(body)?).is_err() {
            break;
        }
    }
    Ok(())
}
