//! Sync: which machine of the target is a replica of the source, and which of its images are brought to a newer point.
//!
//! A sync is a clone onto a machine that is there: its choices are read from the replica's lineage, its identity is the
//! replica's, and each disk that the replica has is an overlay on the replica's image instead of a new image.

use uuid::Uuid;

use super::check::Checks;
use super::in_place;
use super::lost::{Lost, left_over};
use super::request::{Candidates, CloneRequest, DiskFormat, Existing, NetworkTarget, SyncRequest, Update};
use super::retention::Safety;
use super::{Base, Facts, Link, Replaced, points, replace};
use crate::domain::{DiskElement, DiskKind, Identity, Lineage};
use crate::error::{Code, Error, Result};
use crate::inventory::{ExistingMachine, ImageFacts, ImageFormat, MachineState, Replica, SourceMachine};
use crate::name::{DiskTarget, SourceName, VmName};
use crate::quote::quoted;
use crate::size::{ByteSize, whole_sectors};

/// A machine of the target, as far as finding a replica goes.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a SourceName,
    /// Its UUID.
    pub uuid: Uuid,
    /// Where it was copied from, if we made it.
    pub lineage: Option<&'a Lineage>,
}

/// The machine that a sync brings to a newer point: the one asked for, else the one whose lineage names the source.
///
/// The host's id in a lineage is new at each boot of that host, so the source's UUID is what counts; of several, those of
/// the host as it is known now go first.
///
/// # Errors
/// There is none ([`Code::VmNotFound`]), there are several, or the one asked for is of another source
/// ([`Code::Validation`]).
pub fn find_replica<'a>(
    source: &SourceMachine,
    dest: &str,
    machines: &[Candidate<'a>],
    wanted: Option<&VmName>,
) -> Result<Candidate<'a>> {
    let is_of_source = |machine: &&Candidate<'_>| machine.lineage.is_some_and(|lineage| lineage.uuid == source.uuid);
    if let Some(name) = wanted {
        let named = machines.iter().find(|machine| machine.name.as_str() == name.as_str());
        let named = named.ok_or_else(|| not_there(source, dest, name.as_str()))?;
        return Some(named).filter(is_of_source).copied().ok_or_else(|| of_another(source, dest, named));
    }
    let all: Vec<&Candidate<'_>> = machines.iter().filter(is_of_source).collect();
    let here: Vec<&Candidate<'_>> =
        all.iter().copied().filter(|one| one.lineage.is_some_and(|lineage| lineage.host == source.host)).collect();
    match (here.as_slice(), all.as_slice()) {
        ([one], _) | ([], [one]) => Ok(**one),
        ([], []) => match machines.iter().find(|machine| machine.name == &source.name) {
            Some(named) => Err(of_another(source, dest, named)),
            None => Err(not_there(source, dest, source.name.as_str())),
        },
        _ => Err(several(source, dest, &all)),
    }
}

fn not_there(source: &SourceMachine, dest: &str, name: &str) -> Error {
    let SourceMachine { name: vm, host_name, .. } = source;
    Error::new(Code::VmNotFound, format!("{dest} has no replica of {vm} on {host_name}, and no machine {name}"))
        .with("vm", vm)
        .with("host", dest)
        .help(format!("Make one first: kvm-clone clone {host_name} {dest} {vm} --replica (or -n NAME)"))
}

fn of_another(source: &SourceMachine, dest: &str, named: &Candidate<'_>) -> Error {
    let of = match named.lineage {
        Some(lineage) => format!("a copy of machine {} ({}) on {}", lineage.name, lineage.uuid, lineage.host_name),
        None => "no copy that kvm-clone made".to_owned(),
    };
    let message = format!("machine {} on {dest} is {of}, not a replica of {}", named.name, source.name);
    Error::validation(message)
        .with("vm", named.name)
        .with("host", dest)
        .help("Name the replica with -t; or put a new copy in its place with clone --force")
}

