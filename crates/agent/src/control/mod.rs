//! The control agent: one for each host and operation.
//!
//! Its threads: one reads the controller's messages, one writes ours, one for each request that is being answered,
//! two for each relayed libvirt connection, one for each lane agent; the first one only watches. When the controller
//! is gone (end of file, or silence), [`run`] returns, and with the process go its locks, its relayed connections and
//! the sockets that its lane agents live by.

mod answer;
mod backup_job;
mod blockdev;
mod check;
mod checksum;
mod digests;
mod durable;
mod emulator;
mod export;
mod facts;
mod files;
mod flatten;
mod hold;
mod image;
mod in_place;
mod inspect;
mod lanes;
mod manifest;
mod marker;
mod point;
mod progress;
mod qemu_lock;
mod relay;
mod renew;
mod scratch;
mod seal;
mod session;
mod settle;
mod sight;
mod storage;
mod strangers;
mod take_up;
#[cfg(test)]
mod test_host;
mod tpm;
mod unix_socket;
mod writers;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use kvm_clone_core::wire::control::{FromAgent, Hello, ToAgent};
use kvm_clone_core::wire::frame::{Kind, decode};
use kvm_clone_core::wire::{PROTOCOL_VERSION, control::StreamId};
use kvm_clone_core::{Error, Result};
use sha2::{Digest, Sha256};

use crate::place::Place;
use crate::stream::{FrameReader, FrameWriter};
pub(crate) use session::lane_socket;
use session::{Outgoing, Session};

/// How often each side tells the other that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Between two tries to end a backup job that could not be ended.
const AGAIN: Duration = Duration::from_secs(5);
/// How often it is tried, at least.
const TRIES: u32 = 12;

/// Serves one controller on stdin and stdout until it is gone. `connection` is `SSH_CONNECTION` as sshd gave it (ssh(1)),
/// empty where there is no SSH.
///
/// # Errors
/// The controller broke the protocol, or this host has no place for our files.
pub fn run(connection: &str) -> Result<()> {
    let place = Place::find()?;
    let (session, outgoing, ended) = Session::open(place, connection)?;
    let hello = Hello { protocol: PROTOCOL_VERSION, build: own_digest()?, session: session.id };
    spawn_writer(Arc::clone(&session), outgoing, hello);
    let reader = Arc::clone(&session);
    std::thread::spawn(move || {
        let outcome = read(&reader);
        reader.end(outcome);
    });
    let outcome = lanes::listen(&session).and_then(|()| watch(&session, &ended));
    // From here on nobody guards the point but us: first nothing new can be asked of libvirt, then the job ends. That may be
    // waited for; lanes end at once.
    session.close_relays();
    session.close_lanes();
    let outcome = outcome.and(end_point(&session));
    session.close();
    outcome
}

/// Ends the job, however long that takes: its scratch files grow, and nobody else watches them. Where none is seen, it may still
/// come up for a while.
fn end_point(session: &Session) -> Result<()> {
    let mut tries = 0;
    loop {
        let ended = point::end(session, false);
        tries += 1;
        if ended.is_ok() || (tries >= TRIES && !point::may_run(session)) {
            return ended;
        }
        std::thread::sleep(AGAIN);
    }
}

/// The dead-man's switch: waits for the end, and makes it when the controller has been silent for too long.
fn watch(session: &Session, ended: &Receiver<Result<()>>) -> Result<()> {
    loop {
        match ended.recv_timeout(HEARTBEAT.min(session.silence()) / 5) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        // Where little silence is allowed, each side must be heard more often than that.
        session.heartbeat_if_due(HEARTBEAT.min(session.silence() / 3));
        if session.silent_for() > session.silence() {
            return Err(Error::timeout(format!(
                "the controller was silent for {} s; everything of its operation on this host ends",
                session.silence().as_secs()
            )));
        }
    }
}

fn spawn_writer(session: Arc<Session>, outgoing: Receiver<Outgoing>, hello: Hello) {
    std::thread::spawn(move || {
        let mut output = FrameWriter::new(io::stdout().lock());
        let mut write = || -> Result<()> {
            output.magic()?;
            output.send(Kind::Message, &FromAgent::Hello(hello.clone()), &[])?;
            for message in &outgoing {
                match message {
                    Outgoing::Message(message) => output.send(Kind::Message, &*message, &[])?,
                    Outgoing::Relay(stream, bytes) => output.send(Kind::Relay, &stream, &bytes)?,
                };
            }
            Ok(())
        };
        let outcome = write();
        session.end(outcome);
    });
}

/// Takes the controller's messages until it closes its end.
fn read(session: &Arc<Session>) -> Result<()> {
    let mut input = FrameReader::new(io::stdin().lock());
    input.expect_magic()?;
    while let Some((header, body)) = input.next()? {
        session.heard();
        match header.kind {
            Kind::Message => take(session, decode(body)?)?,
            Kind::Relay => {
                let stream: StreamId = decode(body)?;
                let mut bytes = vec![0; header.payload_len as usize];
                input.payload(&mut bytes)?;
                session.relay_in(stream, bytes);
            }
            Kind::Lane => return Err(Error::transfer("the controller sent a lane's frame to the control agent")),
        }
    }
    Ok(())
}

fn take(session: &Arc<Session>, message: ToAgent) -> Result<()> {
    match message {
        ToAgent::Welcome(welcome) if welcome.protocol == PROTOCOL_VERSION => session.welcome(welcome),
        ToAgent::Welcome(welcome) => {
            return Err(Error::connection(format!(
                "the controller speaks protocol {}, this agent {PROTOCOL_VERSION}",
                welcome.protocol
            )));
        }
        ToAgent::Heartbeat => {}
        ToAgent::Request(number, request) => answer::spawn(session, number, request)?,
        ToAgent::Lane(lane, command) => session.lane_in(lane, command),
        ToAgent::RelayClosed(stream) => session.relay_closed(stream),
    }
    Ok(())
}

/// SHA-256 of the program that runs, so that the controller knows which build it talks to.
fn own_digest() -> Result<String> {
    let path = "/proc/self/exe";
    let program = std::fs::read(path).map_err(|error| Error::internal(format!("reading {path}: {error}")))?;
    Ok(Sha256::digest(&program).iter().map(|byte| format!("{byte:02x}")).collect())
}
