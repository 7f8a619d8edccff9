//! Machines on the lab's hosts: their disks, their definition, and a small real guest that boots in seconds.

mod disk;
mod fill;
mod image;
mod machine;
mod records;
mod trial;

pub use disk::{Disk, DiskFormat, DiskSpec};
pub use fill::Fill;
pub use machine::{Machine, MachineSpec, define_machine};
pub use records::{Records, records};
pub use trial::DomainType;
