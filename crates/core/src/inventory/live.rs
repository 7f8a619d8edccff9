//! What is known of a machine whose process is there, so that it can be copied while its guest runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::name::DiskTarget;

/// A machine's process, and what libvirt can do with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveMachine {
    /// libvirt's number of the process: another one after each start.
    pub id: u32,
    /// The path, or the volume's name, that each disk of the process has; the definition of the next start may say
    /// otherwise.
    pub disks: BTreeMap<DiskTarget, String>,
    /// The job that runs on the machine, in words.
    pub job: Option<String>,
    /// libvirt's version as it counts: 9.1.2 is 9001002.
    pub libvirt_version: u64,
    /// qemu's version in the same form.
    pub qemu_version: u64,
    /// Whether libvirt can back the machine up: formatdomaincaps, "Features" (`backup`).
    pub backup: bool,
    /// Whether the host has `virsh`, by which the agent ends a job when its controller is gone.
    pub virsh: bool,
    /// Bytes free where the scratch files of the disks will lie; the least, where they lie in several places.
    pub scratch_available: u64,
}

impl LiveMachine {
    /// Whether this is the same process with the same disks.
    #[must_use]
    pub fn is_same_process(&self, other: &Self) -> bool {
        (self.id, &self.disks) == (other.id, &other.disks)
    }
}
