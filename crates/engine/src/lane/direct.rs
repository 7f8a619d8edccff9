//! The direct route: whether a lane can leave SSH for a connection from host to host, and how it does.
//!
//! Trying costs little: the control agents start the lane agents themselves, and where the hosts do not reach each other
//! lanes are opened over SSH. The key that lets the source in reaches both agents over SSH, so the hosts are as sure of each
//! other as the controller is of both.

use std::time::Duration;

use kvm_clone_core::wire::control::LaneId;
use kvm_clone_core::wire::direct::{Cipher, LaneKey, Seal};
use kvm_clone_core::wire::lane::{LaneCommand, LaneEvent};
use kvm_clone_core::{Error, Result};

use super::joint::{self, Lane};
use super::{Copy, Told, await_ready};

/// Which way lanes take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RoutePolicy {
    /// From host to host where they reach each other and there is enough to be copied, else over SSH.
    #[default]
    Auto,
    /// Over SSH, through the controller; no port is opened.
    Relay,
    /// From host to host, or not at all.
    Direct,
}

/// For less than this the way over SSH is as fast.
const WORTH: u64 = 16 << 20;
/// How long one answer may take: reaching a host that does not answer is given up after one second by the agent itself.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Whether a copy of so many bytes tries the direct route.
pub(super) fn is_wanted(copy: &Copy<'_>, bytes: u64) -> bool {
    match copy.route {
        RoutePolicy::Relay => false,
        // Two agents on the controller's own host have a pipe between them.
        RoutePolicy::Auto => bytes >= WORTH && (copy.source.transport.is_ssh() || copy.target.transport.is_ssh()),
        RoutePolicy::Direct => true,
    }
}

/// Opens lanes from host to host; none where the hosts do not reach each other and may go another way.
pub(super) async fn open(copy: &Copy<'_>, count: u16, told: &mut Told) -> Result<Option<Vec<Lane>>> {
    let lanes = joint::open_apart(copy.source, copy.target, count).await?;
    await_ready(copy, &lanes, told).await?;
    for lane in &lanes {
        match invite(copy, lane, told).await? {
            Ok(()) => {}
            Err(why) if copy.route == RoutePolicy::Direct => return Err(refused(copy, &why)),
            Err(why) => {
                tracing::info!("the hosts do not reach each other directly, so the copy goes over SSH: {why}");
                return Ok(None);
            }
        }
    }
    Ok(Some(lanes))
}

/// Has the target wait and the source come; says why they did not meet. Who does not answer in time has not met either.
async fn invite(copy: &Copy<'_>, lane: &Lane, told: &mut Told) -> Result<std::result::Result<(), String>> {
    let seal = seal(copy)?;
    copy.target.control.lane(lane.target, LaneCommand::Listen(seal.clone())).await?;
    let at = match answer(copy, lane.target, told).await? {
        Some(LaneEvent::Listening(Ok(at))) => at,
        Some(LaneEvent::Listening(Err(why))) => return Ok(Err(why)),
        other => return Ok(Err(out_of_turn(other.as_ref()))),
    };
    copy.source.control.lane(lane.source, LaneCommand::Connect { at, seal }).await?;
    match answer(copy, lane.source, told).await? {
        Some(LaneEvent::Connected(outcome)) => Ok(outcome),
        other => Ok(Err(out_of_turn(other.as_ref()))),
    }
}

/// What this lane agent says next; none if it says nothing for too long.
async fn answer(copy: &Copy<'_>, from: LaneId, told: &mut Told) -> Result<Option<LaneEvent>> {
    let heard = async {
        loop {
            match told.recv().await {
                Some((_, LaneEvent::Failed(error))) => return Err(error),
                Some((id, event)) if id == from => return Ok(event),
                Some(_) => {}
                None => return Err(Error::connection("an agent is gone").transient()),
            }
        }
    };
    tokio::select! {
        heard = tokio::time::timeout(ANSWER_DEADLINE, heard) => heard.ok().transpose(),
        error = copy.source.control.gone() => Err(error),
        error = copy.target.control.gone() => Err(error),
    }
}

fn out_of_turn(event: Option<&LaneEvent>) -> String {
    event.map_or_else(|| "a lane agent did not answer".to_owned(), |event| format!("a lane agent answered {event:?}"))
}

fn seal(copy: &Copy<'_>) -> Result<Seal> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| Error::internal(format!("no random bytes: {error}")))?;
    let cipher = if copy.source.facts.aes && copy.target.facts.aes { Cipher::AesGcm } else { Cipher::ChaChaPoly };
    Ok(Seal { key: LaneKey::new(key), cipher })
}

fn refused(copy: &Copy<'_>, why: &str) -> Error {
    let (source, target) = (&copy.source.name, &copy.target.name);
    Error::connection(format!("{source} does not reach {target} directly: {why}"))
        .with("source", source)
        .with("host", target)
        .help(format!("Let {source} open TCP connections to {target}, or leave --route direct out"))
}
