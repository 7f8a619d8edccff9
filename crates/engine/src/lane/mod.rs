//! Copying disks over lanes: which segments there are, who carries them, what became of them.

mod direct;
mod joint;
mod schedule;
mod tally;

use std::collections::BTreeMap;
use std::time::Duration;

use kvm_clone_core::blocks::{BlockSize, DigestKey};
use kvm_clone_core::event::Event;
use kvm_clone_core::inventory::SourceMachine;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::wire::control::{LaneId, Reply, Request};
use kvm_clone_core::wire::direct::Route;
use kvm_clone_core::wire::lane::{Base, Compared, ImageSpec, LaneCommand, LaneEvent, Segment, Verify};
use kvm_clone_core::{Error, Result};
use tokio::sync::mpsc;

use crate::host::Host;
use crate::host::control::unexpected;
use crate::inventory;
pub use direct::RoutePolicy;
use joint::Lane;
pub use joint::{Ends, Joint, Pipes};
use schedule::{Schedule, Work};
use tally::Tally;

/// Length of a segment: small enough to spread a small disk over lanes and to show progress, large enough that opening
/// the image anew for reading it back does not count.
const SEGMENT_LEN: u64 = 64 << 20;
/// No lane is opened for less than this: a connection costs as much as copying it.
const LANE_WORTH: u64 = 256 << 20;
/// How long lane agents may take to report ready.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// After a lane failed, how long others may take to tell their side: the first to notice is often not the cause.
const CAUSE_WINDOW: Duration = Duration::from_millis(300);

/// A disk to be copied, or a file beside the disks: to a lane both are bytes.
#[derive(Debug, Clone)]
pub(crate) struct CopyDisk {
    /// The disk's target device; for a file, what it is.
    pub(crate) target: DiskTarget,
    pub(crate) source: ImageSpec,
    pub(crate) staging: ImageSpec,
    /// What the target has of it: then only what differs is sent, and the staging image is an overlay over this one.
    pub(crate) base: Option<Base>,
    /// Whether an interrupted try has left something in the staging image: what is right in it is not sent again.
    pub(crate) begun: bool,
    /// Whether both sides are known to hold the same, so that nothing of it is read.
    pub(crate) untouched: bool,
    /// Whether the replica's own image is written: then that is the staging image, too.
    pub(crate) in_place: bool,
    pub(crate) manifest: String,
    pub(crate) size: u64,
    /// The name of the finished image.
    pub(crate) path: String,
    pub(crate) kind: Kind,
    /// Whose the finished image is; none leaves it to libvirt.
    pub(crate) owner: Option<(u32, u32)>,
}

impl CopyDisk {
    /// What the target has of it, to a lane: a new image that was begun is its own base.
    fn there(&self) -> Option<Base> {
        let begun = self.begun;
        match &self.base {
            Some(base) => Some(Base { begun, ..base.clone() }),
            None => begun.then(|| Base { image: self.staging.clone(), digests: None, begun }),
        }
    }

    /// Whether only what differs is sent.
    fn is_compared(&self) -> bool {
        self.base.is_some() || self.begun
    }

    /// Whether a file is one of its images, on either side.
    fn lies_in(&self, path: &str) -> bool {
        let bases = self.base.iter().map(|base| &base.image);
        let images = [&self.source, &self.staging].into_iter().chain(bases);
        let mut files =
            images.flat_map(|image| [&image.path].into_iter().chain(image.backing.iter().map(|(path, _)| path)));
        files.any(|file| file == path)
    }

    /// The images that hold what the target has of it.
    fn images_there(&self) -> impl Iterator<Item = &ImageSpec> {
        self.base.iter().map(|base| &base.image).chain(self.begun.then_some(&self.staging))
    }
}

/// What a thing to be copied is to its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Disk,
    /// A file beside the disks, copied as it is.
    File,
    /// A disk whose image is carried as the file that it is; settled after it was compared.
    Whole,
}

