//! What an operation will do, computed before it does anything.
//!
//! [`plan_clone`] is a pure function: request and inventories in, [`ClonePlan`] out. A plan whose checks all hold can
//! be carried out; one with a failed check carries its evidence ([`ClonePlan::refusal`]) and is as fit for being shown.
//! A sync is a clone onto a machine that is there already: [`find_replica`] finds it, [`sync_request`] makes the request.
//!
//! How a plan is made:
//! 1. the engine takes both inventories and asks the target about [`wanted_paths`];
//! 2. [`source`] checks what is to be copied, [`target`] what it needs there, [`replace`] what `--force` would take;
//! 3. [`storage`] gives each disk its pool and file;
//! 4. if nothing failed, [`crate::domain::transform`] makes the new definition.

mod binding;
mod chain;
mod check;
mod cpu;
mod definition;
mod describe;
mod disk;
mod files;
mod in_place;
mod live;
mod lost;
mod plug;
mod points;
mod port;
mod replace;
mod replica;
mod request;
mod retention;
mod shared;
mod snapshots;
mod source;
mod storage;
mod target;
mod unseen;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::Serialize;
use uuid::Uuid;

pub use chain::{Link, Merge, costs};
pub use check::{Check, Outcome};
pub use disk::{Base, ChainLink, DiskPlan, WholeFile};
pub use files::{DirectoryPlan, FileKind, FilePlan, is_copied_medium, tpm_files};
pub use live::{backup_xml, is_unchanged};
pub use points::{PointPlan, PointsPlan};
pub use replica::{Candidate, find_replica, sync_request};
pub use request::{
    Candidates, CloneRequest, Consistency, DiskFormat, Existing, FreshIdentity, NetworkTarget, Presence, SyncRequest,
    Update,
};
pub use retention::{MOST_POINTS, Retention, Safety};
pub use source::refuse_disk;
pub use target::platform_there;
pub use unseen::{unseen_image, unseen_volume};

use crate::blocks::BlockSize;
use crate::domain::{self, CarryContext, Domain, Identity, Whereabouts};
use crate::error::{Error, Result};
use crate::inventory::{SourceMachine, TargetHost};
use crate::name::{DiskTarget, SourceName, VmName};
use check::Checks;

/// What a clone will do.
#[derive(Debug, Clone, Serialize)]
pub struct ClonePlan {
    /// The source's name.
    pub vm_name: SourceName,
    /// The new machine's name.
    pub new_vm_name: VmName,
    /// The host of the source, as the user named it.
    pub source_host: String,
    /// The host of the new machine, as the user named it.
    pub dest_host: String,
    /// The new machine's UUID.
    pub new_uuid: Uuid,
    /// What was looked at, in the order in which a user would ask.
    pub checks: Vec<Check>,
    /// The disks that will be copied. A disk for which there is no place is missing here, and a check says why.
    pub disks: Vec<DiskPlan>,
    /// Files beside the disks that will be copied.
    pub files: Vec<FilePlan>,
    /// Directories that will be made for them, the outermost first.
    pub directories: Vec<DirectoryPlan>,
    /// Files of the replica's TPM that the source's has not: they go with the commit.
    pub dropped_state: Vec<String>,
    /// What point in time the copy will be.
    pub consistency: Consistency,
    /// The machine that `--force` replaces, or that a sync brings to a newer point.
    pub replaces: Option<Replaced>,
    /// The replica that a sync brings to a newer point.
    pub replica: Option<ReplicaPlan>,
    /// What becomes of the old points of that replica.
    pub points: PointsPlan,
    /// What a user should know, and what does not hinder.
    pub warnings: Vec<String>,
    /// Bytes of data that the disks and copied media hold.
    pub bytes_total: u64,
    /// The length of the blocks that are compared, in bytes.
    pub block_size: BlockSize,
    /// How many of them all disks have, and all files beside them.
    pub blocks_total: u64,
    /// Bytes that must be free at the target, margin included.
    pub space_needed: u64,
    /// The definition as it will be in the end, without passwords; nothing where a check failed.
    pub target_xml: Option<String>,
    /// The definition to be made, with the passwords of the source's displays: for libvirt alone, never shown. That of a
    /// sync names overlays.
    #[serde(skip)]
    pub definition: Option<String>,
}

