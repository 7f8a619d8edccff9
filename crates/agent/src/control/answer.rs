//! Requests and who answers them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvm_clone_core::wire::control::{FromAgent, Reply, Request};
use kvm_clone_core::{Error, Result};

use super::progress::Progress;
use super::session::Session;
use super::{
    check, checksum, digests, export, facts, files, flatten, hold, image, in_place, inspect, lanes, manifest, marker,
    point, relay, renew, seal, settle, take_up,
};

/// Requests answered at once; a controller that asks more at a time is broken.
const AT_ONCE: usize = 64;

static ANSWERING: AtomicUsize = AtomicUsize::new(0);

/// Answers a request in a thread of its own.
pub(super) fn spawn(session: &Arc<Session>, number: u32, request: Request) -> Result<()> {
    if ANSWERING.fetch_add(1, Ordering::Relaxed) >= AT_ONCE {
        return Err(Error::transfer("the controller asked too many questions at once"));
    }
    // Noted here, in the order of arrival, and not in the thread: an order to end everything that comes next must see it.
    let change = changes(&request).then(|| session.begin_change());
    let session = Arc::clone(session);
    std::thread::spawn(move || {
        let progress = Arc::new(Progress::of(&session, number));
        let reply = answer(&session, request, &progress);
        drop(change);
        ANSWERING.fetch_sub(1, Ordering::Relaxed);
        session.tell(FromAgent::Response(number, reply));
    });
    Ok(())
}