fn several(source: &SourceMachine, dest: &str, all: &[&Candidate<'_>]) -> Error {
    let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
    let names = names.join(", ");
    Error::validation(format!("{dest} has several replicas of {}: {names}", source.name))
        .with("vm", &source.name)
        .with("host", dest)
        .with("replicas", &names)
        .help("Say which one with -t NAME")
}

/// The request that made the replica, applied again.
///
/// # Errors
/// [`Code::Validation`] where the replica's name or its policy is none that we make.
pub fn sync_request(replica: &SourceName, lineage: &Lineage, asked: &SyncRequest) -> Result<CloneRequest> {
    let policy = &lineage.policy;
    let networks = policy.networks.iter().map(|(from, to)| {
        let to = if to == "none" { NetworkTarget::None } else { NetworkTarget::Named(to.parse()?) };
        Ok((from.clone(), to))
    });
    let update = in_place::update(asked, lineage)?;
    Ok(CloneRequest {
        new_name: Some(replica.as_str().parse()?),
        identity: policy.identity,
        // The UUID is the replica's, whatever it was made from.
        uuid: Identity::New,
        macs: policy.macs,
        existing: Existing::Update(update),
        networks: Vec::new(),
        usual_networks: networks.collect::<Result<_>>()?,
        pool: policy.pool.clone(),
        disk_format: match policy.disk_format {
            None => DiskFormat::Keep,
            Some(ImageFormat::Raw) => DiskFormat::Raw,
            Some(_) => DiskFormat::Qcow2,
        },
        block_size: asked.block_size.unwrap_or(policy.block_size),
        copy_media: policy.copy_media,
        keep_snapshots: false,
        reduction: policy.reduction.clone(),
        any_machine: policy.any_machine,
        tpm: policy.tpm,
        presence: asked.presence,
        discard_managed_save: asked.discard_managed_save,
        space_margin_percent: asked.space_margin_percent,
        // A replica that is out of service has no old point.
        safety: Safety { keep: asked.safety.keep && !update.in_place, ..asked.safety },
    })
}

/// Looks whether the replica can be brought to a newer point; says what its next definition takes away.
pub(super) fn check(facts: &Facts<'_>, replica: &Replica, update: Update, checks: &mut Checks) -> Option<Replaced> {
    let Some(existing) = facts.target.machines.iter().find(|machine| machine.uuid == replica.uuid) else {
        checks.fail("replica", changed(facts, replica, "is not there any more"));
        return None;
    };
    let failures: Vec<Error> =
        [refuse_state(facts, existing), refuse_saved(facts, existing), replace::refuse_shared(facts, existing)]
            .into_iter()
            .chain([points::refuse(facts, replica, update)])
            .flatten()
            .chain(refuse_disks(facts, replica, update))
            .chain(in_place::refuse_left_out(facts, replica, update))
            .collect();
    if !failures.is_empty() {
        checks.all("replica", failures, "");
        return None;
    }
    let point = &replica.lineage.point;
    match &replica.lineage.incomplete {
        None => checks.ok("replica", format!("machine {} holds the point of {point}", replica.name)),
        Some(incomplete) => in_place::note_incomplete(replica, incomplete, update, checks),
    }
    in_place::note_risk(replica, update, checks);
    note_blocks(facts, replica, update, checks);
    let removable = spare_files(facts, replica, existing, update, checks);
    let lost: Vec<Lost<'_>> =
        left_over(facts).map(|disk| Lost::of(facts, (replica, existing), update, disk, &removable)).collect();
    note_disks(facts, update, &lost, checks);
    let kept = |path: &String| {
        let is_base = facts.bases(update).any(|(_, (image, _))| is_at(existing, path, image));
        let mut below = replica.images.values().flat_map(|chain| chain.iter().skip(1));
        is_base || below.any(|image| is_at(existing, path, image)) || lost.iter().any(|lost| lost.keeps(path))
    };
    let files = removable.iter().filter(|path| !kept(path) && !update.disks_only).cloned().collect();
    let lost_disks = lost.iter().filter(|lost| lost.goes).map(|lost| lost.disk.target.clone()).collect();
    Some(Replaced { name: replica.name.clone(), uuid: replica.uuid, files, lost_disks })
}

/// The replica's files that nothing else uses. Where an image of another machine may stand on any of its images, these stay.
fn spare_files(
    facts: &Facts<'_>,
    replica: &Replica,
    existing: &ExistingMachine,
    update: Update,
    checks: &mut Checks,
) -> Vec<String> {
    let mut files = replace::removable_files(facts, existing);
    if let Some((other, image)) = replace::unseen(facts, existing) {
        if update.candidates == Candidates::All {
            let message =
                format!("the old images stay: what {image} of machine {} stands on cannot be told", other.name);
            checks.warn("replica", message, Some("Remove them by hand if no machine stands on them"));
        }
        files.retain(|path| !replica.images.values().flatten().any(|image| is_at(existing, path, image)));
    }
    files
}

/// Whether a path in a machine's definition leads to this image. An image has its true path, a definition may name it through
/// links.
pub(super) fn is_at(machine: &ExistingMachine, path: &str, image: &ImageFacts) -> bool {
    let named = machine.disk_files.iter().find(|disk| disk.path == path).and_then(|disk| disk.file);
    image.path == path || named.is_some_and(|file| file.is(&image.file))
}

fn changed(facts: &Facts<'_>, replica: &Replica, what: &str) -> Error {
    Error::conflict(format!("replica {} {what}", replica.name))
        .with("vm", &replica.name)
        .with("host", &facts.target.host_name)
}

/// A replica that runs is never written to.
fn refuse_state(facts: &Facts<'_>, existing: &ExistingMachine) -> Option<Error> {
    let name = &existing.name;
    let message = format!("replica {name} is {}; a replica that runs is never written to", existing.state);
    let error = Error::conflict(message).with("vm", name).with("host", &facts.target.host_name);
    let error = error
        .help(format!("virsh shutdown {word}; then sync again", word = quoted(name)))
        .help("What it wrote makes it another machine than its source: --discard-target-changes throws that away");
    (existing.state != MachineState::Stopped).then_some(error)
}

/// Saved memory would be put on disks that it does not belong to; snapshots and checkpoints hang on the images as they are.
fn refuse_saved(facts: &Facts<'_>, existing: &ExistingMachine) -> Option<Error> {
    let name = &existing.name;
    let (what, command, diverged) = match existing {
        ExistingMachine { managed_save: true, .. } => ("a saved memory image", "managedsave-remove", true),
        ExistingMachine { snapshots: 1.., .. } => ("snapshots", "snapshot-delete", false),
        ExistingMachine { checkpoints: 1.., .. } => ("checkpoints", "checkpoint-delete", false),
        _ => return None,
    };
    let message = format!("replica {name} has {what} and cannot be brought to another point");
    let error = if diverged { Error::conflict(message) } else { Error::unsupported(message) };
    let error = error.with("vm", name).with("host", &facts.target.host_name);
    Some(error.help(format!("Remove them first: virsh {command} {word}", word = quoted(name))))
}

/// Disks that cannot be compared, and those that may not be copied whole.
fn refuse_disks(facts: &Facts<'_>, replica: &Replica, update: Update) -> Vec<Error> {
    let mut failures = Vec::new();
    for disk in facts.domain.data_disks() {
        let refusal = match (update.candidates, facts.replica_disk(disk)) {
            (Candidates::All, _) => None,
            (Candidates::OnlyDiffering, None) => {
                Some(Error::conflict(format!("disk {} is new at the source and would be copied whole", disk.target)))
            }
            (_, None) => None,
            (_, Some(chain)) if update.in_place => in_place::refuse_image(facts, replica, disk, chain),
            (_, Some(chain)) => refuse_image(facts, replica, disk, chain),
        };
        failures.extend(refusal.map(|error| error.with("disk", &disk.target).help(WHOLE)));
    }
    failures
}

const WHOLE: &str = "sync --full copies the disks whole, into new images";

fn refuse_image(facts: &Facts<'_>, replica: &Replica, disk: &DiskElement, chain: &[ImageFacts]) -> Option<Error> {
    let image = chain.first()?;
    let (path, size) = (&image.path, facts.source_size(disk));
    let failed = chain.iter().find_map(|image| refuse_file(replica, image));
    if let Some(error) = failed {
        let by_word = (!image.regular_file).then_some("--in-place writes into it: see what it risks");
        let error = error.with("host", &facts.target.host_name);
        return Some(by_word.into_iter().fold(error, Error::help));
    }
    if let Some(error) = refuse_used(facts, replica, image) {
        return Some(error);
    }
    let has_snapshots = chain.iter().any(|image| image.snapshots > 0);
    let refuse =
        |what: &str| Error::unsupported(format!("image {path} of replica {} {what}", replica.name)).with("path", path);
    let error = match () {
        () if !points::are_ours(replica, &disk.target, chain) => {
            refuse("stands on other images than old points that were kept")
        }
        // While it has an overlay, an odd disk of the replica is as long as its sectors.
        () if image.virtual_size > whole_sectors(size) => {
            let (old, new) = (ByteSize(image.virtual_size), ByteSize(size));
            let message = format!(
                "the source's disk has {new} now, that of replica {} {old}: a disk is never shrunk in its image",
                replica.name
            );
            Error::conflict(message)
        }
        () if image.virtual_size < size && has_snapshots => refuse("has snapshots inside and cannot grow"),
        () => return None,
    };
    Some(error.with("host", &facts.target.host_name))
}

/// Another machine of the target that uses this image, by whatever path.
pub(super) fn other_user<'a>(facts: &Facts<'a>, replica: &Replica, image: &ImageFacts) -> Option<&'a ExistingMachine> {
    let mut others = facts.target.machines.iter().filter(|machine| machine.uuid != replica.uuid);
    others.find(|other| other.uses_file(&image.path, image.file))
}

