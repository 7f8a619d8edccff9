//! What is known of a machine whose process is there, so that it can be copied while its guest runs.

use std::collections::{BTreeMap, BTreeSet};

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
    /// The size that the guest sees of each disk, as far as the process says.
    pub sizes: BTreeMap<DiskTarget, u64>,
    /// Whether it stands still because its storage failed it, for want of space among others: libvirt-domain,
    /// `VIR_DOMAIN_PAUSED_IOERROR`.
    #[serde(default)]
    pub storage_failed: bool,
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
        self.change_to(other).is_none()
    }

    /// What makes a later look at the machine one at another machine, as far as its copy goes.
    #[must_use]
    pub fn change_to(&self, later: &Self) -> Option<String> {
        let differing = |differs: &dyn Fn(&DiskTarget) -> bool| {
            let all: BTreeSet<&DiskTarget> = self.disks.keys().chain(later.disks.keys()).collect();
            let list: Vec<&str> =
                all.into_iter().filter(|disk| differs(disk)).map(crate::name::DiskTarget::as_str).collect();
            (!list.is_empty()).then(|| list.join(", "))
        };
        if self.id != later.id {
            return Some("was stopped and started".to_owned());
        }
        let plugged = |disk: &DiskTarget| self.disks.contains_key(disk) != later.disks.contains_key(disk);
        if let Some(list) = differing(&plugged) {
            return Some(format!("got or lost disk {list}"));
        }
        // A snapshot puts a new image above the old one; a block job takes one away.
        if let Some(list) = differing(&|disk| self.disks.get(disk) != later.disks.get(disk)) {
            return Some(format!("got another image under disk {list}"));
        }
        // It may be our own scratch files that took the space.
        if later.storage_failed && !self.storage_failed {
            return Some("was paused, as its storage failed or ran out of space,".to_owned());
        }
        // A size that one of the looks could not learn says nothing.
        let resized = |disk: &DiskTarget| {
            self.sizes.get(disk).zip(later.sizes.get(disk)).is_some_and(|(before, now)| before != now)
        };
        differing(&resized).map(|list| format!("got another size of disk {list}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn running() -> LiveMachine {
        let disk: DiskTarget = "vda".parse().unwrap();
        LiveMachine {
            id: 7,
            disks: BTreeMap::from([(disk.clone(), "/a".to_owned())]),
            sizes: BTreeMap::from([(disk, 1 << 20)]),
            storage_failed: false,
            job: None,
            libvirt_version: 9_000_000,
            qemu_version: 7_002_000,
            backup: true,
            virsh: true,
            scratch_available: 1 << 30,
        }
    }

    #[test]
    fn a_change_of_a_machine_that_runs_is_told_in_words() {
        type Change = fn(&mut LiveMachine);
        let vdb = || "vdb".parse().unwrap();
        let cases: [(Change, &str); 6] = [
            (|later| later.id = 8, "was stopped and started"),
            (|later| drop(later.disks.insert("vdb".parse().unwrap(), "/b".to_owned())), "got or lost disk vdb"),
            (|later| later.storage_failed = true, "was paused, as its storage failed or ran out of space,"),
            (|later| later.disks.clear(), "got or lost disk vda"),
            (|later| later.disks.values_mut().for_each(|path| path.push('x')), "got another image under disk vda"),
            (|later| later.sizes.values_mut().for_each(|size| *size += 512), "got another size of disk vda"),
        ];
        for (change, expected) in cases {
            let mut later = running();
            change(&mut later);
            assert_eq!(running().change_to(&later).as_deref(), Some(expected));
        }
        let mut later = running();
        later.job = Some("a backup".to_owned());
        later.sizes.insert(vdb(), 1);
        assert!(running().is_same_process(&later), "jobs come and go, and drives without a disk do not count");
    }
}