#[allow(clippy::too_many_lines, reason = "a list: one entry for each request")]
fn answer(session: &Arc<Session>, request: Request, progress: &Arc<Progress>) -> Result<Reply> {
    match request {
        Request::Facts => facts::gather(&session.place).map(|facts| Reply::Facts(Box::new(facts))),
        Request::OpenLibvirt => relay::open(session).map(Reply::Relay),
        Request::Lock { operation, keys } => session.take_locks(operation, &keys).map(done),
        Request::Unlock => {
            session.drop_locks();
            Ok(Reply::Done)
        }
        Request::Inspect(image) => inspect::chain(&image).map(Reply::Chain),
        Request::CheckImage(image) => check::check(&image, progress).map(Reply::Checked),
        Request::Export { name, image } => {
            session.require_locks().and_then(|()| export::open(session, name, &image, progress)).map(Reply::Export)
        }
        Request::Checksum { image, algorithm } => checksum::compute(&image, algorithm, progress).map(Reply::Checksum),
        Request::GroupDigests(query, from) => digests::groups(&query, from, progress).map(Reply::GroupDigests),
        Request::BlockDigests(query, groups) => digests::blocks(&query, &groups, progress).map(Reply::BlockDigests),
        Request::Read { image, offset, len } => digests::read(&image, offset, len).map(Reply::Bytes),
        Request::Segments { image, segment_len, from } => inspect::segments(&image, segment_len, from, progress),
        Request::Paths(paths) => Ok(Reply::Paths(files::look(paths))),
        Request::Markers => marker::all(&session.place).map(Reply::Markers),
        Request::PutMarker(new) => session.require_locks().and_then(|()| marker::put(&session.place, &new)).map(done),
        Request::RemoveMarker(operation) => {
            session.require_locks().and_then(|()| marker::remove(&session.place, operation)).map(done)
        }
        Request::MakeDirectory(new) => {
            session.require_locks().and_then(|()| files::make_directory(&session.place, &new)).map(done)
        }
        Request::CreateImage(new) => session.require_locks().and_then(|()| image::create(session, &new)).map(done),
        Request::TakeUp(operation) => session
            .require_locks()
            .and_then(|()| take_up::take_up(&session.place, operation, progress))
            .map(Reply::Staged),
        Request::TakeUpImage(new) => {
            session.require_locks().and_then(|()| take_up::image(session, &new, progress)).map(Reply::TakenUp)
        }
        Request::FinishImage(new) => {
            session.require_locks().and_then(|()| image::finish(session, &new, progress)).map(Reply::Image)
        }
        Request::SettleImage(new) => {
            session.require_locks().and_then(|()| settle::settle(session, &new, progress)).map(Reply::Image)
        }
        Request::TakeInPlace(new) => {
            session.require_locks().and_then(|()| in_place::take(session, &new, progress)).map(done)
        }
        Request::ResizeInPlace(new) => session.require_locks().and_then(|()| in_place::resize(session, &new)).map(done),
        Request::FinishInPlace(new) => {
            session.require_locks().and_then(|()| in_place::finish(session, &new, progress)).map(Reply::Image)
        }
        Request::HoldState(operation) => {
            session.require_locks().and_then(|()| renew::hold(session, operation)).map(done)
        }
        Request::HoldImages(images) => session.require_locks().and_then(|()| hold::hold(session, &images)).map(done),
        Request::RenewFiles(operation) => {
            session.require_locks().and_then(|()| renew::renew(session, operation, progress)).map(Reply::Renewed)
        }
        Request::Flatten(order) => session
            .require_locks()
            .and_then(|()| flatten::flatten(session, &order, progress))
            .map(Box::new)
            .map(Reply::Flattened),
        Request::TakeSeals(orders) => {
            session.require_locks().and_then(|()| seal::take(&session.place, &orders)).map(done)
        }
        Request::Seals(queries) => seal::states(&session.place, &queries).map(Reply::Seals),
        Request::Manifest(query) => manifest::state(&query, progress).map(Reply::Manifest),
        Request::AdoptManifest { operation, from, to } => {
            session.require_locks().and_then(|()| manifest::adopt(&session.place, operation, &from, &to)).map(done)
        }
        Request::Rename { operation, from, to } => {
            session.require_locks().and_then(|()| files::rename(&session.place, operation, &from, &to)).map(done)
        }
        Request::Remove { operation, paths } => {
            session.require_locks().and_then(|()| files::remove(&session.place, operation, &paths, progress)).map(done)
        }
        Request::ArmPoint(order) => {
            session.require_locks().and_then(|()| point::arm(session, &order)).map(Reply::Point)
        }
        Request::PointState => Ok(Reply::PointState(point::state(session))),
        Request::EndPoint { settled } => point::end(session, settled).map(done),
        Request::ClearPoints => session.require_locks().and_then(|()| point::sweep(session)).map(done),
        Request::Points => point::all(&session.place).map(Reply::Points),
        Request::SyncDefinitions => files::sync_definitions().map(done),
        Request::StartLane(id) => session.require_locks().and_then(|()| lanes::start(session, id)).map(done),
        Request::OpenLanes => session.require_locks().map(|()| session.open_lanes()).map(done),
        Request::EndLanes => lanes::end(session, progress).map(done),
    }
}

/// Whether a request changes something on this host that must not go on behind the back of an undo, or works on a disk for
/// so long that an undo must not wait for its end.
const fn changes(request: &Request) -> bool {
    matches!(
        request,
        Request::PutMarker(_)
            | Request::RemoveMarker(_)
            | Request::MakeDirectory(_)
            | Request::CreateImage(_)
            | Request::TakeUp(_)
            | Request::TakeUpImage(_)
            | Request::Export { .. }
            | Request::Checksum { .. }
            | Request::GroupDigests(..)
            | Request::BlockDigests(..)
            | Request::FinishImage(_)
            | Request::SettleImage(_)
            | Request::TakeInPlace(_)
            | Request::ResizeInPlace(_)
            | Request::FinishInPlace(_)
            | Request::HoldState(_)
            | Request::HoldImages(_)
            | Request::RenewFiles(_)
            | Request::Flatten(_)
            | Request::TakeSeals(_)
            | Request::Manifest(_)
            | Request::AdoptManifest { .. }
            | Request::Rename { .. }
            | Request::Remove { .. }
            | Request::SyncDefinitions
    )
}

fn done((): ()) -> Reply {
    Reply::Done
}
