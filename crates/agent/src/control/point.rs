//! Guarding a point of a running machine: the backup job that the controller has libvirt begin.
//!
//! The job's socket tells whose job it is: it has a name of this operation's own, so while somebody listens there, the
//! job that runs on the machine is ours and may be ended. It lies in the directory that libvirt makes for the machine's
//! process, where every security driver lets qemu make sockets, and which goes with the process.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvm_clone_core::journal::LockKey;
use kvm_clone_core::wire::point::{COMING, PointNote, PointOrder, PointPlace, PointState};
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use super::backup_job;
use super::marker::sync_dir;
use super::scratch::{self, Limit};
use super::session::Session;
use super::unix_socket;
use crate::place::{Place, io_error, remove_if_there};
use crate::program;

/// Between two looks at the scratch files.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// `unix(7)`: the longest path of a socket.
const SOCKET_PATH_LIMIT: usize = 107;

/// A point that this agent guards.
pub(super) struct Point {
    note: PointNote,
    /// Whether its job was ever seen.
    seen: AtomicBool,
    /// Held by whoever ends the job: the end of somebody else's must not be ordered behind it.
    ending: std::sync::Mutex<()>,
    ended_because: std::sync::Mutex<Option<Error>>,
}

impl Point {
    fn is_held(&self) -> bool {
        let held = backup_job::is_held(&self.note);
        if held {
            self.seen.store(true, Ordering::Relaxed);
        }
        held
    }

    fn end(&self, session: &Session) -> Result<()> {
        let _ending = self.ending.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        backup_job::end(&self.note, &|| session.kill_lanes())
    }

    fn because(&self) -> std::sync::MutexGuard<'_, Option<Error>> {
        self.ended_because.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Writes down, durably, what the job will make, and watches it from now on. The job itself is the controller's to
/// begin, right after.
pub(super) fn arm(session: &Arc<Session>, order: &PointOrder) -> Result<PointPlace> {
    if program::find("virsh").is_none() {
        return Err(Error::unsupported("without virsh on its host a running machine cannot be copied")
            .help("Install libvirt-clients there, or shut the machine down"));
    }
    if session.guarded().is_some() {
        return Err(Error::internal("this session guards a point already"));
    }
    let place = place(order)?;
    let note = PointNote {
        operation: order.operation,
        source: order.source.clone(),
        new_name: order.new_name.clone(),
        machine: order.machine,
        socket: place.socket.clone(),
        scratch: place.scratch.iter().map(|(_, file)| file.clone()).collect(),
    };
    let limit = Limit::new(&note.scratch, order.scratch_limit)?;
    put(&session.place, &note)?;
    let point = Arc::new(Point {
        note,
        seen: AtomicBool::new(false),
        ending: std::sync::Mutex::default(),
        ended_because: std::sync::Mutex::default(),
    });
    session.guard(Arc::clone(&point));
    let session = Arc::clone(session);
    std::thread::spawn(move || watch(&session, &point, &limit));
    Ok(place)
}

/// Names for the socket and the scratch files.
fn place(order: &PointOrder) -> Result<PointPlace> {
    let [.., a, b, c, d, e, f] = order.operation.into_bytes();
    let tail = format!("{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}");
    let dir = process_dir(order.domain_id)?;
    let socket = dir.join(format!("kvm-clone-{tail}.sock")).display().to_string();
    if socket.len() > SOCKET_PATH_LIMIT {
        return Err(Error::unsupported(format!("the path {socket} is too long for a socket"))
            .help("Shut the machine down to copy it"));
    }
    let scratch = order.disks.iter().map(|(target, image)| {
        let dir = scratch::dir_for(Path::new(image), &dir);
        let file = dir.join(format!(".kvm-clone-{}-{target}.scratch", order.operation));
        (target.clone(), file.display().to_string())
    });
    Ok(PointPlace { socket, scratch: scratch.collect() })
}

/// The directory that libvirt made for a process: `domain-ID-NAME`, the name cut short (libvirt,
/// `virDomainDefGetShortName`). One that a power cut left may have the same number; nobody serves a monitor there.
fn process_dir(id: u32) -> Result<PathBuf> {
    let base = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib/libvirt/qemu")
    } else {
        config_dir()?.join("libvirt/qemu/lib")
    };
    let prefix = format!("domain-{id}-");
    let entries = fs::read_dir(&base).map_err(|error| io_error("listing", &base, &error))?;
    let dirs = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let mut dirs: Vec<PathBuf> = dirs.map(|entry| entry.path()).collect();
    if dirs.len() > 1 {
        dirs.retain(|dir| unix_socket::ends(&dir.join("monitor.sock")).is_ok_and(|ends| ends.listening));
    }
    dirs.pop().ok_or_else(|| {
        Error::conflict(format!("the machine's process has no directory {}/{prefix}…", base.display()))
            .help("Was it stopped just now? Run the command again")
            .transient()
    })
}