/// A replica, and what it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplicaPlan {
    /// Its name.
    pub name: SourceName,
    /// Its UUID.
    pub uuid: Uuid,
    /// The moment whose content it holds (RFC 3339).
    pub point: String,
    /// The operation that brought it there.
    pub operation: Uuid,
    /// How it is brought to the next one.
    pub update: Update,
    /// The operation that has left it out of service, neither at its point nor at another one.
    pub incomplete: Option<Uuid>,
    /// Disks of one out of service that somebody has given another image since.
    #[serde(skip)]
    pub given: Vec<DiskTarget>,
    /// Its definition before.
    #[serde(skip)]
    pub before: String,
}

impl ReplicaPlan {
    /// Whether new images take the place of all of its own, which are not looked at for that.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.update.candidates == Candidates::All
    }
}

/// A machine whose place the new one takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replaced {
    /// Its name.
    pub name: SourceName,
    /// Its UUID, which the new machine takes over: so one definition of libvirt's replaces it at once.
    pub uuid: Uuid,
    /// Its disk files that no other machine uses; removed after the new machine is there.
    pub files: Vec<String>,
    /// Disks of a replica that the source has no longer, and whose images are among these files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost_disks: Vec<DiskTarget>,
}

impl ClonePlan {
    /// The lengths of all disks, then of all files beside them.
    pub fn lengths(&self) -> impl Iterator<Item = u64> {
        lengths(&self.disks, &self.files)
    }

    /// The first reason not to carry the plan out.
    #[must_use]
    pub fn refusal(&self) -> Option<Error> {
        self.checks.iter().find_map(Check::error).cloned()
    }
}

/// All that a plan is made from.
pub(crate) struct Facts<'a> {
    request: &'a CloneRequest,
    source: &'a SourceMachine,
    target: &'a TargetHost,
    domain: &'a Domain,
    /// The definition of the replica that is brought to a newer point.
    replica: Option<&'a Domain>,
    new_name: &'a VmName,
    whereabouts: Whereabouts,
    fresh: &'a FreshIdentity,
}

/// Plans a clone.
///
/// # Errors
/// Where no plan can be made at all: the source's definition cannot be read
/// ([`Code::Libvirt`](crate::Code::Libvirt)), or the request contradicts itself or leads to no valid new name
/// ([`Code::Validation`](crate::Code::Validation)). Everything else is a failed check of the plan.
pub fn plan_clone(
    request: &CloneRequest,
    source: &SourceMachine,
    target: &TargetHost,
    fresh: &FreshIdentity,
) -> Result<ClonePlan> {
    request.check()?;
    let (domain, left_out) = source_domain(request, source)?;
    let new_name = request.new_name(&source.name)?;
    let whereabouts = if source.host == target.host { Whereabouts::SameHost } else { Whereabouts::OtherHost };
    let own = replica_domain(target)?;
    let replica = own.as_ref();
    let facts = Facts { request, source, target, domain: &domain, replica, new_name: &new_name, whereabouts, fresh };

    let mut checks = Checks::default();
    left_out.into_iter().for_each(|note| checks.warn("left out", note, None));
    source::check(&facts, &mut checks);
    let replaces = replace::check(&facts, &mut checks);
    let uuid = new_uuid(&facts, replaces.as_ref());
    target::check_uuid(&facts, uuid, &mut checks);
    let platform = target::check(&facts, &mut checks);
    cpu::check(&facts, &mut checks);
    binding::check(&facts, &mut checks);
    let plugs = plug::check(&facts, &mut checks);
    shared::check(&facts, &mut checks);
    let (disks, points) = place_disks(&facts, replaces.as_ref(), &mut checks);
    let files = files::place(&facts, uuid, replaces.as_ref(), &mut checks);
    let space_needed = storage::check_space(&facts, &disks, &files.carried, &mut checks);
    let in_pools = files.carried.iter().filter(|file| file.pool.is_some()).map(|file| file.allocated);

    let mut plan = ClonePlan {
        vm_name: source.name.clone(),
        new_vm_name: new_name.clone(),
        source_host: source.host_name.clone(),
        dest_host: target.host_name.clone(),
        new_uuid: uuid,
        checks: checks.list,
        bytes_total: disks.iter().map(|disk| disk.allocated).chain(in_pools).sum(),
        block_size: request.block_size,
        blocks_total: lengths(&disks, &files.carried).map(|len| len.div_ceil(request.block_size.bytes())).sum(),
        space_needed,
        disks,
        files: files.carried,
        directories: files.directories,
        dropped_state: files.dropped_state,
        consistency: live::consistency(source),
        replaces,
        replica: replica_plan(&facts),
        points,
        warnings: checks.warnings,
        target_xml: None,
        definition: None,
    };
    if plan.refusal().is_none() {
        let wanted = definition::wanted(&facts, &plan, platform, plugs, files.nvram);
        definition::make(&facts, &wanted, &mut plan)?;
    }
    Ok(plan)
}