/// What is to be copied, and how.
pub(crate) struct Copy<'a> {
    pub(crate) source: &'a Host,
    pub(crate) target: &'a Host,
    pub(crate) disks: &'a [CopyDisk],
    pub(crate) key: &'a DigestKey,
    /// The unit of comparison.
    pub(crate) block: BlockSize,
    pub(crate) verify: Verify,
    pub(crate) lanes: u16,
    pub(crate) stall: Duration,
    pub(crate) joint: &'a dyn Joint,
    pub(crate) route: RoutePolicy,
    pub(crate) events: &'a (dyn Fn(Event) + Send + Sync),
}

/// What lane agents tell.
type Told = mpsc::Receiver<(LaneId, LaneEvent)>;

/// What was moved.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moved {
    /// Bytes read at the source.
    pub(crate) read: u64,
    /// Bytes read at the target to know what is there already.
    pub(crate) looked: u64,
    /// Bytes of blocks and framing that went to the target.
    pub(crate) sent: u64,
    /// Bytes of digests and of asking for them, in both directions.
    pub(crate) digests: u64,
    /// Bytes written at the target.
    pub(crate) written: u64,
    /// Bytes that an interrupted try had left at the target, and that were right.
    pub(crate) kept: u64,
    /// Of the disks that were compared, the blocks that hold data at either end, and those that differed.
    pub(crate) compared: Compared,
    /// Blocks, by disk, that had been changed at the target, and were discarded.
    pub(crate) diverged: Vec<u64>,
    pub(crate) data_blocks: u64,
    /// Blocks that hold data, by disk, as the source's lane agents counted them.
    pub(crate) source_blocks: Vec<u64>,
    /// The way that the lanes took.
    pub(crate) route: Route,
}

/// Copies all disks; also returns what the user should know of how. On return, with success or not, no lane agent is
/// left that could write.
pub(crate) async fn copy(copy: Copy<'_>) -> Result<(Moved, Vec<String>)> {
    let work = find_work(&copy).await?;
    for (disk, total) in copy.disks.iter().zip(work.totals(copy.disks.len())) {
        (copy.events)(Event::Disk { disk: disk.target.clone(), bytes_total: total });
    }
    let mut told = listen(&copy);
    let lanes = open(&copy, work.bytes(), &mut told).await;
    let outcome = match &lanes {
        Ok(lanes) => carry(&copy, lanes, work, &mut told).await.map_err(|error| naming_disk(copy.disks, error)),
        Err(error) => Err(error.clone()),
    };
    end(&copy).await;
    let mut notes: Vec<String> = lanes.into_iter().flatten().flat_map(|lane| lane.notes).collect();
    outcome.map(|(moved, more)| {
        notes.extend(more);
        (moved, notes)
    })
}

/// From now on lane agents tell what happens here, and nowhere else.
fn listen(copy: &Copy<'_>) -> Told {
    let (tell, told) = mpsc::channel(1024);
    copy.source.control.lane_events(tell.clone());
    copy.target.control.lane_events(tell);
    told
}

/// Opens the lanes: from host to host if that is wanted and can be, else over SSH.
async fn open(copy: &Copy<'_>, bytes: u64, told: &mut Told) -> Result<Vec<Lane>> {
    let count = lane_count(copy, bytes);
    if direct::is_wanted(copy, bytes) {
        if let Some(lanes) = direct::open(copy, count, told).await? {
            return Ok(lanes);
        }
        // What was started for nothing ends first, and what it may still say with it.
        end(copy).await;
        tokio::try_join!(copy.source.control.order(Request::OpenLanes), copy.target.control.order(Request::OpenLanes),)?;
        *told = listen(copy);
    }
    let lanes = joint::open(copy.source, copy.target, count, copy.joint).await?;
    await_ready(copy, &lanes, told).await?;
    Ok(lanes)
}

/// As many lanes as were asked for, as the data is worth, and as there are processors: a lane keeps one busy at each end.
fn lane_count(copy: &Copy<'_>, bytes: u64) -> u16 {
    let worth = u16::try_from(bytes.div_ceil(LANE_WORTH)).unwrap_or(u16::MAX);
    let processors = copy.source.facts.cpus.min(copy.target.facts.cpus);
    copy.lanes.min(worth).min(u16::try_from(processors).unwrap_or(u16::MAX)).max(1)
}

