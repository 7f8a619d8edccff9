//! What a lane carries is damaged between its ends: noticed, undone, said.

use std::fs::File;
use std::io::{Read, Result as IoResult, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::*;
use kvm_clone_core::plan::CloneRequest;
use kvm_clone_core::wire::MAGIC;
use kvm_clone_core::wire::frame::HEADER_LEN;
use kvm_clone_core::wire::lane::Verify;
use kvm_clone_engine::{Client, CloneSettings, Ends, Joint, RoutePolicy};
use kvm_clone_lab::{Host, Lab};

/// What happens to the stream after some good frames.
#[derive(Debug, Clone, Copy)]
enum Fault {
    FlipHeader,
    FlipBody,
    FlipPayload,
    HugeLength,
    Truncate,
    Swap,
    Repeat,
    Garbage,
}

/// Frames that pass before the fault.
const GOOD_FRAMES: usize = 5;

/// Joins a lane's ends with a fault in the stream from source to target.
#[derive(Debug)]
struct Broken(Fault);

impl Joint for Broken {
    fn join(&self) -> IoResult<Ends> {
        let fault = self.0;
        joined_by(move |input, output| {
            let _ = carry(input, output, fault);
        })
    }
}

/// The ends of a lane with a thread in the stream from source to target, which carries as it likes.
fn joined_by(carry: impl FnOnce(File, File) + Send + 'static) -> IoResult<Ends> {
    let (from_source, source_out) = std::io::pipe()?;
    let (target_in, to_target) = std::io::pipe()?;
    let (source_in, target_out) = std::io::pipe()?;
    std::thread::spawn(move || carry(OwnedFd::from(from_source).into(), OwnedFd::from(to_target).into()));
    Ok(Ends {
        source_out: source_out.into(),
        target_in: target_in.into(),
        target_out: target_out.into(),
        source_in: source_in.into(),
    })
}

fn carry(mut input: File, mut output: File, fault: Fault) -> IoResult<()> {
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic)?;
    output.write_all(&magic)?;
    for _ in 0..GOOD_FRAMES {
        output.write_all(&frame(&mut input)?)?;
    }
    let mut bad = frame(&mut input)?;
    match fault {
        Fault::FlipHeader => bad[9] ^= 1,
        Fault::FlipBody => bad[HEADER_LEN] ^= 0x10,
        Fault::FlipPayload => *bad.last_mut().unwrap() ^= 1,
        Fault::HugeLength => bad[12..16].copy_from_slice(&u32::MAX.to_le_bytes()),
        Fault::Truncate => return output.write_all(&bad[..bad.len() / 2]),
        Fault::Swap => {
            let next = frame(&mut input)?;
            output.write_all(&next)?;
        }
        Fault::Repeat => output.write_all(&bad)?,
        Fault::Garbage => bad.fill(0xa5),
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

async fn refuses(lab: &Lab, beta: &Host, fault: Fault, verify: Verify) {
    let client = client(lab).await;
    let joint = Arc::new(Broken(fault));
    let settings = CloneSettings { joint, route: RoutePolicy::Relay, verify, ..CloneSettings::default() };
    let error = clone_with(&client, "alpha", "beta", "web1", CloneRequest::default(), &settings).await.unwrap_err();
    assert_eq!(number(&error), 1006, "{fault:?}: {error:?}");
    assert!(!error.help.is_empty(), "{fault:?}: {error:?}");
    drop(client);
    assert_nothing_left(beta);
    assert!(machines(beta).is_empty(), "{fault:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_frames_are_refused_and_undone() {
    let Some((lab, hosts)) = two_hosts("damaged_frames_are_refused_and_undone") else { return };
    let [alpha, beta] = &hosts;
    make_machine(alpha, "web1", 16 * MIB);
    beta.provide_guest().unwrap();
    let all = [
        Fault::FlipHeader,
        Fault::FlipBody,
        Fault::FlipPayload,
        Fault::HugeLength,
        Fault::Truncate,
        Fault::Swap,
        Fault::Repeat,
        Fault::Garbage,
    ];
    for fault in all {
        refuses(&lab, beta, fault, Verify::On).await;
    }
    refuses(&lab, beta, Fault::FlipPayload, Verify::Off).await;
}

/// Joins a lane's ends by a pipe that takes no more after some bytes, as a network that hangs.
#[derive(Debug)]
struct Stuck;

impl Joint for Stuck {
    fn join(&self) -> IoResult<Ends> {
        joined_by(|input, mut output| {
            let mut input = input.take(MIB);
            let _ = std::io::copy(&mut input, &mut output);
            // Both ends stay open.
            std::thread::sleep(Duration::from_secs(60));
            drop((input, output));
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_hangs_is_given_up_after_the_stall_timeout() {
    let Some((lab, hosts)) = two_hosts("a_lane_that_hangs_is_given_up") else { return };
    let [alpha, beta] = &hosts;
    make_machine(alpha, "web1", 16 * MIB);
    beta.provide_guest().unwrap();
    let mut options = options(&lab);
    options.stall_timeout = Duration::from_secs(3);
    let client = Client::new(options).await.unwrap();
    let settings = CloneSettings { joint: Arc::new(Stuck), route: RoutePolicy::Relay, ..CloneSettings::default() };
    let started = Instant::now();
    let error = clone_with(&client, "alpha", "beta", "web1", CloneRequest::default(), &settings).await.unwrap_err();
    assert_eq!(number(&error), 1010, "{error:?}");
    assert!(error.message.contains("nothing moved for 3 s"), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    drop(client);
    assert_nothing_left(beta);
    assert!(machines(beta).is_empty());
}