/// Where the disks go, and what becomes of old points under them.
fn place_disks(facts: &Facts<'_>, replaces: Option<&Replaced>, checks: &mut Checks) -> (Vec<DiskPlan>, PointsPlan) {
    let mut disks = storage::place(facts, replaces, checks);
    let points = points::plan(facts, &disks, checks);
    storage::merge(&mut disks, &points);
    (disks, points)
}

fn lengths(disks: &[DiskPlan], files: &[FilePlan]) -> impl Iterator<Item = u64> {
    disks.iter().map(|disk| disk.size).chain(files.iter().map(|file| file.size))
}

fn replica_plan(facts: &Facts<'_>) -> Option<ReplicaPlan> {
    let Existing::Update(update) = facts.request.existing else { return None };
    let replica = facts.target.replica.as_ref()?;
    Some(ReplicaPlan {
        name: replica.name.clone(),
        uuid: replica.uuid,
        point: replica.lineage.point.clone(),
        operation: replica.lineage.operation,
        update,
        incomplete: replica.lineage.incomplete.as_ref().map(|incomplete| incomplete.operation),
        given: replica.given.clone(),
        before: replica.xml.clone(),
    })
}

/// The source's definition without what the request leaves out, and what that is.
///
/// # Errors
/// As [`domain::reduce`], and where the definition cannot be read.
pub fn source_domain(request: &CloneRequest, source: &SourceMachine) -> Result<(Domain, Vec<String>)> {
    let domain = Domain::parse(&source.xml)?;
    let mut reduction = request.reduction.clone();
    // What was chosen when a replica was made may be gone from the source since.
    if matches!(request.existing, Existing::Update(_)) {
        reduction.disks.retain(|target| domain.disks().iter().any(|disk| disk.target == *target));
    }
    domain::reduce(domain, &reduction)
}

fn replica_domain(target: &TargetHost) -> Result<Option<Domain>> {
    target.replica.as_ref().map(|replica| Domain::parse(&replica.xml)).transpose()
}

/// Every path of the target that a plan depends on: the files to be made, and those that the definition expects.
///
/// The engine asks which of them are there, puts the answer into [`TargetHost::paths_present`], and plans.
///
/// # Errors
/// As [`plan_clone`].
pub fn wanted_paths(
    request: &CloneRequest,
    source: &SourceMachine,
    target: &TargetHost,
    fresh: &FreshIdentity,
) -> Result<BTreeSet<String>> {
    let (domain, _) = source_domain(request, source)?;
    let new_name = request.new_name(&source.name)?;
    let whereabouts = Whereabouts::OtherHost;
    let own = replica_domain(target)?;
    let replica = own.as_ref();
    let facts = Facts { request, source, target, domain: &domain, replica, new_name: &new_name, whereabouts, fresh };
    let mut paths = domain.host_paths();
    paths.extend(storage::candidates(&facts));
    paths.extend(files::candidates(&facts));
    paths.extend(shared::candidates(&facts));
    Ok(paths)
}

fn new_uuid(facts: &Facts<'_>, replaces: Option<&Replaced>) -> Uuid {
    match replaces {
        Some(replaced) => replaced.uuid,
        None if facts.request.keeps_uuid() => facts.source.uuid,
        None => facts.fresh.uuid,
    }
}

impl Facts<'_> {
    fn carry_context(&self) -> CarryContext<'_> {
        CarryContext {
            paths_present: &self.target.paths_present,
            whereabouts: self.whereabouts,
            identity: self.request.identity,
            tpm: self.request.tpm,
        }
    }

    fn is_same_host(&self) -> bool {
        self.whereabouts == Whereabouts::SameHost
    }
}
