//! What interrupted operations left on a host, finished or undone.
//!
//! The host alone tells: its markers say what was to be made, its locks whether somebody still works on it, and its
//! libvirt whether the definition stands, which is the one fact that decides. The journal is only told.

use kvm_clone_core::journal::{self, LockKey, Stands, Status};
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::marker::Marker;
use kvm_clone_core::wire::point::PointNote;
use kvm_clone_core::{Code, Error, Result};
use serde::Serialize;
use uuid::Uuid;

use crate::host::control::unexpected;
use crate::inventory::{self, Site};
use crate::operation;
use crate::step::{flatten, made_by, out_of_service, renew, secure_definition, settle, standing};
use crate::store::{RECOVERED, Store, Told, Undone};

/// Whether `recover` acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Only says what would be done.
    Look,
    /// Does it.
    Act,
}

/// What became of one operation.
#[derive(Debug, Clone, Serialize)]
pub struct Recovered {
    /// The operation.
    pub operation_id: Uuid,
    /// Machine and host that it copied from.
    pub source: String,
    /// The machine that it was to make.
    pub new_vm_name: String,
    /// What was done, or would be.
    pub action: Action,
    /// The files that were removed, or would be.
    pub files: Vec<String>,
    /// Why it could not be done.
    pub error: Option<Error>,
}

impl Recovered {
    /// An operation of which nothing is decided yet.
    fn of(marker: &Marker) -> Self {
        Self {
            operation_id: marker.operation,
            source: marker.source.clone(),
            new_vm_name: marker.machine.clone(),
            action: Action::InProgress,
            files: Vec::new(),
            error: None,
        }
    }
}

/// What is done with an operation that left something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Its machine stands: what was left to tidy up is tidied up.
    Finish,
    /// Its machine does not stand: what it made is removed.
    Undo,
    /// It wrote the disks of a replica in place: that is out of service, and only a sync can complete it.
    OutOfService,
    /// Somebody works on it.
    InProgress,
}

/// Goes through every marker of the host.
pub(crate) async fn recover(site: &Site, store: &Store, mode: Recovery) -> Result<Vec<Recovered>> {
    let markers = markers(site).await?;
    let known: Vec<Uuid> = markers.iter().map(|marker| marker.operation).collect();
    let mut all = Vec::new();
    for marker in markers {
        // Between two tries nobody holds its locks.
        let is_waiting = store.place().lives(marker.operation).await?;
        all.push(if is_waiting {
            Recovered::of(&marker)
        } else {
            one(site, store, &marker, mode, Undone::Recovered).await
        });
    }
    for note in points(site).await? {
        all.push(one_point(site, note, mode).await);
    }
    if mode == Recovery::Act {
        close_journal(site, store, &known).await?;
    }
    Ok(all)
}

/// What says on a host which operations made something there.
pub(crate) async fn markers(site: &Site) -> Result<Vec<Marker>> {
    match site.host.control.ask(Request::Markers).await? {
        Reply::Markers(markers) => Ok(markers),
        other => Err(unexpected(&other)),
    }
}

/// Finishes or undoes what earlier operations left of one machine, before another one works on it.
///
/// # Errors
/// Somebody works on it ([`Code::Locked`]), or it cannot be done.
pub(crate) async fn finish_earlier(site: &Site, store: &Store, machine: Uuid) -> Result<()> {
    let markers = markers(site).await?;
    for marker in markers.into_iter().filter(|marker| marker.uuid == machine) {
        if store.place().lives(marker.operation).await? {
            return Err(worked_on(site, &marker));
        }
        let done = one(site, store, &marker, Recovery::Act, Undone::Recovered).await;
        // The sync that comes completes it.
        if done.action != Action::OutOfService {
            ended(site, &marker, done)?;
        }
    }
    Ok(())
}

/// After a machine was defined anew: what those operations left that wrote its images in place, and were interrupted. All others were
/// finished or undone before; one that was not is for `recover`, as its marker alone names what it was to remove.
pub(crate) async fn drop_superseded(site: &Site, store: &Store, machine: Uuid, by: Uuid) -> Result<()> {
    let is_superseded =
        |marker: &Marker| marker.uuid == machine && marker.operation != by && !marker.in_place.is_empty();
    for marker in markers(site).await?.into_iter().filter(is_superseded) {
        let left = inventory::not_in_use(site, &marker.placed()).await?;
        let paths = [left, marker.staged(), marker.outdated.clone()].concat();
        site.host.control.order(Request::Remove { operation: marker.operation, paths }).await?;
        site.host.control.order(Request::RemoveMarker(marker.operation)).await?;
        store.undone(marker.operation, Undone::Recovered).await?;
    }
    Ok(())
}

fn worked_on(site: &Site, marker: &Marker) -> Error {
    let host = &site.host.name;
    Error::new(Code::Locked, format!("operation {} works on machine {} on {host}", marker.operation, marker.machine))
        .with("vm", &marker.machine)
        .with("host", host)
        .with("operation_id", marker.operation)
        .help("Wait for its end, and run the command again")
        .transient()
}

