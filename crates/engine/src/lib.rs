//! Carries kvm-clone's plans out: the library behind the command.
//!
//! Start at [`Client`]: it reaches hosts, lists machines, prepares a clone and, on the returned [`Prepared`], carries it
//! out. The flow of a clone, and where each part of it is:
//! 1. hosts are reached and their agents started: `host`;
//! 2. inventories are taken and planned with `kvm_clone_core::plan`: `inventory`;
//! 3. [`Prepared::execute`] locks, reads again, and runs the saga: `clone`, whose steps are in `step`;
//! 4. disks travel over lanes: `lane`;
//! 5. everything is written down before it is done: `store`;
//! 6. others see it, and may stop it: `operation`;
//! 7. disks are compared with their digests, or with those of another machine: `verify`;
//! 8. what a dead process left is finished or undone: `recover`; or gone on with: `resume`.
#![deny(unsafe_code)]

mod boundary;
mod client;
mod clone;
mod doctor;
mod failure;
mod host;
mod inventory;
mod known;
mod lane;
mod list;
mod locks;
mod operation;
mod outcome;
mod phases;
mod reconnect;
mod recover;
mod report;
mod resume;
mod retry;
mod step;
mod store;
mod verify;

pub use boundary::{Boundary, Moment, Straight, Then};
pub use client::{Client, ClientOptions, HostSpec};
pub use clone::{CloneSettings, Events, Prepared};
pub use doctor::{Finding, Verdict};
pub use host::install::{AgentProgram, Privilege};
pub use host::ssh::SshOptions;
pub use kvm_clone_core as core;
pub use lane::{Ends, Joint, Pipes, RoutePolicy};
pub use operation::{Operation, Operations, Outcome, Shown, Waiting};
pub use outcome::{Checksum, CloneResult, DiskResult, DiskSide, OperationType, PhaseTime, Way};
pub use recover::{Action, Recovered, Recovery};
pub use resume::{Resumed, is_resumable};
pub use retry::{Kept, retrying};
pub use verify::{Against, FileState, Method, VerifiedDisk, VerifiedFile, VerifiedSide, VerifyRequest, VerifyResult};