/// What stands on an image, or has it as its own, would become a mixture once the new point is merged into it. Under a point that
/// is kept it stays what it is.
fn refuse_used(facts: &Facts<'_>, replica: &Replica, image: &ImageFacts) -> Option<Error> {
    let other = other_user(facts, replica, image).filter(|_| !facts.request.safety.keep)?;
    let (path, name) = (&image.path, &other.name);
    let message =
        format!("image {path} of replica {} is used by machine {name} as well, which would break", replica.name);
    Some(
        Error::conflict(message)
            .with("path", path)
            .with("vm", name)
            .with("host", &facts.target.host_name)
            .help("Keep the old point, on which it can stand: --safety-snapshot")
            .help(format!("Or give {name} an image of its own: qemu-img convert")),
    )
}

/// What no image of a disk may be, whether its present one or one that was kept.
fn refuse_file(replica: &Replica, image: &ImageFacts) -> Option<Error> {
    let path = &image.path;
    let why = match () {
        () if !image.regular_file => "is a device, on which a new point cannot be staged".to_owned(),
        () if image.data_file.is_some() => "keeps its data in another file".to_owned(),
        () if matches!(image.format, ImageFormat::Other(_)) => format!("is of format {}", image.format),
        () if !image.by_qemu.is_empty() => format!("uses {}", image.by_qemu.join(", ")),
        () if !image.unsupported.is_empty() => format!("uses {}", image.unsupported.join(", ")),
        () => return None,
    };
    Some(Error::unsupported(format!("image {path} of replica {} {why}", replica.name)).with("path", path))
}