/// Ends whatever lane agents there are, so that nothing writes any more.
async fn end(copy: &Copy<'_>) {
    // A host that is gone ends its lane agents itself: its control agent's end is theirs. One that hangs does not hold up the
    // other.
    let (source, target) = (&copy.source.control, &copy.target.control);
    let _ = tokio::join!(source.order(Request::EndLanes), target.order(Request::EndLanes));
}

/// Has the host of a machine that does not run begin to read what will be copied first, while the other host is still being
/// reached. What cannot be read will be told when it is to be copied.
pub(crate) async fn read_ahead(host: &Host, machine: &SourceMachine) {
    if machine.live.is_some() {
        return;
    }
    for image in machine.images.values().filter_map(|chain| inventory::spec(chain).ok()) {
        let _ = host.control.ask(Request::Segments { image, segment_len: SEGMENT_LEN, from: 0 }).await;
    }
}

/// Asks which segments hold data: at the source, and where the target has something, there too.
async fn find_work(copy: &Copy<'_>) -> Result<Work> {
    let mut work = Work::default();
    for (index, disk) in (0..).zip(copy.disks).filter(|(_, disk)| !disk.untouched) {
        let named = |error: Error| error.with("disk", &disk.target);
        let mut found = segments(copy.source, &disk.source).await.map_err(named)?;
        for image in disk.images_there() {
            for (number, bytes) in segments(copy.target, image).await.map_err(named)? {
                // Mostly the same bytes as at the source.
                let both = found.entry(number).or_default();
                *both = bytes.max(*both);
            }
        }
        for (number, bytes) in found {
            let offset = number * SEGMENT_LEN;
            let len = SEGMENT_LEN.min(disk.size.saturating_sub(offset));
            let segment = Segment { disk: index, offset, len };
            if disk.is_compared() { work.add_compared(segment, bytes) } else { work.add(segment, bytes) }
        }
    }
    Ok(work)
}

/// The segments of an image that may hold data, by number, with so many bytes of it.
async fn segments(host: &Host, image: &ImageSpec) -> Result<BTreeMap<u64, u64>> {
    let mut found = BTreeMap::new();
    let mut from = Some(0);
    while let Some(first) = from {
        let ask = Request::Segments { image: image.clone(), segment_len: SEGMENT_LEN, from: first };
        let (segments, next) = match host.control.ask(ask).await? {
            Reply::Segments { segments, next } => (segments, next),
            other => return Err(unexpected(&other)),
        };
        found.extend(segments);
        from = next;
    }
    Ok(found)
}

/// Lane agents name the file and the place in it; which disk that is, nobody knows but who planned it.
fn naming_disk(disks: &[CopyDisk], error: Error) -> Error {
    let mut owners = disks.iter().filter(|disk| error.context.get("path").is_some_and(|path| disk.lies_in(path)));
    match (owners.next(), owners.next()) {
        (Some(disk), None) if !error.context.contains_key("disk") => error.with("disk", &disk.target),
        _ => error,
    }
}

/// Deals segments to lanes until all are verified at the target; also returns what the user should know.
async fn carry(copy: &Copy<'_>, lanes: &[Lane], work: Work, told: &mut Told) -> Result<(Moved, Vec<String>)> {
    start(copy, lanes).await?;
    let mut schedule = Schedule::new(work, lanes.len());
    let mut tally = Tally::new(copy, lanes.first().map_or(Route::Relay, |lane| lane.route));
    let mut finished = 0;
    for lane in 0..lanes.len() {
        deal(copy, lanes, &mut schedule, lane).await?;
    }
    while finished < lanes.len() * 2 {
        let (id, event) = next(copy, told).await?;
        match event {
            LaneEvent::Done { segment, .. } => {
                let progress = schedule.done(joint::lane_of(id), segment)?;
                let disk = copy.disks[usize::from(segment.disk)].target.clone();
                (copy.events)(Event::Progress { disk, bytes_done: progress.done, bytes_total: progress.total });
                deal(copy, lanes, &mut schedule, joint::lane_of(id)).await?;
            }
            LaneEvent::Finished => finished += 1,
            LaneEvent::Failed(error) => return Err(cause(error, told).await),
            _ => {}
        }
        tally.note(copy, &event);
        let Moved { read, sent, written, .. } = tally.moved;
        (copy.events)(Event::Moved { bytes_read: read, bytes_sent: sent, bytes_written: written });
    }
    Ok(tally.end(copy))
}

