//! What is known of a replica before it is compared: the digests of its last point, and whether its images, and the source's,
//! are still what they were then.

mod changed;
mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use kvm_clone_core::blocks::{BlockSize, DigestKey, Root};
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::plan::{ClonePlan, DiskPlan, ReplicaPlan};
use kvm_clone_core::size::whole_sectors;
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::facts::Identity;
use kvm_clone_core::wire::lane::{BaseDigests, ImageSpec, OnDivergence, Trust};
use kvm_clone_core::wire::replica::{ManifestQuery, ManifestState, SealQuery, SealState};
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use crate::clone::CloneSettings;
use crate::host::Host;
use crate::host::control::unexpected;
use crate::inventory::{self, Site, Source};
pub(crate) use files::{KnownFiles, OWN_FILES, OwnFile, Word, compare, is_kept, own_files};

/// What is known of a replica's disks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// The key of all digests of this lineage; none where none of them were kept.
    pub(crate) key: Option<DigestKey>,
    /// The digests of each disk, where they were kept.
    pub(crate) digests: BTreeMap<DiskTarget, BaseDigests>,
    /// What identifies the replica's images as they are now.
    pub(crate) identities: BTreeMap<DiskTarget, Vec<Identity>>,
    /// Disks that nobody touched since the last point, on either side: they need not be read.
    pub(crate) untouched: BTreeSet<DiskTarget>,
    /// What is known of the files beside the disks.
    pub(crate) files: KnownFiles,
}

impl Known {
    /// Digests of files that stay as they are, which hold for the point of this operation too: where they are, and where they will be.
    pub(crate) fn kept_digests(&self, plan: &ClonePlan, target: &Host, operation: Uuid) -> Vec<(String, String)> {
        let Some(replica) = &plan.replica else { return Vec::new() };
        let at = |operation, name: &DiskTarget| manifest_path(target, operation, name);
        self.files.kept.iter().map(|name| (at(replica.operation, name), at(operation, name))).collect()
    }
}

/// Asks both hosts. Nothing is known of a machine that is new at the target.
///
/// # Errors
/// [`kvm_clone_core::Code::Conflict`] where a replica that is to be replaced, or a disk of it that goes, was changed since its last
/// point, or where it cannot be told whether one was, unless its changes are to be discarded anyway.
pub(crate) async fn look(
    source: &Host,
    site: &Site,
    seen: &Source,
    plan: &ClonePlan,
    settings: &CloneSettings,
) -> Result<Known> {
    let Some(replica) = &plan.replica else { return Ok(Known::default()) };
    let thrown_away = look_at_what_goes(site, plan, replica, settings).await?;
    refuse_given(site, replica, settings)?;
    let target = &site.host;
    // No guest has run on a replica that is out of service, and what was changed before that was agreed to be thrown away.
    let discards_files = settings.discard_target_changes || replica.incomplete.is_some();
    let mut files = files::look(source, site, (plan, replica), discards_files).await?;
    files.identities.extend(thrown_away);
    let mut known = Known { files, ..Known::default() };
    let mut all = Vec::new();
    for disk in plan.disks.iter().filter(|disk| disk.base.is_some()) {
        let identities = inventory::inspect(target, base_image(disk)?).await?.identities;
        known.identities.insert(disk.target.clone(), identities);
        // Known to be a mixture: nothing is known of what it holds.
        if replica.incomplete.is_some() {
            continue;
        }
        let size = disk.base.as_ref().map_or(0, |base| base.size);
        match kept_digests(target, replica.operation, &disk.target, size).await? {
            Ok(kept) if known.key.as_ref().is_none_or(|key| *key == kept.key) => {
                known.key = Some(kept.key.clone());
                all.push((disk.target.clone(), kept));
            }
            Ok(_) if settings.discard_target_changes => {}
            Ok(_) => return Err(untold_disk(target, replica, &disk.target, "its digests are of another lineage")),
            Err(_) if settings.discard_target_changes => {}
            Err(why) => return Err(untold_disk(target, replica, &disk.target, &why)),
        }
    }
    let reads_all = settings.paranoid || settings.discard_target_changes;
    let base = |disk: &DiskTarget| base_image(plan.disks.iter().find(|planned| planned.target == *disk)?).ok();
    let chain = |disk: &DiskTarget| inventory::spec(seen.machine.images.get(disk)?).ok();
    let mut ours = if reads_all { BTreeSet::new() } else { sealed(target, replica.operation, &all, base).await? };
    if replica.update.in_place {
        ours = in_place(site, plan, replica, settings, ours).await?;
    }
    let theirs = if reads_all || seen.machine.live.is_some() {
        BTreeSet::new()
    } else {
        sealed(source, replica.operation, &all, chain).await?
    };
    // Digests of blocks of another size are made anew.
    let fits = |disk: &DiskTarget| all.iter().any(|(of, kept)| of == disk && kept.block == plan.block_size);
    known.untouched = ours.intersection(&theirs).filter(|disk| fits(disk)).cloned().collect();
    known.digests = lane_digests(plan, settings, all, &ours);
    Ok(known)
}

