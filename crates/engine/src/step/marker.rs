//! What a marker says: all that an operation will make, bring along and take away at the target.

use std::collections::BTreeSet;

use kvm_clone_core::domain::Domain;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::plan::{ClonePlan, DiskPlan, Merge};
use kvm_clone_core::wire::marker::{FinalFile, Marker};
use kvm_clone_core::wire::replica::{DiskChain, OverlayFile, RenewedFile};
use uuid::Uuid;

use super::{pools, stage};
use crate::clone::Prepared;
use crate::host::Host;
use crate::known::{Known, OWN_FILES, manifest_path};
use crate::lane::CopyDisk;

/// What the host is told of this operation before anything is made there.
pub(super) fn marker(prepared: &Prepared, disks: &[CopyDisk], known: &Known) -> Marker {
    let (plan, operation) = (&prepared.plan, prepared.fresh.operation);
    let staged = || disks.iter().filter(|disk| !disk.in_place);
    let aside: Vec<String> =
        disks.iter().filter(|disk| disk.in_place).map(|disk| stage::aside(&disk.manifest)).collect();
    Marker {
        operation,
        source: format!("{} on {}", plan.vm_name, plan.source_host),
        machine: plan.new_vm_name.to_string(),
        uuid: plan.new_uuid,
        keys: prepared.target_keys(),
        staging: staged().map(|disk| disk.staging.path.clone()).collect(),
        finals: staged().map(|disk| FinalFile { path: disk.path.clone(), identity: None }).collect(),
        directories: plan.directories.iter().map(|directory| directory.path.clone()).collect(),
        manifests: [manifests(plan, &prepared.target.host, operation, disks, known), aside.clone()].concat(),
        replaced: plan.replaces.iter().flat_map(|replaced| replaced.files.clone()).collect(),
        sync: plan.replica.is_some(),
        overlays: plan.disks.iter().flat_map(overlays).collect(),
        merging: false,
        chains: chains(plan),
        in_place: disks.iter().filter(|disk| disk.in_place).map(|disk| disk.path.clone()).collect(),
        renewed: renewed(plan, disks, known),
        outdated: [outdated(plan, &prepared.target.host), aside].concat(),
        autostart_off: false,
        pools: pools(plan),
        created: prepared.fresh.now.clone(),
    }
}

/// What is merged once the new point is there.
fn overlays(disk: &DiskPlan) -> impl Iterator<Item = OverlayFile> {
    let overlay = |merge: &Merge| OverlayFile {
        disk: disk.target.clone(),
        path: merge.overlay.clone(),
        image: merge.image.clone(),
        format: merge.format.clone(),
        under: merge.under.clone(),
        above: merge.above.clone(),
        exact_size: if merge.overlay == disk.path { disk.size } else { merge.size },
        flattened: None,
    };
    disk.base.iter().flat_map(|base| &base.merges).map(overlay)
}

/// What disks lie in once that is done.
fn chains(plan: &ClonePlan) -> Vec<DiskChain> {
    let merged = plan.disks.iter().filter(|disk| disk.base.as_ref().is_some_and(|base| !base.merges.is_empty()));
    merged.map(|disk| DiskChain { disk: disk.target.clone(), images: disk.in_the_end() }).collect()
}

/// The manifests that the new point has: of what is copied, and of files that stay as they are.
fn manifests(plan: &ClonePlan, target: &Host, operation: Uuid, disks: &[CopyDisk], known: &Known) -> Vec<String> {
    let kept = known.kept_digests(plan, target, operation);
    disks.iter().map(|disk| disk.manifest.clone()).chain(kept.into_iter().map(|(_, to)| to)).collect()
}

/// The files that become those of the new point right after the commit.
fn renewed(plan: &ClonePlan, disks: &[CopyDisk], known: &Known) -> Vec<RenewedFile> {
    let before = |path: &String| known.files.content.get(path).cloned();
    let renewing = plan.files.iter().filter(|file| file.renews);
    let staged = renewing.filter_map(|file| disks.iter().find(|disk| disk.path == file.path));
    let staged = staged.map(|disk| RenewedFile {
        path: disk.path.clone(),
        staging: Some(disk.staging.path.clone()),
        before: before(&disk.path),
    });
    let dropped = plan.dropped_state.iter();
    let dropped = dropped.map(|path| RenewedFile { path: path.clone(), staging: None, before: before(path) });
    staged.chain(dropped).collect()
}

/// What was kept of the replica's last point.
fn outdated(plan: &ClonePlan, target: &Host) -> Vec<String> {
    let Some(replica) = &plan.replica else { return Vec::new() };
    // Those that the source has no longer among them.
    let before = Domain::parse(&replica.before).ok();
    let before = before.iter().flat_map(Domain::data_disks).map(|disk| &disk.target);
    let disks = plan.disks.iter().map(|disk| &disk.target).chain(before).map(DiskTarget::to_string);
    let files = plan.files.iter().map(|file| file.name.clone()).chain(OWN_FILES.map(str::to_owned));
    let names: BTreeSet<String> = disks.chain(files).collect();
    names.into_iter().flat_map(|name| kept_of(target, replica.operation, &name)).collect()
}

/// What was kept of a copy of ours that a new one takes the place of, as its definition tells.
pub(super) fn kept_of_replaced(domain: &Domain, host: &Host, operation: Uuid) -> Vec<String> {
    let disks = domain.data_disks().map(|disk| disk.target.to_string());
    let names = disks.chain(OWN_FILES.map(str::to_owned));
    names.flat_map(|name| kept_of(host, operation, &name)).collect()
}

/// Where the digests and the seal of a disk or file are kept.
pub(super) fn kept_of(host: &Host, operation: Uuid, name: &str) -> [String; 2] {
    [manifest_path(host, operation, name), format!("{}/seals/{operation}-{name}.json", host.facts.state_dir)]
}
