//! What an agent tells of its host and of the files there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::inventory::{FileId, HostId, Topology};

/// What identifies the contents of a file on a local file system: if none of it changed, nobody wrote. How the file was looked
/// at is no part of that, so equal ones may differ in it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Identity {
    /// Size in bytes.
    pub size: u64,
    /// Device and inode.
    pub inode: (u64, u64),
    /// Time of the last write, nanoseconds since the epoch.
    pub modified: i128,
    /// Time of the last change of contents or attributes, nanoseconds since the epoch.
    pub changed: i128,
    /// Whether nobody had it open for writing at that look, and its last change was over. Else a write may have been on its
    /// way whose time was taken already, and what is read after the look need not be what is there in the end.
    #[serde(default)]
    pub quiet: bool,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        let what = |identity: &Self| (identity.size, identity.inode, identity.modified, identity.changed);
        what(self) == what(other)
    }
}

impl Eq for Identity {}

impl Identity {
    /// Whether both are one file, written to by nobody between the two looks. Renaming it, giving it away or booting the
    /// host (which may number its devices anew) changes nothing of that.
    #[must_use]
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.inode.1, self.size, self.modified) == (other.inode.1, other.size, other.modified)
    }
}

/// A path on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathFacts {
    /// Whether something is there.
    pub exists: bool,
    /// Whether it is a directory.
    pub directory: bool,
    /// Bytes that can be written to the file system it is or would be on; 0 where its directory is missing.
    pub available: u64,
    /// Which file it leads to.
    pub file: Option<FileId>,
    /// Whether it leads to a file, and to no directory, device or socket.
    pub regular: bool,
    /// Of a device, what it calls itself on every host that reaches it.
    pub device_id: Option<String>,
}

impl PathFacts {
    /// Which file it leads to, where it is one that can be removed: a device is only named there, by its node in `/dev`.
    #[must_use]
    pub fn removable(&self) -> Option<FileId> {
        self.file.filter(|_| self.regular && self.device_id.is_none())
    }
}

/// A finished image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedImage {
    /// What identifies it from now on.
    pub identity: Identity,
    /// Bytes it takes on the host.
    pub allocated: u64,
    /// The root over its digests.
    pub root: [u8; 32],
    /// Blocks that hold data.
    pub data_blocks: u64,
}

/// What an agent knows of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The random id of this host.
    pub id: HostId,
    /// Its name.
    pub hostname: String,
    /// `uname -m`.
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// Processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_total: u64,
    /// Memory that can be had without swapping, in bytes.
    pub memory_available: u64,
    /// Whether the processors have AES instructions.
    pub aes: bool,
    /// The user that the agent runs as.
    pub uid: u32,
    /// Whether `/dev/kvm` can be opened.
    pub kvm: bool,
    /// libvirt's sockets that exist, in the order in which they are tried.
    pub libvirt_sockets: Vec<String>,
    /// Programs that we may need, with their paths; those missing are not here.
    pub programs: BTreeMap<String, String>,
    /// Where manifests, markers and agents are kept.
    pub state_dir: String,
    /// Where libvirt keeps firmware variables that no definition names.
    pub nvram_dir: String,
    /// Where libvirt keeps the states of emulated TPMs.
    pub tpm_dir: String,
    /// User and group that emulators of TPMs run as; none where that is the agent's user.
    pub tpm_owner: Option<(u32, u32)>,
    /// Random id of this boot.
    pub boot_id: String,
    /// Bridges that interfaces can be put on.
    pub bridges: Vec<String>,
    /// Network devices.
    pub links: Vec<String>,
    /// Addresses of its own.
    pub addresses: BTreeSet<IpAddr>,
    /// CPUs, NUMA nodes and huge pages.
    pub topology: Topology,
    /// Seconds since the epoch, for finding clocks that differ.
    pub clock: i64,
}