/// What identifies the images that go with the commit, once it is known that none of them was changed since the last point.
async fn look_at_what_goes(
    site: &Site,
    plan: &ClonePlan,
    replica: &ReplicaPlan,
    settings: &CloneSettings,
) -> Result<BTreeMap<String, Vec<Identity>>> {
    let lost = plan.replaces.as_ref().map_or(&[][..], |replaced| &replaced.lost_disks);
    let nothing_goes = !replica.is_replaced() && lost.is_empty();
    if nothing_goes || replica.incomplete.is_some() || settings.discard_target_changes {
        return Ok(BTreeMap::new());
    }
    changed::refuse(site, replica, settings.paranoid, |disk| replica.is_replaced() || lost.contains(disk)).await
}

/// A replica out of service whose disk was given another image since: that is somebody's, and nothing is known of it.
fn refuse_given(site: &Site, replica: &ReplicaPlan, settings: &CloneSettings) -> Result<()> {
    let Some(disk) = replica.given.first().filter(|_| !settings.discard_target_changes) else { return Ok(()) };
    let message = format!(
        "replica {} was out of service, and its disk {disk} was given another image since: a sync would overwrite that",
        replica.name
    );
    Err(Error::conflict(message)
        .with("vm", &replica.name)
        .with("host", &site.host.name)
        .with("disk", disk)
        .help("--discard-target-changes overwrites it; a clone under another name leaves it alone"))
}

/// The digests that lanes get to know, and how far they may rest on them, where `sealed` are known to be what they were.
fn lane_digests(
    plan: &ClonePlan,
    settings: &CloneSettings,
    all: Vec<(DiskTarget, KeptDigests)>,
    sealed: &BTreeSet<DiskTarget>,
) -> BTreeMap<DiskTarget, BaseDigests> {
    let on_divergence = if settings.discard_target_changes { OnDivergence::Discard } else { OnDivergence::Refuse };
    let digests = all.into_iter().filter_map(|(disk, kept)| {
        let planned = plan.disks.iter().find(|planned| planned.target == disk)?;
        let is_sealed = sealed.contains(&disk);
        // In place such an image is read for its new digests. A lane that compared it with the old ones as well would refuse what it has
        // written itself, where the copy is done once more.
        let is_of_no_use = planned.is_in_place() && is_sealed && kept.block != plan.block_size;
        if resized(planned) || is_of_no_use {
            return None;
        }
        let trust = if is_sealed { Trust::Sealed(kept.root) } else { Trust::Checked(on_divergence) };
        Some((disk, BaseDigests { manifest: kept.manifest, trust }))
    });
    digests.collect()
}

/// Before the first byte is written in place: whether the replica was changed, which its lanes would find out too late. Returns whose
/// images are known to hold their digests: those sealed, and files that were read now, as long as their identity stays the same. Who
/// writes to a device leaves no trace.
async fn in_place(
    site: &Site,
    plan: &ClonePlan,
    replica: &ReplicaPlan,
    settings: &CloneSettings,
    mut sealed: BTreeSet<DiskTarget>,
) -> Result<BTreeSet<DiskTarget>> {
    if replica.incomplete.is_none() && !settings.discard_target_changes {
        let is_written =
            |disk: &DiskTarget| plan.disks.iter().any(|planned| planned.target == *disk && planned.is_in_place());
        changed::refuse(site, replica, settings.paranoid, is_written).await?;
        let files = plan.disks.iter().filter(|disk| disk.base.as_ref().is_some_and(|base| base.device.is_none()));
        sealed.extend(files.filter(|_| !settings.paranoid).map(|disk| disk.target.clone()));
    }
    sealed.retain(|disk| !plan.disks.iter().any(|planned| planned.target == *disk && resized(planned)));
    Ok(sealed)
}

