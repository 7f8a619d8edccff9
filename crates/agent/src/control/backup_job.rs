//! The backup job behind a note: whether it is there, whose it is, and its end.
//!
//! Nobody may be connected to its socket when it is ended: qemu waits for its clients then, and Debian 12's (7.2) waits for
//! ever for one that has not agreed on an export yet; the guest stands still meanwhile. So nobody connects to see whether
//! somebody listens, and before the job is ended the socket loses its name: then nobody can come any more, and readers go
//! (`device/nbd/line.rs`), those of dead controllers and of cut networks too.

use std::path::Path;
use std::time::{Duration, Instant};

use kvm_clone_core::wire::point::{GOING, PointNote};
use kvm_clone_core::{Error, Result};

use super::strangers;
use super::unix_socket::{self, Ends};
use crate::place::remove_if_there;
use crate::program::{self, Watch};

/// How long `virsh` may take to end a job.
const ABORT_DEADLINE: Duration = Duration::from_secs(30);
/// How long libvirt may take to clear up after a job that was ended.
const END_DEADLINE: Duration = Duration::from_secs(30);
/// Between two orders to end a job: one that is just coming up cannot be ended yet.
const ABORT_AGAIN: Duration = Duration::from_secs(2);
/// How long libvirt may take to answer a question.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// When those readers are ended by force that did not go.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks at something that is about to change.
const PAUSE: Duration = Duration::from_millis(10);

/// Whether the job is held: somebody listens at its socket.
pub(super) fn is_held(note: &PointNote) -> bool {
    ends(note).listening
}

/// Where it cannot be told, the job is taken to run and to be read: nothing of it is removed then, and it is not ended.
fn ends(note: &PointNote) -> Ends {
    unix_socket::ends(Path::new(&note.socket)).unwrap_or(Ends { listening: true, connected: 1 })
}

fn is_named(note: &PointNote) -> bool {
    Path::new(&note.socket).exists()
}

/// Whether there may be a job. One look may miss a socket while others come and go (the kernel's list is read in pieces),
/// and those of another network namespace are never seen, but have names.
pub(super) fn may_run(note: &PointNote) -> bool {
    is_held(note) || is_named(note) || is_held(note)
}

/// Waits until the job is here or can come no more.
pub(super) fn wait_for(note: &PointNote, wait: Duration) -> Result<()> {
    let until = Instant::now() + wait;
    // The directory goes with the process, and with it what could begin a job.
    let may_come = || Path::new(&note.socket).parent().is_some_and(Path::exists);
    while may_come() && !is_held(note) {
        if Instant::now() >= until {
            // A libvirt that hangs may begin with the wait when it wakes; and qemu listens long after libvirt has begun.
            return if is_ours(note)? { Err(not_ended(note, "it is still coming up")) } else { Ok(()) };
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Whether libvirt has a backup job with our socket on the machine: one that comes up, runs or ends.
fn is_ours(note: &PointNote) -> Result<bool> {
    let socket = Path::new(&note.socket);
    let name = socket.file_name().unwrap_or_default().to_string_lossy();
    let told = virsh("backup-dumpxml", note, ANSWER_DEADLINE)?;
    if told.status.success() {
        return Ok(told.output.contains(&*name));
    }
    // There is no job, no such machine, or no answer; only the last one leaves the question open.
    let answers = virsh("domstate", note, ANSWER_DEADLINE).is_ok_and(|outcome| outcome.status.success());
    if answers || !socket.parent().is_some_and(Path::exists) {
        return Ok(false);
    }
    Err(not_ended(note, "libvirt does not answer"))
}

/// Ends the job if there is one and it is ours, and waits until libvirt has cleared up behind it. `force` ends readers of ours
/// that do not go.
pub(super) fn end(note: &PointNote, force: &dyn Fn()) -> Result<()> {
    if !may_run(note) {
        return Ok(());
    }
    send_readers_away(note, force)?;
    let over = || !is_held(note) && !note.scratch.iter().any(|file| Path::new(file).exists());
    let until = Instant::now() + END_DEADLINE;
    while is_ours(note)? {
        let outcome = virsh("domjobabort", note, ABORT_DEADLINE)?;
        // The job is over when its socket is; libvirt removes the scratch files as its last act.
        let again = Instant::now() + ABORT_AGAIN;
        while !over() && Instant::now() < again {
            std::thread::sleep(PAUSE);
        }
        if over() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(not_ended(note, outcome.output.trim()));
        }
    }
    // Somebody listens whose job libvirt has forgotten, or is about to.
    while is_held(note) && !strangers::listen_alone_at(Path::new(&note.socket)) {
        if Instant::now() > until {
            return Err(not_ended(note, "libvirt does not know it, and qemu still serves it"));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Lets nobody read from the job any more, and waits until qemu has closed every connection. Sockets that are only called as ours
/// ([`strangers`]) do not hinder.
fn send_readers_away(note: &PointNote, force: &dyn Fn()) -> Result<()> {
    // Where the name cannot be removed, readers go when they are ended.
    let _ = remove_if_there(Path::new(&note.socket));
    let began = Instant::now();
    let mut forced = false;
    while ends(note).connected > 0 {
        let late = began.elapsed() > GOING;
        let at_last = late || (began.elapsed() > PATIENCE && !forced);
        if at_last && strangers::are_connected_alone_to(Path::new(&note.socket)) {
            return Ok(());
        }
        if late {
            return Err(still_read(note));
        }
        if at_last {
            force();
            forced = true;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn still_read(note: &PointNote) -> Error {
    let machine = note.machine;
    Error::conflict(format!(
        "somebody is still connected to the backup job of machine {machine}; it goes on, since qemu could hang if it ended now"
    ))
    .with("socket", &note.socket)
    .help(format!(
        "Find who it is on the source host: ss -xp src {}; once it is gone, kvm-clone recover with this host ends the job",
        note.socket
    ))
}

fn not_ended(note: &PointNote, why: &str) -> Error {
    let machine = note.machine;
    Error::libvirt(format!("the backup job of machine {machine} cannot be ended: {why}"))
        .with("socket", &note.socket)
        .help(format!("End it on the source host: virsh domjobabort {machine}"))
        .help("Once libvirt answers again, kvm-clone recover with this host ends it too")
}

fn virsh(verb: &str, note: &PointNote, deadline: Duration) -> Result<program::Outcome> {
    let uri = if rustix::process::geteuid().is_root() { "qemu:///system" } else { "qemu:///session" };
    program::run("virsh", &["-q", "-c", uri, verb, &note.machine.to_string()], Vec::new(), &Watch::briefly(deadline))
}
