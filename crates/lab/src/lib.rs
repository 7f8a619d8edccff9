//! Real libvirt hosts on one machine, for kvm-clone's tests and its demo.
//!
//! A [`Lab`] is a private network with hosts in it. A [`Host`] is a set of Linux namespaces with a root of its own, in
//! which the machine's real `sshd`, `libvirtd` and `qemu` run. Hosts share nothing that two computers would not share.
//! When the lab's owner ends, however it ends, every trace of the lab is removed.
//!
//! Reading order: `lab` (who exists), `root` (what a host is made of), `script/` (how it starts and ends), `host`
//! (what a test does with it), `net`, `storage`, `looped`, `served`, `guest`, `fault`.

pub mod bench;
mod boot;
mod cache;
mod capabilities;
mod error;
pub mod fault;
pub mod guest;
mod host;
mod lab;
mod looped;
mod net;
mod number;
mod require;
mod root;
mod run;
mod served;
mod spec;
mod ssh;
mod storage;

pub use error::{LabError, Result};
pub use guest::{Disk, DiskFormat, DiskSpec, Fill, Machine, MachineSpec, define_machine};
pub use host::{Host, Process};
pub use lab::Lab;
pub use looped::LoopDevice;
pub use require::available;
pub use served::ServedFile;
pub use spec::{HostSpec, Libvirt, Sudo};
pub use storage::FsKind;