/// Whether an image gets another size before it is compared: then its digests are of the old one.
fn resized(disk: &DiskPlan) -> bool {
    disk.base.as_ref().is_some_and(|base| base.in_place && base.size != disk.size)
}

/// The replica's image of a disk, with what it stands on.
pub(crate) fn base_image(disk: &DiskPlan) -> Result<ImageSpec> {
    let base = disk.base.as_ref().ok_or_else(|| Error::internal(format!("disk {} has no base", disk.target)))?;
    let backing = base.under.iter().map(|link| (link.path.clone(), link.format.clone())).collect();
    Ok(ImageSpec { backing, ..ImageSpec::new(&base.path, base.format.clone()) })
}

/// Where the digests of a disk or file are kept at the target.
pub(crate) fn manifest_path(target: &Host, operation: Uuid, name: impl Display) -> String {
    format!("{}/manifests/{operation}-{name}", target.facts.state_dir)
}

/// Digests of a disk that are all there.
pub(crate) struct KeptDigests {
    pub(crate) manifest: String,
    pub(crate) key: DigestKey,
    pub(crate) block: BlockSize,
    pub(crate) root: Root,
    /// Size that the disk has by them, in bytes. An odd disk is as long as its sectors while it has an overlay.
    pub(crate) size: u64,
}

/// The digests that were kept when an operation made a point of a disk that has `size` bytes now, or why there are none.
pub(crate) async fn kept_digests(
    host: &Host,
    operation: Uuid,
    disk: &DiskTarget,
    size: u64,
) -> Result<Result<KeptDigests, String>> {
    let kept = whole_digests(host, operation, disk).await?;
    Ok(kept.and_then(|kept| {
        let fits = whole_sectors(kept.size) == whole_sectors(size);
        fits.then_some(kept).ok_or_else(|| "its digests are those of a disk of another size".to_owned())
    }))
}

/// The digests that were kept when an operation made a point of a disk, whatever size it had then, or why there are none.
async fn whole_digests(host: &Host, operation: Uuid, disk: &DiskTarget) -> Result<Result<KeptDigests, String>> {
    let manifest = manifest_path(host, operation, disk);
    let query = ManifestQuery { path: manifest.clone(), operation };
    match host.control.ask(Request::Manifest(query)).await? {
        Reply::Manifest(ManifestState::Absent) => Ok(Err("its digests are not there any more".to_owned())),
        Reply::Manifest(ManifestState::Unusable { why }) => Ok(Err(format!("its digests are of no use: {why}"))),
        Reply::Manifest(ManifestState::Whole { disk_size, block, key, root, .. }) => {
            Ok(Ok(KeptDigests { manifest, key, block, root, size: disk_size }))
        }
        other => Err(unexpected(&other)),
    }
}

/// The disks whose images on a host are known to hold just these digests.
async fn sealed(
    host: &Host,
    operation: Uuid,
    all: &[(DiskTarget, KeptDigests)],
    image: impl Fn(&DiskTarget) -> Option<ImageSpec>,
) -> Result<BTreeSet<DiskTarget>> {
    let asked: Vec<_> = all.iter().filter_map(|(disk, kept)| Some((disk, kept, image(disk)?))).collect();
    let query = |(disk, _, image): &(&DiskTarget, &KeptDigests, ImageSpec)| SealQuery {
        operation,
        disk: (*disk).clone(),
        image: image.clone(),
    };
    let states = match host.control.ask(Request::Seals(asked.iter().map(query).collect())).await? {
        Reply::Seals(states) => states,
        other => return Err(unexpected(&other)),
    };
    let holds =
        |kept: &KeptDigests, state: &SealState| *state == SealState::Trusted { root: kept.root, key: kept.key.id() };
    let both = asked.iter().zip(&states);
    Ok(both.filter(|((_, kept, _), state)| holds(kept, state)).map(|((disk, ..), _)| (*disk).clone()).collect())
}

fn untold_disk(target: &Host, replica: &ReplicaPlan, disk: &DiskTarget, why: &str) -> Error {
    untold(target, replica, &format!("disk {disk}"), why).with("disk", disk)
}

fn untold(target: &Host, replica: &ReplicaPlan, what: &str, why: &str) -> Error {
    let message =
        format!("it cannot be told whether {what} of replica {} was changed since its last point: {why}", replica.name);
    Error::conflict(message)
        .with("vm", &replica.name)
        .with("host", &target.name)
        .help("--discard-target-changes compares everything, and overwrites what was changed")
}
