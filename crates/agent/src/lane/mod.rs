//! A lane agent: one end of one lane.
//!
//! Its stdin and stdout are the lane itself, joined to the other end by SSH; what it is to do, and what became of it,
//! go through its control agent's socket. When that socket closes, the lane agent ends at once: it never outlives the
//! holder of the operation's locks.

mod crew;
mod direct;
mod images;
mod join;
mod readers;
mod source;
mod target;
mod verify;

pub(crate) use images::{known, open_reader, refuse_link};
pub(crate) use readers::Readers;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use kvm_clone_core::wire::control::LaneId;
use kvm_clone_core::wire::lane::{LaneCommand, LaneEvent};
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use crate::lock;
use crate::place::Place;
use direct::{Direct, SshEnds};
use join::Events;

/// Processor priority of lane agents: they give way to guests. The control agent keeps its own, since it must answer.
const NICE: i32 = 10;
/// `ioprio_set(2)`: the number means a process, nought this one.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
/// `ioprio_set(2)`: class 2 (best effort), level 7 (the last to be served).
const IOPRIO_LOWEST_BEST_EFFORT: libc::c_int = (2 << 13) | 7;

/// Joins the control agent of `session` as lane `number` and works until that says so or is gone. `connection` is
/// `SSH_CONNECTION` as sshd gave it (ssh(1)), empty where there is no SSH.
///
/// # Errors
/// The arguments are no session and number, or the control agent is not there.
pub fn run(session: &str, number: &str, connection: &str) -> Result<()> {
    let usage = || Error::validation("lane needs the id of a session and a number");
    let session: Uuid = session.parse().map_err(|_| usage())?;
    let number: LaneId = number.parse().map_err(|_| usage())?;
    give_way();
    let place = Place::find()?;
    let (ends, ended) = mpsc::sync_channel(2);
    let (events, commands) = join::join(&place, session, number, ends.clone())?;
    let events = Arc::new(events);
    let ssh = SshEnds::parse(connection);
    std::thread::spawn(move || {
        let outcome = work(&place, &ssh, &events, commands);
        if let Err(error) = &outcome {
            events.tell(&LaneEvent::Failed(error.clone()));
        }
        let _ = ends.send(outcome);
    });
    // The first of: the work is done, the control agent is gone. Returning ends the process and every thread in it.
    ended.recv().unwrap_or(Ok(()))
}

/// Lowers the priority for processors and disks of this thread, and of those that it starts (Linux knows no priority of processes:
/// setpriority(2), ioprio_set(2)). Where that is not allowed, the work is only less polite.
pub(crate) fn give_way() {
    let _ = rustix::process::setpriority_process(None, NICE);
    // SAFETY: the call takes numbers only (ioprio_set(2)); libc has no wrapper for it.
    unsafe {
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_LOWEST_BEST_EFFORT);
    }
}

fn work(place: &Place, ssh: &SshEnds, events: &Arc<Events>, commands: Receiver<LaneCommand>) -> Result<()> {
    let Some(LaneCommand::Hold(keys)) = next(&commands) else {
        return Err(Error::internal("the first command of a lane agent must be to hold its locks"));
    };
    let _users = lock::hold_users(place, &keys)?;
    events.tell(&LaneEvent::Ready);
    let mut direct = Direct::default();
    loop {
        match next(&commands) {
            Some(LaneCommand::Listen(seal)) => events.tell(&LaneEvent::Listening(direct.listen(ssh, seal))),
            Some(LaneCommand::Connect { at, seal }) => {
                events.tell(&LaneEvent::Connected(direct.connect(ssh, &at, &seal)));
            }
            Some(LaneCommand::Source { disks, compared, key, block, route }) => {
                let work = source::Source { disks, compared, key, block, route };
                source::run(&work, direct.streams(route)?, commands, events)?;
                break;
            }
            Some(LaneCommand::Target { disks, bases, manifests, key, block, verify, route }) => {
                let work = target::Target { disks, bases, manifests, key, block, verify };
                target::run(work, direct.streams(route)?, commands, events)?;
                break;
            }
            _ => return Err(Error::internal("a lane agent must be told its disks before anything else")),
        }
    }
    events.tell(&LaneEvent::Finished);
    Ok(())
}

/// Segments of which digests may wait at either end; the controller deals fewer at a time, so this is never reached.
const ANSWERS_WAITING: usize = 64;

fn broken(what: &str) -> Error {
    Error::transfer(format!("the lane carried {what}"))
        .help("Nothing was made at the target; run the command again, and report it if it happens twice")
}

/// The next command; none once the control agent is gone.
fn next(commands: &Receiver<LaneCommand>) -> Option<LaneCommand> {
    commands.recv().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