async fn await_ready(copy: &Copy<'_>, lanes: &[Lane], told: &mut Told) -> Result<()> {
    let ready = async {
        let mut ready = 0;
        while ready < lanes.len() * 2 {
            match told.recv().await {
                Some((_, LaneEvent::Ready)) => ready += 1,
                Some((_, LaneEvent::Failed(error))) => return Err(error),
                Some(_) => {}
                None => return Err(Error::connection("an agent is gone").transient()),
            }
        }
        Ok(())
    };
    let late = |_| {
        Error::timeout("the lane agents did not start")
            .help("Look at sshd's log on the hosts: MaxSessions or MaxStartups may be too low")
            .transient()
    };
    tokio::select! {
        ready = tokio::time::timeout(READY_DEADLINE, ready) => ready.map_err(late)?,
        // A host that is lost is known to be long before its lanes are late.
        error = copy.source.control.gone() => Err(error),
        error = copy.target.control.gone() => Err(error),
    }
}

async fn start(copy: &Copy<'_>, lanes: &[Lane]) -> Result<()> {
    let disks = || copy.disks.iter();
    for lane in lanes {
        let source = LaneCommand::Source {
            disks: disks().map(|disk| disk.source.clone()).collect(),
            compared: (0..).zip(disks()).filter(|(_, disk)| disk.is_compared()).map(|(index, _)| index).collect(),
            key: copy.key.clone(),
            block: copy.block,
            route: lane.route,
        };
        let target = LaneCommand::Target {
            disks: disks().map(|disk| disk.staging.clone()).collect(),
            bases: disks().map(CopyDisk::there).collect(),
            manifests: disks().map(|disk| disk.manifest.clone()).collect(),
            key: copy.key.clone(),
            block: copy.block,
            verify: copy.verify,
            route: lane.route,
        };
        copy.source.control.lane(lane.source, source).await?;
        copy.target.control.lane(lane.target, target).await?;
    }
    Ok(())
}

/// Gives a lane what it can take: the next segments, or the word that there are no more. Of what is compared both ends are
/// told, so that they read at the same time.
async fn deal(copy: &Copy<'_>, lanes: &[Lane], schedule: &mut Schedule, lane: usize) -> Result<()> {
    for command in schedule.next(lane) {
        if let LaneCommand::Send(segment) = command
            && copy.disks.get(usize::from(segment.disk)).is_some_and(CopyDisk::is_compared)
        {
            copy.target.control.lane(lanes[lane].target, LaneCommand::Compare(segment)).await?;
        }
        copy.source.control.lane(lanes[lane].source, command).await?;
    }
    Ok(())
}

/// The next event; an error when an agent is gone, or nothing happened for too long.
async fn next(copy: &Copy<'_>, told: &mut Told) -> Result<(LaneId, LaneEvent)> {
    tokio::select! {
        event = tokio::time::timeout(copy.stall, told.recv()) => match event {
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(Error::connection("an agent is gone").transient()),
            Err(_) => Err(Error::timeout(format!("nothing moved for {} s", copy.stall.as_secs()))
                .help("The network or a disk hangs; --stall-timeout sets how long we wait")
                .transient()),
        },
        error = copy.source.control.gone() => Err(error),
        error = copy.target.control.gone() => Err(error),
    }
}

/// Of several failures the one that caused the others: a broken stream is a consequence.
async fn cause(first: Error, told: &mut Told) -> Error {
    let mut cause = first;
    let window = tokio::time::sleep(CAUSE_WINDOW);
    tokio::pin!(window);
    while cause.transient {
        tokio::select! {
            () = &mut window => break,
            event = told.recv() => match event {
                Some((_, LaneEvent::Failed(error))) if !error.transient => cause = error,
                Some(_) => {}
                None => break,
            },
        }
    }
    cause
}
