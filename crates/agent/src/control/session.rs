//! What the threads of a control agent share.

use std::collections::HashMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_clone_core::wire::control::{FromAgent, LaneId, StreamId, Welcome};
use kvm_clone_core::wire::lane::{LaneCommand, LaneEvent};
use kvm_clone_core::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::emulator::StateLock;
use super::image::{Growing, Made};
use super::in_place::Taken;
use super::point::Point;
use crate::lock::Locks;
use crate::place::{Place, io_error, private_dir};

/// Messages that wait to be written; when they are this many, whoever adds one waits.
const OUTGOING_LIMIT: usize = 64;
/// Silence that is allowed until the controller has said how long it may be.
const FIRST_SILENCE_SECONDS: u32 = 30;

/// What goes to the controller.
pub(super) enum Outgoing {
    Message(Box<FromAgent>),
    Relay(StreamId, Vec<u8>),
}

/// The state of one control agent.
pub(crate) struct Session {
    pub(super) id: Uuid,
    /// `SSH_CONNECTION`, for lane agents that leave SSH.
    pub(super) connection: String,
    pub(super) place: Place,
    dir: PathBuf,
    /// Holds the session's directory: whoever can lock it knows that this process is gone.
    _alive: fs::File,
    out: SyncSender<Outgoing>,
    end: SyncSender<Result<()>>,
    started: Instant,
    heard_at: AtomicU64,
    told_at: AtomicU64,
    silence_seconds: AtomicU32,
    controller: Mutex<String>,
    locks: Mutex<Option<Locks>>,
    /// States of TPMs that no emulator works on meanwhile.
    states: Mutex<Vec<StateLock>>,
    /// Images that nobody writes to meanwhile.
    images: Mutex<Vec<fs::File>>,
    lanes: Mutex<HashMap<LaneId, Lane>>,
    /// Set when lane agents are ended: one that was still on its way is then refused.
    lanes_closed: AtomicBool,
    /// Orders that change something here and are being carried out.
    changing: AtomicUsize,
    /// Work that all requests have done so far.
    worked: AtomicU64,
    /// Set while programs that were started before are to stop.
    stopping: AtomicBool,
    pub(super) lanes_joined: AtomicUsize,
    /// None once no more may be opened.
    relays: Mutex<Option<HashMap<StreamId, SyncSender<Vec<u8>>>>>,
    point: Mutex<Option<Arc<Point>>>,
    pub(super) growing: Growing,
    pub(super) made: Made,
    pub(super) taken: Taken,
}

impl Session {
    /// A new session with its directory, what is to be written, and where its end is told.
    #[allow(clippy::type_complexity, reason = "three ends of what is made together")]
    pub(super) fn open(
        place: Place,
        connection: &str,
    ) -> Result<(Arc<Self>, Receiver<Outgoing>, Receiver<Result<()>>)> {
        sweep(&place);
        let id = Uuid::new_v4();
        let dir = place.sessions().join(id.to_string());
        let alive = make_dir(&dir)?;
        let (out, outgoing) = mpsc::sync_channel(OUTGOING_LIMIT);
        let (end, ended) = mpsc::sync_channel(4);
        let session = Self {
            id,
            connection: connection.to_owned(),
            place,
            dir,
            _alive: alive,
            out,
            end,
            started: Instant::now(),
            heard_at: AtomicU64::new(0),
            told_at: AtomicU64::new(0),
            silence_seconds: AtomicU32::new(FIRST_SILENCE_SECONDS),
            controller: Mutex::default(),
            locks: Mutex::default(),
            states: Mutex::default(),
            images: Mutex::default(),
            lanes: Mutex::default(),
            lanes_closed: AtomicBool::new(false),
            changing: AtomicUsize::new(0),
            worked: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            lanes_joined: AtomicUsize::new(0),
            relays: Mutex::new(Some(HashMap::new())),
            point: Mutex::default(),
            growing: Growing::default(),
            made: Made::default(),
            taken: Taken::default(),
        };
        Ok((Arc::new(session), outgoing, ended))
    }

    /// A socket of this session's own, gone with it.
    pub(super) fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn lane_socket(&self) -> PathBuf {
        lane_socket(&self.place, self.id)
    }

    /// Takes the session's directory away. Called at the end of the process, whose threads still hold the session.
    pub(super) fn close(&self) {
        drop(self.held_states());
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Sends a message to the controller; waits while too many wait already.
    pub(super) fn tell(&self, message: FromAgent) {
        // A failure means that the writer has ended, and with it the session.
        let _ = self.out.send(Outgoing::Message(Box::new(message)));
    }

    /// Sends a message to the controller, unless too many wait already; whether it was sent.
    pub(super) fn try_tell(&self, message: FromAgent) -> bool {
        self.out.try_send(Outgoing::Message(Box::new(message))).is_ok()
    }

    pub(super) fn relay_out(&self, stream: StreamId, bytes: Vec<u8>) {
        let _ = self.out.send(Outgoing::Relay(stream, bytes));
    }

    /// Ends the session; the first reason counts.
    pub(super) fn end(&self, outcome: Result<()>) {
        let _ = self.end.try_send(outcome);
    }

    pub(super) fn heard(&self) {
        self.heard_at.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn silent_for(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.heard_at.load(Ordering::Relaxed)))
    }

