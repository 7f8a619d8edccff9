//! Opening lanes: a lane agent on each host, their streams joined.
//!
//! The joint is a pair of pipes whose ends are handed to OpenSSH (or to a local agent) themselves: the controller never
//! touches a byte of a disk.

use std::os::fd::OwnedFd;

use futures_util::future::join_all;
use kvm_clone_core::wire::control::{LaneId, Request};
use kvm_clone_core::wire::direct::Route;
use kvm_clone_core::{Error, Result};

use crate::host::Host;
use crate::host::install::start_script;
use crate::host::transport::{Child, Script, Transport};

/// The four ends of a lane's two streams.
#[derive(Debug)]
pub struct Ends {
    /// Where the source lane agent's output goes.
    pub source_out: OwnedFd,
    /// Where the target lane agent's input comes from.
    pub target_in: OwnedFd,
    /// Where the target lane agent's output goes.
    pub target_out: OwnedFd,
    /// Where the source lane agent's input comes from.
    pub source_in: OwnedFd,
}

/// How the two ends of a lane are joined. There is one way in use, [`Pipes`]; tests join with faults in between.
pub trait Joint: Send + Sync + std::fmt::Debug {
    /// Makes the streams of one lane.
    ///
    /// # Errors
    /// What the system said.
    fn join(&self) -> std::io::Result<Ends>;
}

/// A pair of pipes: what one side writes is what the other reads, without anybody in between.
#[derive(Debug, Default)]
pub struct Pipes;

impl Joint for Pipes {
    fn join(&self) -> std::io::Result<Ends> {
        let ((target_in, source_out), (source_in, target_out)) = (pipe()?, pipe()?);
        Ok(Ends { source_out, target_in, target_out, source_in })
    }
}

/// Bytes that a joint holds: the most that Linux gives without privileges (pipe(7), `pipe-max-size`).
const PIPE_SIZE: usize = 1 << 20;
/// Connections to one host that are opened at the same time.
const AT_ONCE: usize = 4;

/// An open lane.
pub(super) struct Lane {
    pub(super) source: LaneId,
    pub(super) target: LaneId,
    /// The way that its bytes take.
    pub(super) route: Route,
    /// What the user should know of how it was opened.
    pub(super) notes: Vec<String>,
    /// What holds the lane's streams, where they go over SSH.
    _children: Vec<Child>,
}

/// The lane that an agent's id belongs to: source agents have the even ids, target agents the odd ones, so that both can
/// be on one host.
pub(super) fn lane_of(id: LaneId) -> usize {
    usize::from(id / 2)
}

/// Opens lanes over SSH. The first one rides on the hosts' master connections; each further one gets connections of its
/// own, since one connection is one cipher thread and one window.
pub(super) async fn open(source: &Host, target: &Host, wanted: u16, joint: &dyn Joint) -> Result<Vec<Lane>> {
    let mut lanes = Vec::new();
    let numbers: Vec<u16> = (0..wanted).collect();
    for batch in numbers.chunks(AT_ONCE) {
        let opened = join_all(batch.iter().map(|number| open_one(source, target, *number, joint))).await;
        for lane in opened {
            lanes.push(lane?);
        }
    }
    Ok(lanes)
}

async fn open_one(source: &Host, target: &Host, number: u16, joint: &dyn Joint) -> Result<Lane> {
    let ((from, from_note), (to, to_note)) = tokio::join!(transport(source, number), transport(target, number));
    let (source_id, target_id) = ids(number);
    let ends = joint.join().map_err(|error| Error::internal(format!("joining a lane: {error}")))?;
    let (sending, receiving) = tokio::try_join!(
        start(source, &from, source_id, ends.source_in, ends.source_out),
        start(target, &to, target_id, ends.target_in, ends.target_out),
    )?;
    let notes = [from_note, to_note].into_iter().flatten().collect();
    let children = vec![sending, receiving];
    Ok(Lane { source: source_id, target: target_id, route: Route::Relay, notes, _children: children })
}

/// Opens lanes that are to leave SSH: their agents are started by the control agents, without a session of SSH.
pub(super) async fn open_apart(source: &Host, target: &Host, wanted: u16) -> Result<Vec<Lane>> {
    let mut lanes = Vec::new();
    for number in 0..wanted {
        let (source_id, target_id) = ids(number);
        tokio::try_join!(
            source.control.order(Request::StartLane(source_id)),
            target.control.order(Request::StartLane(target_id)),
        )?;
        let (notes, children) = (Vec::new(), Vec::new());
        lanes.push(Lane { source: source_id, target: target_id, route: Route::Direct, notes, _children: children });
    }
    Ok(lanes)
}

/// The agents of a lane: at the source, at the target.
const fn ids(number: u16) -> (LaneId, LaneId) {
    (number * 2, number * 2 + 1)
}

/// A connection of the lane's own; one that cannot be made falls back to a session on the master connection, and says
/// so.
async fn transport(host: &Host, number: u16) -> (Transport, Option<String>) {
    if number == 0 {
        return (host.transport.clone(), None);
    }
    match host.another_transport().await {
        Ok(transport) => (transport, None),
        Err(error) => {
            let note =
                format!("a lane to {} has no connection of its own and shares the first one: {error}", host.name);
            (host.transport.clone(), Some(note))
        }
    }
}

async fn start(host: &Host, transport: &Transport, id: LaneId, stdin: OwnedFd, stdout: OwnedFd) -> Result<Child> {
    let arguments = format!("lane {} {id}", host.control.hello().session);
    let script: Script = start_script(host.agent_digest(), host.privilege, &arguments)?;
    transport.start_on(&script, stdin, stdout).await.map_err(|error| error.with("host", &host.name))
}

fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (reading, writing) = std::io::pipe()?;
    // Only a matter of speed: where the limit is lower, the default stays.
    let _ = rustix::pipe::fcntl_setpipe_size(&writing, PIPE_SIZE);
    Ok((reading.into(), writing.into()))
}
