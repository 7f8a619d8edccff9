//! Both ends of a lane in one process, with the tests in the place of controller and control agents.

use std::fs::File;
use std::io::{Read, Result as IoResult, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_clone_core::Result;
use kvm_clone_core::wire::MAGIC;
use kvm_clone_core::wire::frame::{HEADER_LEN, decode};
use kvm_clone_core::wire::lane::{Compared, ImageSpec, LaneCommand, LaneEvent, Segment};

use super::super::direct::{Input, Output};
use super::super::join::Events;
use super::super::source::{self, Source};
use super::super::target::{self, Target};
use crate::device::new_qcow2::AtomicChunks;
use crate::device::{ChunkAllocator, ReadDevice, WriteDevice};
use crate::stream::FrameReader;

/// A lane that hangs is found by this.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens to a frame.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    FlipHeader,
    FlipBody,
    FlipPayload,
    Cut,
    Drop,
    Repeat,
    Swap,
}

/// Damage to one of a lane's two streams: what happens to which frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Damage {
    pub(super) fault: Fault,
    pub(super) frame: usize,
    /// On the way back to the source.
    pub(super) back: bool,
}

/// How a lane is driven.
#[derive(Default)]
pub(super) struct Drive {
    pub(super) segments: Vec<Segment>,
    pub(super) damage: Option<Damage>,
    /// Whether the streams hold as few bytes as pipes can.
    pub(super) narrow: bool,
    /// In the place of the disks.
    pub(super) source_devices: Option<Vec<Arc<dyn ReadDevice>>>,
    pub(super) target_devices: Option<Vec<Arc<dyn WriteDevice>>>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Came {
    /// Both ends are done, or the first failure.
    pub(super) outcome: Result<()>,
    pub(super) events: Vec<LaneEvent>,
}

impl Came {
    pub(super) fn compared(&self) -> Compared {
        let mut sum = Compared::default();
        for event in &self.events {
            if let LaneEvent::Done { compared, .. } = event {
                sum.blocks += compared.blocks;
                sum.differing += compared.differing;
            }
        }
        sum
    }

    pub(super) fn done(&self) -> Vec<Segment> {
        let done = |event: &LaneEvent| match event {
            LaneEvent::Done { segment, .. } => Some(*segment),
            _ => None,
        };
        self.events.iter().filter_map(done).collect()
    }

    fn sum(&self, count: impl Fn(&LaneEvent) -> Option<u64>) -> u64 {
        self.events.iter().filter_map(count).sum()
    }

    pub(super) fn digest_bytes(&self) -> u64 {
        self.sum(|event| if let LaneEvent::Sent { digests, .. } = event { Some(*digests) } else { None })
    }

    pub(super) fn sent(&self) -> u64 {
        self.sum(|event| if let LaneEvent::Sent { sent, .. } = event { Some(*sent) } else { None })
    }

    pub(super) fn looked(&self) -> u64 {
        self.sum(|event| if let LaneEvent::Looked(bytes) = event { Some(*bytes) } else { None })
    }

    pub(super) fn written(&self) -> u64 {
        self.sum(|event| if let LaneEvent::Written(bytes) = event { Some(*bytes) } else { None })
    }

    pub(super) fn kept(&self) -> u64 {
        self.sum(|event| if let LaneEvent::Done { kept, .. } = event { Some(*kept) } else { None })
    }

    pub(super) fn diverged(&self) -> u64 {
        self.sum(|event| if let LaneEvent::Diverged { blocks, .. } = event { Some(*blocks) } else { None })
    }