    pub(super) fn silence(&self) -> Duration {
        Duration::from_secs(u64::from(self.silence_seconds.load(Ordering::Relaxed)))
    }

    /// Tells the controller that we live, without waiting: where the channel is full it hears enough of us.
    pub(super) fn heartbeat_if_due(&self, every: Duration) {
        let now = self.now();
        if Duration::from_millis(now - self.told_at.load(Ordering::Relaxed)) >= every {
            self.told_at.store(now, Ordering::Relaxed);
            self.try_tell(FromAgent::Heartbeat);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn welcome(&self, welcome: Welcome) {
        self.silence_seconds.store(welcome.silence_seconds.max(1), Ordering::Relaxed);
        *self.lock(&self.controller) = welcome.controller;
    }

    /// Takes the operation's locks; a session takes them once.
    pub(super) fn take_locks(&self, operation: Uuid, keys: &[String]) -> Result<()> {
        let mut locks = self.lock(&self.locks);
        if locks.is_some() {
            return Err(Error::internal("the locks of this session are taken already"));
        }
        *locks = Some(Locks::take(&self.place, keys, operation, &self.lock(&self.controller))?);
        Ok(())
    }

    pub(super) fn drop_locks(&self) {
        self.lock(&self.states).clear();
        self.lock(&self.images).clear();
        *self.lock(&self.locks) = None;
    }

    /// Holds these states until they are asked back, or until the locks go.
    pub(super) fn hold_states(&self, states: Vec<StateLock>) {
        *self.lock(&self.states) = states;
    }

    /// Holds these images, and no others, until there are others to hold or the locks go.
    pub(super) fn hold_images(&self, images: Vec<fs::File>) {
        *self.lock(&self.images) = images;
    }

    /// Gives back the states that are held.
    pub(super) fn held_states(&self) -> Vec<StateLock> {
        std::mem::take(&mut *self.lock(&self.states))
    }

    /// What a program that works for the operation must hold; none before the locks are taken.
    pub(super) fn users_for_program(&self) -> Result<Vec<fs::File>> {
        self.lock(&self.locks).as_ref().map_or(Ok(Vec::new()), Locks::for_program)
    }

    /// The keys that lane agents hold the users' side of.
    pub(super) fn lock_keys(&self) -> Vec<String> {
        self.lock(&self.locks).as_ref().map(|locks| locks.keys().to_vec()).unwrap_or_default()
    }

    /// Refuses what only the holder of the locks may do.
    pub(super) fn require_locks(&self) -> Result<()> {
        if self.lock(&self.locks).is_some() { Ok(()) } else { Err(Error::internal("the operation holds no locks")) }
    }

    /// Takes a lane agent in, unless they are being ended.
    pub(super) fn add_lane(&self, id: LaneId, lane: Lane) -> bool {
        let mut lanes = self.lock(&self.lanes);
        // Looked at under the mutex, so that none slips in behind the back of `close_lanes`.
        let open = !self.lanes_closed.load(Ordering::Acquire);
        if open {
            lanes.insert(id, lane);
        }
        open
    }

    pub(super) fn remove_lane(&self, lane: LaneId) {
        self.lock(&self.lanes).remove(&lane);
    }

    /// Whether every lane agent that was taken in has ended, and every program that worked for the operation.
    pub(super) fn nothing_works(&self) -> bool {
        let idle = self.lock(&self.lanes).is_empty() && self.changing.load(Ordering::Acquire) == 0;
        idle && self.lock(&self.locks).as_ref().is_none_or(Locks::without_users)
    }

    /// Takes lane agents in again.
    pub(super) fn open_lanes(&self) {
        self.lanes_closed.store(false, Ordering::Release);
    }

    /// Tells every lane agent to end, and takes no more in.
    pub(super) fn close_lanes(&self) {
        let lanes = self.lock(&self.lanes);
        self.lanes_closed.store(true, Ordering::Release);
        lanes.values().for_each(Lane::close);
    }

    /// Ends lane agents that did not end when told.
    pub(super) fn kill_lanes(&self) {
        self.lock(&self.lanes).values().for_each(Lane::kill);
    }

    /// Notes that an order begins that changes something here; it lasts as long as the returned value.
    pub(super) fn begin_change(self: &Arc<Self>) -> Change {
        self.changing.fetch_add(1, Ordering::AcqRel);
        Change(Arc::clone(self))
    }

    pub(super) fn count_work(&self, work: u64) {
        self.worked.fetch_add(work, Ordering::Relaxed);
    }

    pub(super) fn work_done(&self) -> u64 {
        self.worked.load(Ordering::Relaxed)
    }

    /// Whether programs that are running are to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn set_stopping(&self, stopping: bool) {
        self.stopping.store(stopping, Ordering::Release);
    }

    pub(super) fn lane_in(&self, lane: LaneId, command: LaneCommand) {
        let refused = match self.lock(&self.lanes).get(&lane) {
            Some(lane) => lane.commands.try_send(command).is_err(),
            None => true,
        };
        if refused {
            let error = Error::transfer(format!("lane {lane} is gone")).transient();
            self.tell(FromAgent::Lane(lane, LaneEvent::Failed(error)));
        }
    }

    /// Registers a relayed connection and gives it a number; none once relays are closed.
    pub(super) fn add_relay(&self, bytes: SyncSender<Vec<u8>>) -> Option<StreamId> {
        let mut relays = self.lock(&self.relays);
        let relays = relays.as_mut()?;
        let free = (0..StreamId::MAX).find(|id| !relays.contains_key(id)).unwrap_or(StreamId::MAX);
        relays.insert(free, bytes);
        Some(free)
    }

    /// Closes every relayed connection and lets no new one be opened.
    pub(super) fn close_relays(&self) {
        *self.lock(&self.relays) = None;
    }

    /// Guards a point from now on.
    pub(super) fn guard(&self, point: Arc<Point>) {
        *self.lock(&self.point) = Some(point);
    }

    pub(super) fn guarded(&self) -> Option<Arc<Point>> {
        self.lock(&self.point).clone()
    }

    pub(super) fn unguard(&self) {
        *self.lock(&self.point) = None;
    }

    pub(super) fn relay_in(&self, stream: StreamId, bytes: Vec<u8>) {
        let mut relays = self.lock(&self.relays);
        // libvirt's client sends one call and waits for its answer, so a full channel means that libvirtd hangs.
        let Some(relays) = relays.as_mut() else { return };
        if relays.get(&stream).is_some_and(|relay| relay.try_send(bytes).is_err()) {
            relays.remove(&stream);
        }
    }

    pub(super) fn relay_closed(&self, stream: StreamId) {
        if let Some(relays) = self.lock(&self.relays).as_mut() {
            relays.remove(&stream);
        }
    }

    /// A thread that panicked leaves nothing half-changed behind these mutexes.
    #[allow(clippy::unused_self, reason = "reads as an action of the session")]
    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lane agent that joined.
pub(super) struct Lane {
    pub(super) commands: SyncSender<LaneCommand>,
    /// Its life line.
    pub(super) socket: UnixStream,
}

impl Lane {
    fn close(&self) {
        // A socket that is closed already has no lane agent behind it.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }

    fn kill(&self) {
        // The lane's entry is there as long as its process holds the socket, so the pid is still that process's.
        if let Ok(peer) = rustix::net::sockopt::socket_peercred(&self.socket) {
            let _ = rustix::process::kill_process(peer.pid, rustix::process::Signal::KILL);
        }
    }
}

/// An order that changes something, while it is carried out.
pub(super) struct Change(Arc<Session>);

impl Drop for Change {
    fn drop(&mut self) {
        self.0.changing.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where the lane agents of a session find their control agent.
pub(crate) fn lane_socket(place: &Place, session: Uuid) -> PathBuf {
    place.sessions().join(session.to_string()).join("lanes.sock")
}

/// What stands before the name of a session's directory until it is locked.
const YOUNG: &str = "new-";

/// Makes a session's directory. It gets its name only once it is locked, so that one that can be locked is a dead one's.
fn make_dir(dir: &Path) -> Result<fs::File> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let young = dir.with_file_name(format!("{YOUNG}{name}"));
    private_dir(&young)?;
    let alive = fs::File::open(&young).map_err(|error| io_error("opening", &young, &error))?;
    flock(&alive, FlockOperation::LockExclusive).map_err(|error| io_error("locking", &young, &error.into()))?;
    fs::rename(&young, dir).map_err(|error| io_error("renaming", &young, &error))?;
    Ok(alive)
}

/// Removes the directories of sessions whose processes are gone.
fn sweep(place: &Place) {
    let Ok(entries) = fs::read_dir(place.sessions()) else { return };
    for entry in entries.flatten() {
        let Ok(dir) = fs::File::open(entry.path()) else { continue };
        let young = entry.file_name().to_string_lossy().starts_with(YOUNG);
        let age = entry.metadata().and_then(|facts| facts.modified()).ok().and_then(|time| time.elapsed().ok());
        let settled = !young || age.is_none_or(|age| age > Duration::from_secs(60));
        if settled && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
