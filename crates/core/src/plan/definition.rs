//! The definition that a plan leads to.

use std::collections::BTreeMap;

use super::files::{FileKind, FilePlan};
use super::request::{DiskFormat, Existing, Update};
use super::{Base, ClonePlan, DiskPlan, Facts, plug, target};
use crate::domain::{self, DiskElement, Domain, Identity, Lineage, LineagePolicy, Macs, NewDisk, Transform};
use crate::error::Result;
use crate::inventory::ImageFormat;
use crate::name::DiskTarget;

/// Makes the definition to be made, and the one that stands in the end.
pub(super) fn make(facts: &Facts<'_>, wanted: &Transform, plan: &mut ClonePlan) -> Result<()> {
    let (definition, notes) = define(facts, wanted)?;
    let (in_the_end, _) = define(facts, &settled(wanted, plan))?;
    plan.target_xml = Some(domain::redact(&in_the_end)?);
    plan.definition = Some(definition);
    plan.warnings.extend(notes);
    Ok(())
}

/// The new definition: the source's, transformed; or the replica's own with other images, where only those change.
fn define(facts: &Facts<'_>, wanted: &Transform) -> Result<(String, Vec<String>)> {
    match (facts.request.existing, facts.replica) {
        (Existing::Update(Update { disks_only: true, .. }), Some(own)) => {
            Ok((domain::repoint(own, &wanted.disks, &wanted.lineage)?, Vec::new()))
        }
        _ => domain::transform(facts.domain, wanted),
    }
}

/// The same once all is merged.
fn settled(wanted: &Transform, plan: &ClonePlan) -> Transform {
    let mut settled = wanted.clone();
    // What is written in place is there already, under its own name.
    for disk in plan.disks.iter().filter(|disk| !disk.is_in_place()) {
        settled.disks.extend(NewDisk::of_chain(&disk.in_the_end()).map(|new| (disk.target.clone(), new)));
        let merges = disk.base.iter().flat_map(|base| &base.merges);
        merges
            .for_each(|merge| settled.lineage.move_point(&disk.target, &merge.overlay, (&merge.image, &merge.format)));
    }
    settled
}

/// What the new definition is made from.
pub(super) fn wanted(
    facts: &Facts<'_>,
    plan: &ClonePlan,
    platform: target::Chosen,
    plugs: Vec<(String, domain::Plug)>,
    nvram: Option<String>,
) -> Transform {
    let Facts { request, source, fresh, .. } = facts;
    let disks = plan.disks.iter().map(|disk| (disk.target.clone(), new_disk(disk)));
    let kept_macs = request.keeps_macs();
    let fresh_macs = fresh.macs.clone();
    Transform {
        name: plan.new_vm_name.clone(),
        uuid: plan.new_uuid,
        identity: request.identity,
        genid: facts.replica.and_then(Domain::genid).unwrap_or(fresh.genid),
        macs: match facts.replica {
            _ if kept_macs => Macs::Kept,
            Some(own) => Macs::Of { known: domain::macs_of(facts.domain, own), fresh: fresh_macs },
            None => Macs::Fresh(fresh_macs),
        },
        disks: disks.collect::<BTreeMap<_, _>>(),
        plugs,
        media: media(facts, plan),
        nvram,
        machine: platform.machine,
        emulator: platform.emulator,
        paths_present: facts.target.paths_present.clone(),
        libvirt_version: facts.target.libvirt_version,
        addresses: facts.target.addresses.clone(),
        whereabouts: facts.whereabouts,
        lineage: Lineage {
            host: source.host.clone(),
            host_name: source.host_name.clone(),
            uuid: source.uuid,
            name: source.name.clone(),
            operation: fresh.operation,
            point: fresh.now.clone(),
            policy: policy(facts),
            points: plan.points.at_commit.clone(),
            incomplete: None,
        },
    }
}

/// The image of a disk: new, an overlay over the replica's images, or the replica's own.
fn new_disk(disk: &DiskPlan) -> NewDisk {
    match &disk.base {
        Some(base) if base.in_place => NewDisk::from(&base.written()),
        base => {
            let over = base.iter().flat_map(Base::chain).map(|link| (link.path, link.format)).collect();
            NewDisk { over, ..NewDisk::new(&disk.path, disk.format.clone()) }
        }
    }
}

/// The choices that the next sync makes again.
fn policy(facts: &Facts<'_>) -> LineagePolicy {
    let request = facts.request;
    LineagePolicy {
        identity: request.identity,
        macs: if request.keeps_macs() { Identity::Kept } else { Identity::New },
        networks: plug::all(facts).map(|(old, new)| (old.clone(), new.to_string())).collect(),
        pool: request.pool.clone(),
        disk_format: match request.disk_format {
            DiskFormat::Keep => None,
            DiskFormat::Qcow2 => Some(ImageFormat::Qcow2),
            DiskFormat::Raw => Some(ImageFormat::Raw),
        },
        block_size: request.block_size,
        copy_media: request.copy_media,
        any_machine: request.any_machine,
        tpm: request.tpm,
        reduction: request.reduction.clone(),
    }
}

/// The copies of media, each in the format that its drive has.
fn media(facts: &Facts<'_>, plan: &ClonePlan) -> BTreeMap<DiskTarget, NewDisk> {
    let copied = |drive: &&DiskElement| {
        let is_its = |file: &&FilePlan| file.what == FileKind::Medium && file.name == drive.target.as_str();
        plan.files.iter().find(is_its)
    };
    let drives = facts.domain.disks().iter().filter_map(|drive| Some((drive, copied(&drive)?)));
    drives.map(|(drive, file)| (drive.target.clone(), NewDisk::new(&file.path, drive.format()))).collect()
}