    pub(super) fn disbelieved(&self) -> Vec<&str> {
        fn why(event: &LaneEvent) -> Option<&str> {
            match event {
                LaneEvent::Disbelieved { why, .. } => Some(why),
                _ => None,
            }
        }
        self.events.iter().filter_map(why).collect()
    }
}

/// Has a lane carry segments. Returns when both ends are done, or one has failed: what the other one then still does ends
/// with the test's process.
pub(super) fn carry(source: Source, target: Target, drive: Drive) -> Came {
    let (blocks_out, blocks_in) = stream(&drive, false);
    let (digests_out, digests_in) = stream(&drive, true);
    let (give_source, source_commands) = mpsc::channel();
    let (give_target, target_commands) = mpsc::channel();
    for segment in &drive.segments {
        give_source.send(LaneCommand::Send(*segment)).unwrap();
        if source.compared.contains(&segment.disk) {
            give_target.send(LaneCommand::Compare(*segment)).unwrap();
        }
    }
    give_source.send(LaneCommand::Finish).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let (source_events, source_heard) = hear(&told, give_source, Vec::new());
    let (target_events, target_heard) = hear(&told, give_target, target.disks.clone());
    let (end, ended) = mpsc::channel();
    let target_end = end.clone();
    thread::spawn(move || {
        let streams: (Output, Input) = (Box::new(blocks_out), Box::new(digests_in));
        let came = match drive.source_devices {
            Some(devices) => source::run_on(devices, &source, streams, source_commands, &source_events),
            None => source::run(&source, streams, source_commands, &source_events),
        };
        source_events.tell(&LaneEvent::Finished);
        end.send(came).unwrap();
    });
    thread::spawn(move || {
        let streams: (Output, Input) = (Box::new(digests_out), Box::new(blocks_in));
        let came = match drive.target_devices {
            Some(devices) => {
                let chunks = mpsc::sync_channel(1).0;
                target::run_on(devices, target, streams, (target_commands, chunks), &target_events)
            }
            None => target::run(target, streams, target_commands, &target_events),
        };
        target_events.tell(&LaneEvent::Finished);
        target_end.send(came).unwrap();
    });
    let next = || ended.recv_timeout(PATIENCE).expect("the lane hangs");
    let outcome = match next() {
        Ok(()) => next(),
        // As the controller does it: a stream that broke is what follows from the other end's failure.
        Err(broke) if broke.transient => next().and(Err(broke)),
        cause => cause,
    };
    if outcome.is_ok() {
        source_heard.join().unwrap();
        target_heard.join().unwrap();
    }
    let events = told.lock().unwrap().clone();
    Came { outcome, events }
}

/// A control agent, as far as lane agents know: it keeps what they tell, and gives them room in growing images.
fn hear(
    told: &Arc<Mutex<Vec<LaneEvent>>>,
    commands: Sender<LaneCommand>,
    images: Vec<ImageSpec>,
) -> (Arc<Events>, JoinHandle<()>) {
    let (near, far) = UnixStream::pair().unwrap();
    let events = Arc::new(Events::to(near).unwrap());
    let told = Arc::clone(told);
    let chunks: Vec<_> = images.iter().map(|image| AtomicChunks::of(Path::new(&image.path)).ok()).collect();
    let hearing = thread::spawn(move || {
        let mut input = FrameReader::new(far);
        input.expect_magic().unwrap();
        while let Ok(Some((_, body))) = input.next() {
            match decode(body).unwrap() {
                LaneEvent::WantChunk(disk) => {
                    let host_offset = chunks[usize::from(disk)].as_ref().unwrap().next_chunk().unwrap();
                    commands.send(LaneCommand::Chunk { disk, host_offset }).unwrap();
                }
                LaneEvent::Finished => break,
                event => told.lock().unwrap().push(event),
            }
        }
    });
    (events, hearing)
}

/// One of the lane's streams.
fn stream(drive: &Drive, back: bool) -> (File, File) {
    let (out, into) = pipe(drive.narrow);
    let Some(damage) = drive.damage.filter(|damage| damage.back == back) else { return (into, out) };
    let (damaged, onward) = pipe(drive.narrow);
    thread::spawn(move || drop(pass(out, onward, damage)));
    (into, damaged)
}

fn pipe(narrow: bool) -> (File, File) {
    let (out, into) = std::io::pipe().unwrap();
    if narrow {
        rustix::pipe::fcntl_setpipe_size(&into, 4096).unwrap();
    }
    (OwnedFd::from(out).into(), OwnedFd::from(into).into())
}

fn pass(mut input: File, mut output: File, damage: Damage) -> IoResult<()> {
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic)?;
    output.write_all(&magic)?;
    for _ in 0..damage.frame {
        output.write_all(&frame(&mut input)?)?;
    }
    let mut bad = frame(&mut input)?;
    match damage.fault {
        // Not a length: who waits for more than ever comes is found by the controller.
        Fault::FlipHeader => bad[4] ^= 1,
        Fault::FlipBody => bad[HEADER_LEN] ^= 0x10,
        Fault::FlipPayload => *bad.last_mut().unwrap() ^= 1,
        Fault::Cut => return output.write_all(&bad[..bad.len() / 2]),
        Fault::Drop => bad.clear(),
        Fault::Repeat => output.write_all(&bad)?,
        Fault::Swap => {
            let next = frame(&mut input)?;
            output.write_all(&next)?;
        }
    }
    output.write_all(&bad)?;
    std::io::copy(&mut input, &mut output).map(drop)
}

fn frame(input: &mut File) -> IoResult<Vec<u8>> {
    let mut frame = vec![0; HEADER_LEN];
    input.read_exact(&mut frame)?;
    let word = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().unwrap()) as usize;
    let rest = word(8) + word(12);
    frame.resize(HEADER_LEN + rest, 0);
    input.read_exact(&mut frame[HEADER_LEN..])?;
    Ok(frame)
}