/// What blocks of another size cost: the digests that are kept are of no use for finding what differs.
fn note_blocks(facts: &Facts<'_>, replica: &Replica, update: Update, checks: &mut Checks) {
    let (old, new) = (replica.lineage.policy.block_size, facts.request.block_size);
    if old != new && update.candidates != Candidates::All && replica.lineage.incomplete.is_none() {
        checks.ok(
            "blocks",
            format!("of {new} from now on: both sides are read once, as the digests are of blocks of {old}"),
        );
    }
}

/// What becomes of each disk that is not simply compared.
fn note_disks(facts: &Facts<'_>, update: Update, lost: &[Lost<'_>], checks: &mut Checks) {
    for disk in facts.domain.data_disks() {
        let size = facts.source_size(disk);
        match facts.replica_disk(disk).and_then(|chain| chain.first()) {
            None => {
                checks.warn("disks", format!("disk {} is new at the source; it is copied whole", disk.target), None)
            }
            Some(image) if image.virtual_size < size && update.candidates != Candidates::All => {
                let (old, new) = (ByteSize(image.virtual_size), ByteSize(size));
                checks.warn("disks", format!("disk {} grew from {old} to {new}", disk.target), None);
            }
            Some(_) => {}
        }
    }
    lost.iter().for_each(|lost| lost.note(update, checks));
}

/// Disks are matched by what their guests see of them, never by their order: the target device, and the serial where both
/// have one.
pub(super) fn is_same_disk(a: &DiskElement, b: &DiskElement) -> bool {
    let serials = a.serial.as_ref().zip(b.serial.as_ref());
    a.target == b.target && serials.is_none_or(|(a, b)| a == b)
}

impl<'a> Facts<'a> {
    /// The size that the source's guest sees of a disk.
    pub(super) fn source_size(&self, disk: &DiskElement) -> u64 {
        self.source.images.get(&disk.target).and_then(|chain| chain.first()).map_or(0, |image| image.virtual_size)
    }

    /// The images that the replica has for a disk of the source.
    pub(super) fn replica_disk(&self, disk: &DiskElement) -> Option<&'a [ImageFacts]> {
        self.replica?.data_disks().find(|other| is_same_disk(disk, other))?;
        let replica = self.target.replica.as_ref()?;
        replica.images.get(&disk.target).map(Vec::as_slice).filter(|chain| !chain.is_empty())
    }

    /// The disks that get an overlay, with the replica's image and those that it stands on.
    fn bases(&self, update: Update) -> impl Iterator<Item = (&'a DiskTarget, (&'a ImageFacts, &'a [ImageFacts]))> {
        let disks = self.domain.data_disks().filter(move |_| update.candidates != Candidates::All);
        disks.filter_map(|disk| Some((&disk.target, self.replica_disk(disk)?.split_first()?)))
    }

    /// The name by which the replica knows the block device that holds a disk.
    pub(super) fn device_of(&self, target: &DiskTarget) -> Option<String> {
        let disk = self.replica?.data_disks().find(|disk| disk.target == *target && disk.kind == DiskKind::Block)?;
        disk.source.clone()
    }

    /// The image of the replica that a disk is compared with, where it is.
    pub(super) fn base(&self, target: &DiskTarget) -> Option<Base> {
        let Existing::Update(update) = self.request.existing else { return None };
        let (_, (image, under)) = self.bases(update).find(|(disk, _)| *disk == target)?;
        Some(Base {
            path: image.path.clone(),
            format: image.format.clone(),
            size: image.virtual_size,
            allocated: image.allocated,
            under: under.iter().map(Link::from).collect(),
            merges: Vec::new(),
            in_place: update.in_place,
            device: self.device_of(target),
        })
    }
}
