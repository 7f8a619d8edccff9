//! Counting what lane agents tell.

use std::collections::BTreeSet;

use kvm_clone_core::wire::control::DiskIndex;
use kvm_clone_core::wire::direct::Route;
use kvm_clone_core::wire::lane::LaneEvent;

use super::{Copy, Moved};

/// What was moved so far.
pub(super) struct Tally {
    pub(super) moved: Moved,
    /// Disks whose manifests are not believed, and why: each lane finds it out for itself.
    disbelieved: BTreeSet<(DiskIndex, String)>,
}

impl Tally {
    pub(super) fn new(copy: &Copy<'_>, route: Route) -> Self {
        let none = vec![0; copy.disks.len()];
        let moved = Moved { source_blocks: none.clone(), diverged: none, route, ..Moved::default() };
        Self { moved, disbelieved: BTreeSet::new() }
    }

    pub(super) fn note(&mut self, copy: &Copy<'_>, event: &LaneEvent) {
        let moved = &mut self.moved;
        let add = |list: &mut Vec<u64>, disk: DiskIndex, blocks| {
            if let Some(count) = list.get_mut(usize::from(disk)) {
                *count += blocks;
            }
        };
        match event {
            LaneEvent::Sent { read, sent, digests } => {
                moved.read += read;
                moved.sent += sent;
                moved.digests += digests;
            }
            LaneEvent::Read { segment, data_blocks } => add(&mut moved.source_blocks, segment.disk, *data_blocks),
            LaneEvent::Looked(bytes) => moved.looked += bytes,
            LaneEvent::Diverged { segment, blocks } => add(&mut moved.diverged, segment.disk, *blocks),
            LaneEvent::Disbelieved { disk, why } if usize::from(*disk) < copy.disks.len() => {
                self.disbelieved.insert((*disk, why.clone()));
            }
            LaneEvent::Written(bytes) => moved.written += bytes,
            LaneEvent::Done { data_blocks, compared, kept, .. } => {
                moved.kept += kept;
                moved.data_blocks += data_blocks;
                moved.compared.blocks += compared.blocks;
                moved.compared.differing += compared.differing;
            }
            _ => {}
        }
    }

    /// The sum, and what the user should know of it.
    pub(super) fn end(self, copy: &Copy<'_>) -> (Moved, Vec<String>) {
        let name = |disk: usize| &copy.disks[disk].target;
        let disbelieved = self.disbelieved.iter().map(|(disk, why)| {
            let disk = name(usize::from(*disk));
            format!("the digests kept of disk {disk} are not believed, so all of it was read and changes made there are not known: {why}")
        });
        let diverged = self.moved.diverged.iter().enumerate().filter(|(_, blocks)| **blocks > 0);
        let diverged = diverged.map(|(disk, blocks)| {
            format!("disk {} had been changed there: {blocks} blocks were discarded", name(disk))
        });
        let notes = disbelieved.chain(diverged).collect();
        (self.moved, notes)
    }
}
