//! Lane agents join their control agent through a socket in the session's directory, which only this user can enter.
//!
//! The socket is their life line: when the control agent is gone it closes, and they end.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvm_clone_core::wire::control::{FromAgent, LaneId};
use kvm_clone_core::wire::frame::{Kind, decode};
use kvm_clone_core::wire::lane::{LaneCommand, LaneEvent};
use kvm_clone_core::{Error, Result};

use super::progress::Progress;
use super::session::{Lane, Session};
use crate::place::io_error;
use crate::program;
use crate::stream::{FrameReader, FrameWriter};

/// Commands that may wait for a lane agent.
const COMMANDS_WAITING: usize = 64;
/// How long lane agents may take to end by themselves.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long everything may take to end. Long, because completing a large image cannot be broken off. The controller waits less
/// where nothing gets on.
const END_DEADLINE: Duration = Duration::from_secs(300);

/// Takes lane agents in from now on.
pub(super) fn listen(session: &Arc<Session>) -> Result<()> {
    let path = session.lane_socket();
    let listener = UnixListener::bind(&path).map_err(|error| io_error("listening at", &path, &error))?;
    let session = Arc::clone(session);
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let session = Arc::clone(&session);
            std::thread::spawn(move || {
                let _ = serve(&session, socket);
            });
        }
    });
    Ok(())
}

/// Starts a lane agent from this process: one that will leave SSH needs no session of it.
pub(super) fn start(session: &Session, id: LaneId) -> Result<()> {
    let failed = |error: io::Error| Error::internal(format!("a lane agent cannot be started: {error}"));
    let mut command = Command::new("/proc/self/exe");
    command.arg0("kvm-clone-agent").args(["lane", &session.id.to_string(), &id.to_string(), &session.connection]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    program::ends_with_us(&mut command);
    let (tell, started) = mpsc::sync_channel(1);
    // The thread that starts it waits for it, since the kernel takes the thread's end for ours.
    std::thread::spawn(move || match command.spawn() {
        Ok(mut child) => {
            let _ = tell.send(Ok(()));
            let _ = child.wait();
        }
        Err(error) => drop(tell.send(Err(error))),
    });
    started.recv().map_err(|_| failed(io::ErrorKind::BrokenPipe.into()))?.map_err(failed)
}

/// Passes a lane agent's events up and its commands down until it ends.
fn serve(session: &Session, socket: UnixStream) -> Result<()> {
    let mut input = FrameReader::new(socket.try_clone().map_err(|error| lost(&error))?);
    input.expect_magic()?;
    let Some((_, body)) = input.next()? else { return Ok(()) };
    let lane: LaneId = decode(body)?;
    let (commands, waiting) = mpsc::sync_channel::<LaneCommand>(COMMANDS_WAITING);
    let _ = commands.try_send(LaneCommand::Hold(session.lock_keys()));
    let life_line = socket.try_clone().map_err(|error| lost(&error))?;
    if !session.add_lane(lane, Lane { commands: commands.clone(), socket: life_line }) {
        return Ok(());
    }
    session.lanes_joined.fetch_add(1, Ordering::Relaxed);
    std::thread::spawn(move || send_commands(socket, &waiting));
    if let Err(error) = pass_events(session, lane, &commands, &mut input) {
        // Told before it counts as ended: who has waited for its end hears no more of it.
        session.tell(FromAgent::Lane(lane, LaneEvent::Failed(error)));
    }
    session.remove_lane(lane);
    Ok(())
}

fn send_commands(socket: UnixStream, waiting: &mpsc::Receiver<LaneCommand>) {
    let mut output = FrameWriter::new(&socket);
    for command in waiting {
        if output.send(Kind::Message, &command, &[]).is_err() {
            break;
        }
    }
    let _ = socket.shutdown(std::net::Shutdown::Both);
}

fn pass_events(
    session: &Session,
    lane: LaneId,
    commands: &mpsc::SyncSender<LaneCommand>,
    input: &mut FrameReader<UnixStream>,
) -> Result<()> {
    let mut finished = false;
    while let Some((_, body)) = input.next()? {
        match decode(body)? {
            LaneEvent::WantChunk(disk) => {
                let host_offset = session.growing.next_chunk(disk)?;
                let _ = commands.send(LaneCommand::Chunk { disk, host_offset });
            }
            event => {
                finished |= matches!(event, LaneEvent::Finished | LaneEvent::Failed(_));
                session.tell(FromAgent::Lane(lane, event));
            }
        }
    }
    if finished { Ok(()) } else { Err(Error::transfer(format!("lane agent {lane} died")).transient()) }
}

/// Ends the lane agents, and waits until they are gone and until whatever was ordered before is over: then nothing
/// changes on this host any more but by later orders. A controller that gave an order up does not know how far it came.
pub(super) fn end(session: &Session, progress: &Progress) -> Result<()> {
    session.close_lanes();
    session.set_stopping(true);
    let ended = wait_for_end(session, progress);
    session.set_stopping(false);
    ended
}

fn wait_for_end(session: &Session, progress: &Progress) -> Result<()> {
    let started = Instant::now();
    let (mut killed, before) = (false, session.work_done());
    let mut pause = Duration::from_micros(200);
    while !session.nothing_works() {
        if started.elapsed() > PATIENCE && !killed {
            session.kill_lanes();
            killed = true;
        }
        if started.elapsed() > END_DEADLINE {
            return Err(Error::timeout("lane agents or helper programs did not end")
                .help("A disk of the host may hang: look at its kernel log"));
        }
        progress.reach(session.work_done() - before);
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
    Ok(())
}

fn lost(error: &io::Error) -> Error {
    Error::transfer(format!("a lane agent's socket was lost: {error}"))
}