async fn one(site: &Site, store: &Store, marker: &Marker, mode: Recovery, undone: Undone<'_>) -> Recovered {
    let mut entry = Recovered::of(marker);
    let lock = Request::Lock { operation: marker.operation, keys: marker.keys.clone() };
    match site.host.control.order(lock).await {
        Ok(()) => {}
        Err(error) if error.code == Code::Locked => return entry,
        Err(error) => {
            entry.error = Some(error);
            return entry;
        }
    }
    let outcome = locked(site, store, marker, (mode, undone), &mut entry).await;
    let unlocked = site.host.control.order(Request::Unlock).await;
    entry.error = outcome.and(unlocked).err();
    entry
}

async fn points(site: &Site) -> Result<Vec<PointNote>> {
    match site.host.control.ask(Request::Points).await? {
        Reply::Points(notes) => Ok(notes),
        other => Err(unexpected(&other)),
    }
}

/// A point that an operation holds, or a dead one held, of a machine of this host: ended unless somebody works on it.
async fn one_point(site: &Site, note: PointNote, mode: Recovery) -> Recovered {
    let mut entry = Recovered {
        operation_id: note.operation,
        source: note.source,
        new_vm_name: note.new_name,
        action: Action::Undo,
        files: note.scratch,
        error: None,
    };
    let control = &site.host.control;
    let lock = Request::Lock { operation: note.operation, keys: vec![LockKey::Machine(note.machine).to_string()] };
    let outcome = match control.order(lock).await {
        Err(error) if error.code == Code::Locked => {
            entry.action = Action::InProgress;
            entry.files.clear();
            return entry;
        }
        Ok(()) if mode == Recovery::Act => control.order(Request::ClearPoints).await,
        other => other,
    };
    let unlocked = control.order(Request::Unlock).await;
    entry.error = outcome.and(unlocked).err();
    entry
}

/// Finishes an operation whose machine stands and whose locks are held.
pub(crate) async fn finish_held(site: &Site, store: &Store, marker: &Marker) -> Result<Recovered> {
    let mut entry = Recovered::of(marker);
    locked(site, store, marker, (Recovery::Act, Undone::Recovered), &mut entry).await?;
    Ok(entry)
}

/// Finishes or undoes one operation that is given up.
///
/// # Errors
/// Somebody works on it ([`Code::Locked`]), or it cannot be done.
pub(crate) async fn give_up(site: &Site, store: &Store, marker: &Marker, cause: &Error) -> Result<()> {
    let done = one(site, store, marker, Recovery::Act, Undone::GivenUp(cause)).await;
    ended(site, marker, done)
}

fn ended(site: &Site, marker: &Marker, done: Recovered) -> Result<()> {
    match (done.error, done.action) {
        (Some(error), _) => Err(error.with("operation_id", marker.operation)),
        (None, Action::InProgress) => Err(worked_on(site, marker)),
        (None, _) => Ok(()),
    }
}