fn config_dir() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let dir = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    dir.ok_or_else(|| Error::internal("the agent's environment has no HOME"))
}

/// Ends the job before the guest's storage runs out of space: a guest that cannot write because of us would be harm.
fn watch(session: &Session, point: &Point, limit: &Limit) {
    while session.guarded().is_some_and(|guarded| std::ptr::eq(&*guarded, point)) {
        let held = point.is_held();
        if let (true, Err(error)) = (held, limit.check()) {
            point.because().get_or_insert(error);
            let _ = point.end(session);
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

/// How the point fares.
pub(super) fn state(session: &Session) -> PointState {
    match session.guarded() {
        None => PointState { held: false, scratch_used: 0, ended_because: None },
        Some(point) => PointState {
            held: point.is_held(),
            scratch_used: scratch::used(&point.note.scratch),
            ended_because: point.because().clone(),
        },
    }
}

/// Whether the job that this session guards may still be there.
pub(super) fn may_run(session: &Session) -> bool {
    session.guarded().is_some_and(|point| backup_job::may_run(&point.note))
}

/// Ends the job and removes what belongs to it; a point that is not guarded any more is ended already. Where libvirt may
/// still be about to begin the job (`settled` is false), it is waited for, under the lock, until it is here or can come no
/// more. libvirt was asked when the controller was heard last, at the latest.
pub(super) fn end(session: &Session, settled: bool) -> Result<()> {
    let Some(point) = session.guarded() else { return Ok(()) };
    if !settled && !point.seen.load(Ordering::Relaxed) {
        backup_job::wait_for(&point.note, COMING.saturating_sub(session.silent_for()))?;
    }
    point.end(session)?;
    clear(&point.note)?;
    forget(&session.place, &point.note)?;
    session.unguard();
    Ok(())
}

/// Ends what dead operations left on the machines whose locks this session holds: nobody else guards it any more. Where an
/// agent was killed right after it had made its note, the job may not be there yet.
pub(super) fn sweep(session: &Session) -> Result<()> {
    let keys = session.lock_keys();
    let guarded = session.guarded().map(|point| point.note.operation);
    for note in all(&session.place)? {
        let is_dead = keys.contains(&LockKey::Machine(note.machine).to_string()) && guarded != Some(note.operation);
        if is_dead {
            backup_job::wait_for(&note, COMING.saturating_sub(age(&session.place, &note)))?;
            backup_job::end(&note, &|| ())?;
            clear(&note)?;
            forget(&session.place, &note)?;
        }
    }
    Ok(())
}

/// How long ago its note was made; no time at all where the clock was put back.
fn age(place: &Place, note: &PointNote) -> Duration {
    let made = fs::metadata(note_path(place, note.operation)).and_then(|facts| facts.modified());
    made.ok().and_then(|made| made.elapsed().ok()).unwrap_or_default()
}

/// Removes the files of a job that has ended.
fn clear(note: &PointNote) -> Result<()> {
    for file in note.scratch.iter().chain([&note.socket]) {
        let file = Path::new(file);
        remove_if_there(file).map_err(|error| io_error("removing", file, &error))?;
    }
    Ok(())
}

fn note_path(place: &Place, operation: Uuid) -> PathBuf {
    place.points().join(format!("{operation}.json"))
}

fn put(place: &Place, note: &PointNote) -> Result<()> {
    let path = note_path(place, note.operation);
    let new = path.with_extension("new");
    let text = serde_json::to_vec_pretty(note).map_err(|error| Error::internal(error.to_string()))?;
    let write = || -> std::io::Result<()> {
        // It tells whose machine is copied where, which is nobody else's to know.
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_dir(&place.points())
    };
    write().map_err(|error| io_error("writing the note", &path, &error))
}

fn forget(place: &Place, note: &PointNote) -> Result<()> {
    let path = note_path(place, note.operation);
    remove_if_there(&path).map_err(|error| io_error("removing", &path, &error))
}

/// Every note on this host: of operations that run, and of dead ones.
pub(super) fn all(place: &Place) -> Result<Vec<PointNote>> {
    let dir = place.points();
    let entries = fs::read_dir(&dir).map_err(|error| io_error("listing", &dir, &error))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let notes = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let mut found = Vec::new();
    for path in notes {
        match read(&path) {
            Ok(note) => found.push(note),
            // Its operation may have ended since the directory was read.
            Err(_) if !path.exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<PointNote> {
    let text = fs::read(path).map_err(|error| io_error("reading", path, &error))?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::internal(format!("the note {} cannot be read: {error}", path.display()))
            .with("path", path.display())
            .help("It names scratch files of an interrupted operation; look at them, then remove it")
    })
}
