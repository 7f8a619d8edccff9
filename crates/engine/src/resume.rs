//! An interrupted operation goes on: under its own id, with its own names, on what it has staged.
//!
//! Nothing that was staged is believed: its contents are compared with the source's, block by block, as those of a replica are.
//! So nothing is sent again that is there, and it does not matter who was killed, or which machine lost its power.
//!
//! What is decided under the locks: that the operation's marker stands still, that its definition does not (else it is only
//! finished), and that a replica is the one that it began with.

mod noted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kvm_clone_core::event::{Event, Phase};
use kvm_clone_core::inventory::SourceMachine;
use kvm_clone_core::journal::{LockKey, Status};
use kvm_clone_core::plan::{ClonePlan, FreshIdentity};
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::marker::Marker;
use kvm_clone_core::{Code, Error, Result};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::client::{Client, same_if_one};
use crate::clone::{self, CloneSettings, Events, Look, Prepared};
use crate::host::control::unexpected;
use crate::inventory::{self, Site};
use crate::known::{self, Known};
use crate::locks::lock_both;
use crate::operation::Attendance;
use crate::outcome::CloneResult;
use crate::phases::Phases;
use crate::recover::{self, Recovered};
use crate::step::{Work, stands};
use crate::store::{Store, Undone};
pub(crate) use noted::Resumable;
use noted::noted;

/// The piece of evidence that an operation can be gone on with.
pub(crate) const RESUMABLE: &str = "resumable";

/// Whether an operation that ended with this error can be gone on with: what it staged is kept.
#[must_use]
pub fn is_resumable(error: &Error) -> bool {
    error.context.contains_key(RESUMABLE)
}

/// How a resumed operation ended.
#[derive(Debug)]
pub enum Resumed {
    /// The copy went on, and its machine stands.
    Copied(Box<CloneResult>),
    /// Its machine stood already; only tidying up was left.
    Finished(Recovered),
}

/// Both hosts, and the marker that was found there, under the locks.
struct Held {
    source: Site,
    target: Site,
    marker: Marker,
}