/// Under the locks: decides and acts.
async fn locked(
    site: &Site,
    store: &Store,
    marker: &Marker,
    (mode, undone): (Recovery, Undone<'_>),
    entry: &mut Recovered,
) -> Result<()> {
    let stands = standing(site, marker.uuid, marker.operation).await?;
    let control = &site.host.control;
    let merging = stands == Stands::Another && marker.is_half_merged() && holds_overlays(site, marker).await?;
    match journal::recovery(stands, merging) {
        journal::Recovery::Finish => {
            entry.action = Action::Finish;
            if mode == Recovery::Act {
                finish(site, marker).await?;
            }
            entry.files = outlived(site, marker, mode).await?;
        }
        journal::Recovery::Undo => {
            entry.action = Action::Undo;
            entry.files = [inventory::not_in_use(site, &marker.placed()).await?, marker.staged()].concat();
        }
        // What it staged beside goes; its marker stays, and tells of it until a sync has completed the replica.
        journal::Recovery::Leave => {
            entry.action = Action::OutOfService;
            let staged = [inventory::not_in_use(site, &marker.placed()).await?, marker.staged()].concat();
            if mode == Recovery::Act {
                control.order(Request::Remove { operation: marker.operation, paths: staged }).await?;
            }
            return Err(left_out_of_service(site, marker));
        }
        journal::Recovery::Ask => {
            entry.action = Action::Undo;
            return Err(left_half_merged(site, marker));
        }
    }
    if mode == Recovery::Look {
        return Ok(());
    }
    control.order(Request::Remove { operation: marker.operation, paths: entry.files.clone() }).await?;
    for pool in &marker.pools {
        // A pool that is gone or stopped tracks nothing of ours.
        let _ = site.libvirt.refresh(pool.clone()).await;
    }
    control.order(Request::RemoveMarker(marker.operation)).await?;
    if entry.action == Action::Finish {
        return store.end(marker.operation, Status::Completed, RECOVERED).await;
    }
    store.undone(marker.operation, undone).await
}

/// Whether one of its overlays is there still, and is nobody's by another definition.
async fn holds_overlays(site: &Site, marker: &Marker) -> Result<bool> {
    let overlays: Vec<String> = marker.overlays.iter().map(|overlay| overlay.path.clone()).collect();
    Ok(!inventory::not_in_use(site, &overlays).await?.is_empty())
}

/// What only a person can decide.
fn left_half_merged(site: &Site, marker: &Marker) -> Error {
    let (machine, host) = (&marker.machine, &site.host.name);
    let overlays: Vec<&str> = marker.overlays.iter().map(|overlay| overlay.path.as_str()).collect();
    Error::new(
        Code::UndoFailed,
        format!("the definition of {machine} is gone while its new point was merged into its images: they hold it with its overlays alone"),
    )
    .with("vm", machine)
    .with("host", host)
    .with("left", overlays.join(", "))
    .help(format!("Define it again with the overlays as its disks, and run kvm-clone recover {host}"))
    .help(format!("Or remove the overlays, if nobody needs the machine, and run kvm-clone recover {host}"))
}

/// What a person must do.
fn left_out_of_service(site: &Site, marker: &Marker) -> Error {
    let host = &site.host.name;
    out_of_service(&marker.machine)
        .with("host", host)
        .with("left", marker.in_place.join(", "))
        .help(format!("Sync it again, from {}: that compares everything and completes it", marker.source))
        .help(format!("kvm-clone resume {} does so, too, where it was begun", marker.operation))
        .help("Or put a new copy in its place: kvm-clone clone --force")
}

/// What the operation itself would have done after its define.
async fn finish(site: &Site, marker: &Marker) -> Result<()> {
    let mut marker = marker.clone();
    secure_definition(site, &mut marker).await?;
    if let Some(why) = renew(site, &marker).await? {
        // The next sync finds it changed, and says so; nobody else would miss what is kept.
        tracing::warn!(operation = %marker.operation, "{why}");
    }
    if marker.overlays.is_empty() {
        return Ok(());
    }
    refuse_used(site, &marker).await?;
    flatten(site, &mut marker).await?;
    settle(site, &marker).await
}

/// Refuses to merge into an image that another machine has come to use since the definition was made.
async fn refuse_used(site: &Site, marker: &Marker) -> Result<()> {
    let open = marker.overlays.iter().filter(|overlay| overlay.flattened.is_none());
    let images: Vec<String> = open.map(|overlay| overlay.image.clone()).collect();
    let Some((other, image)) = inventory::other_user(site, &images, Some(marker.uuid)).await? else { return Ok(()) };
    let (machine, host) = (&marker.machine, &site.host.name);
    Err(Error::conflict(format!("image {image} of {machine} is used by machine {other} as well, which would break"))
        .with("path", image)
        .with("vm", &other)
        .with("host", host)
        .help(format!("Give {other} an image of its own: qemu-img convert; then kvm-clone recover {host}")))
}

/// What goes when an operation is finished. The overlays are in use until they are merged.
async fn outlived(site: &Site, marker: &Marker, mode: Recovery) -> Result<Vec<String>> {
    let overlays: Vec<String> = marker.overlays.iter().map(|overlay| overlay.path.clone()).collect();
    let (free, in_use) = match mode {
        Recovery::Act => ([marker.replaced.clone(), overlays].concat(), Vec::new()),
        Recovery::Look => (marker.replaced.clone(), overlays),
    };
    Ok([inventory::not_in_use(site, &free).await?, in_use, marker.outdated.clone(), marker.staging.clone()].concat())
}

/// Operations that this controller's journal takes for unfinished and of which the host knows nothing: they made nothing
/// there, or were recovered by somebody else.
async fn close_journal(site: &Site, store: &Store, known: &[Uuid]) -> Result<()> {
    for operation in store.unfinished(&site.host.name).await? {
        // Between its beginning and its marker, and between its last step and its end, its target knows nothing of one that runs.
        if !known.contains(&operation) && !store.place().lives(operation).await? {
            close_forgotten(site, store, operation, Undone::Recovered).await?;
        }
    }
    operation::sweep(store).await
}

/// Closes an operation of which this host, its target, knows nothing any more.
pub(crate) async fn close_forgotten(site: &Site, store: &Store, operation: Uuid, undone: Undone<'_>) -> Result<()> {
    let machine = match store.doubtful(operation).await? {
        Some(machine) => site.libvirt.definition(machine).await?,
        None => None,
    };
    let told = match machine {
        Some(xml) if made_by(&xml, operation) => Told::Stands,
        Some(_) => Told::Another,
        None => Told::Nothing,
    };
    store.close_forgotten(operation, told, undone).await
}
