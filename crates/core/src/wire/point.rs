//! Messages about points of running machines.
//!
//! A point is held by a backup job of libvirt's, which the controller begins and the source's control agent guards: it
//! says where the job's socket and scratch files go, watches how much the guest overwrites, and ends the job when it
//! is told to, when scratch space runs short, and when the controller is gone.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::Error;
use crate::name::DiskTarget;

/// Where the scratch files of disks go that are no files in a directory, such as block devices: where images usually are.
pub const SCRATCH_FOR_DEVICES: &str = "/var/lib/libvirt/images";

/// How long after it was asked for a job may still come up, where libvirt's answer is not known: libvirt waits 30 s for the
/// end of another job of the machine (`QEMU_JOB_WAIT_TIME`), whoever asked may be long gone; and a little for what was on
/// its way.
pub const COMING: Duration = Duration::from_secs(35);

/// How long those who read from a job may take to go before it is ended: what is being read is waited for.
pub const GOING: Duration = Duration::from_secs(30);

/// A point to be held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointOrder {
    /// The operation.
    pub operation: Uuid,
    /// Machine and host, for people.
    pub source: String,
    /// The name of the machine that is made of it.
    pub new_name: String,
    /// The machine.
    pub machine: Uuid,
    /// libvirt's number of its process.
    pub domain_id: u32,
    /// The disks, each with its topmost image.
    pub disks: Vec<(DiskTarget, String)>,
    /// Bytes that all scratch files together may take; none leaves half of what is free.
    pub scratch_limit: Option<u64>,
}

/// Where a point's files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointPlace {
    /// The socket that qemu will listen at.
    pub socket: String,
    /// A scratch file for each disk; libvirt makes them.
    pub scratch: Vec<(DiskTarget, String)>,
}

/// The note on the source host about a point, so that anybody who holds the machine's lock can end it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointNote {
    /// The operation.
    pub operation: Uuid,
    /// Machine and host, for people.
    pub source: String,
    /// The name of the machine that was to be made of it.
    pub new_name: String,
    /// The machine.
    pub machine: Uuid,
    /// The socket of its job: while somebody listens there, the job is ours.
    pub socket: String,
    /// Its scratch files.
    pub scratch: Vec<String>,
}

/// How a point fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointState {
    /// Whether its job is there.
    pub held: bool,
    /// Bytes that its scratch files take.
    pub scratch_used: u64,
    /// Why the agent ended it.
    pub ended_because: Option<Error>,
}