impl Client {
    /// Goes on with an operation of this journal that was interrupted, without sending again what is at the target. It is done
    /// as it was begun; of the settings, only those count that say how, and not what. Without a point, a source that runs is
    /// copied as of a new one.
    ///
    /// # Errors
    /// There is no such operation, or it has ended ([`Code::Validation`]); somebody works on it ([`Code::Locked`]); somebody
    /// undid it, or what it was to change is another now ([`Code::Conflict`]). Where the context says `resumable`, nothing
    /// was changed, and it can be tried again; else as [`Prepared::execute`].
    pub async fn resume(
        &self,
        operation: Uuid,
        settings: &CloneSettings,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<Resumed> {
        let store = Store::open(&self.journal).await?;
        let noted = noted(&store, operation).await?;
        if store.place().lives(operation).await? {
            return Err(in_progress(operation));
        }
        let attendance = Attendance::begin(&store, operation, events, &cancel).await?;
        let ended = self.go_on(store, noted, settings, &attendance).await;
        attendance.close(ended).await
    }

    async fn go_on(
        &self,
        store: Store,
        noted: Resumable,
        settings: &CloneSettings,
        attendance: &Attendance,
    ) -> Result<Resumed> {
        let (operation, settings) = (noted.fresh.operation, noted.settings(settings));
        let (events, cancel) = (Arc::clone(&attendance.events), attendance.cancel.clone());
        events(Event::Started { operation_id: operation });
        let ready = async {
            let made = self.take_up(&store, noted, &settings, &events).await;
            made.map_err(|error| error.with("operation_id", operation))
        };
        let ready = tokio::select! {
            ready = ready => ready?,
            () = cancel.cancelled() => return Err(stopped(operation)),
            () = clone::deadline(Instant::now(), settings.timeout) => {
                return Err(clone::too_long(settings.timeout).with("operation_id", operation).with(RESUMABLE, true));
            }
        };
        match ready {
            Ready::Finished(entry) => {
                store.close().await;
                Ok(Resumed::Finished(entry))
            }
            Ready::GoesOn(prepared, work) => {
                let result = prepared.carry_out(*work, &settings, events, cancel).await?;
                Ok(Resumed::Copied(Box::new(result)))
            }
        }
    }

    /// Up to where the saga begins again. An error before that changes nothing about the operation.
    async fn take_up(
        &self,
        store: &Store,
        noted: Resumable,
        settings: &CloneSettings,
        events: &Events,
    ) -> Result<Ready> {
        let started = Instant::now();
        let mut phases = Phases::default();
        phases.enter(Phase::Connect, events);
        let held = match self.hold(&noted).await? {
            Ok(held) => held,
            Err(target) => return Err(gone(&target, store, &noted).await),
        };
        let Held { source, target, marker } = held;
        let resumable = |error: Error| error.with(RESUMABLE, true);
        if stands(&target, marker.uuid, marker.operation).await.map_err(resumable)? {
            let entry = recover::finish_held(&target, store, &marker).await.map_err(resumable)?;
            return Ok(Ready::Finished(entry));
        }
        phases.enter(Phase::Plan, events);
        let planned = plan_again(&source, &target, &marker, &noted, settings).await.map_err(resumable)?;
        let Planned { plan, seen, owner, known, fresh, staged } = planned;
        let prepared = Prepared {
            request: noted.request,
            fresh,
            source,
            target,
            plan,
            store: store.clone(),
            silence: self.access.silence,
            name: noted.name,
            seen: SourceMachine::clone(&seen.machine),
            started,
            phases,
            staged: Some(staged),
        };
        let mut work = Work::new(&prepared, seen, owner, known, settings.clone(), events.clone())?;
        work.drop_leftover(&marker).await.map_err(resumable)?;
        store.resume(marker.operation).await.map_err(resumable)?;
        if prepared.seen.live.is_some() {
            let point = &prepared.fresh.now;
            work.warn(format!(
                "the former point of {} is gone: it goes on towards a new one, of {point}",
                prepared.name
            ));
        }
        Ok(Ready::GoesOn(Box::new(prepared), Box::new(work)))
    }

    /// Reaches both hosts and takes the operation's locks; the target alone where its marker is gone.
    async fn hold(&self, noted: &Resumable) -> Result<Result<Held, Site>> {
        let resumable = |error: Error| error.with(RESUMABLE, true);
        let reached = tokio::try_join!(self.connect(&noted.source), self.connect(&noted.target));
        let (source, target) = reached.map_err(resumable)?;
        let target = same_if_one(&source, target);
        let Some(marker) = marker(&target, noted).await.map_err(resumable)? else { return Ok(Err(target)) };
        let source_key = vec![LockKey::Machine(noted.machine).to_string()];
        lock_both(&source, &target, noted.fresh.operation, source_key, marker.keys.clone()).await.map_err(resumable)?;
        // Read again: somebody may have ended it before the locks were ours.
        let marker = self::marker(&target, noted).await.map_err(resumable)?;
        Ok(match marker {
            Some(marker) => Ok(Held { source, target, marker }),
            None => Err(target),
        })
    }

    /// Undoes an operation that failed in passing and was kept for another try, and journals why there is none.
    ///
    /// # Errors
    /// The target cannot be reached, or undoing fails there.
    pub async fn give_up(&self, operation: Uuid, cause: &Error) -> Result<()> {
        let store = Store::open(&self.journal).await?;
        let undone = self.undo_kept(&store, operation, cause).await;
        store.close().await;
        undone
    }

    async fn undo_kept(&self, store: &Store, operation: Uuid, cause: &Error) -> Result<()> {
        // Somebody else may have ended it.
        if ended(store, operation).await?.is_some() {
            return Ok(());
        }
        let noted = noted(store, operation).await?;
        let undone = crate::reconnect::again(self.access.silence + crate::reconnect::PATIENCE, || async {
            let target = self.connect(&noted.target).await?;
            match marker(&target, &noted).await? {
                Some(marker) => recover::give_up(&target, store, &marker, cause).await,
                None => recover::close_forgotten(&target, store, operation, Undone::GivenUp(cause)).await,
            }
        });
        undone.await.map_err(|error| error.with("host", &noted.target.addr))
    }
}

/// How an operation ended, if it did.
async fn ended(store: &Store, operation: Uuid) -> Result<Option<Status>> {
    Ok(store.find(operation).await?.map(|found| found.status).filter(|status| status.is_final()))
}

enum Ready {
    Finished(Recovered),
    GoesOn(Box<Prepared>, Box<Work>),
}

struct Planned {
    plan: ClonePlan,
    seen: inventory::Source,
    owner: Option<(u32, u32)>,
    known: Known,
    fresh: FreshIdentity,
    staged: BTreeMap<String, u64>,
}

/// Plans as when it began, from what both hosts are now.
async fn plan_again(
    source: &Site,
    target: &Site,
    marker: &Marker,
    noted: &Resumable,
    settings: &CloneSettings,
) -> Result<Planned> {
    placed_are_nobodys(target, marker).await?;
    let staged = match target.host.control.ask(Request::TakeUp(marker.operation)).await? {
        Reply::Staged(staged) => staged,
        other => return Err(unexpected(&other)),
    };
    // What is copied is the source as it is now.
    let fresh = FreshIdentity { now: jiff::Timestamp::now().to_string(), ..noted.fresh.clone() };
    let seen = clone::look_at_source(source, &noted.name, &noted.request, Look::First).await?;
    if seen.machine.uuid != noted.machine {
        return Err(noted.another(&format!("machine {} is another one now", noted.name)));
    }
    let (mut host, owner) = inventory::target(target, &noted.request, &seen.machine, &fresh).await?;
    for pool in &mut host.pools {
        let home = pool.path.as_deref().map(|path| path.trim_end_matches('/'));
        let ours = staged.iter().filter(|(path, _)| path.rsplit_once('/').map(|(dir, _)| dir) == home);
        pool.available = pool.available.saturating_add(ours.map(|(_, bytes)| bytes).sum());
    }
    let plan = clone::plan(&seen.machine, target, &host, &noted.request, &fresh)?;
    if let Some(refusal) = plan.refusal() {
        return Err(refusal);
    }
    noted.fits(&plan)?;
    let known = known::look(&source.host, target, &seen, &plan, settings).await?;
    if !noted.has_withdrawn(&plan) {
        noted.same_images(&known)?;
    }
    Ok(Planned { plan, seen, owner, known, fresh, staged })
}

/// Refuses where somebody has made the disks of a machine of what has its final name already: they would be taken away.
async fn placed_are_nobodys(target: &Site, marker: &Marker) -> Result<()> {
    let placed = marker.placed();
    // Fails where it cannot be told what a machine stands on.
    inventory::not_in_use(target, &placed).await?;
    let Some((user, path)) = inventory::other_user(target, &placed, None).await? else { return Ok(()) };
    let (operation, host) = (marker.operation, &target.host.name);
    Err(Error::conflict(format!("{path} of operation {operation} is a disk of machine {user} on {host} by now"))
        .with("path", path)
        .with("vm", &user)
        .with("host", host)
        .help(format!("To keep {user}, give the operation up: kvm-clone recover {host} lets its disks alone"))
        .help(format!("Or take {user} away (virsh undefine {user}), and run kvm-clone resume {operation} again")))
}

async fn marker(target: &Site, noted: &Resumable) -> Result<Option<Marker>> {
    let markers = recover::markers(target).await?;
    Ok(markers.into_iter().find(|marker| marker.operation == noted.fresh.operation))
}

/// The target knows nothing of the operation: the journal is told.
async fn gone(target: &Site, store: &Store, noted: &Resumable) -> Error {
    let (operation, host) = (noted.fresh.operation, noted.target.addr.to_string());
    let _ = recover::close_forgotten(target, store, operation, Undone::Recovered).await;
    Error::conflict(format!("{host} knows nothing of operation {operation}: somebody finished or undid it"))
        .with("host", &host)
        .help(format!("kvm-clone list {host} shows whether its machine is there; if not, run the command again"))
}

fn in_progress(operation: Uuid) -> Error {
    Error::new(Code::Locked, format!("somebody works on operation {operation}"))
        .with("operation_id", operation)
        .help(format!("kvm-clone status {operation} --follow shows how far it is"))
}

fn stopped(operation: Uuid) -> Error {
    Error::new(Code::Cancelled, "stopped by the user before it went on")
        .with("operation_id", operation)
        .with(RESUMABLE, true)
}
