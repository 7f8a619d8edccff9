//! The steps of a clone or a sync: how each is done, and how it is undone.
//!
//! The order is the promise. Before [`Step::Define`] nothing that existed before has changed at the target; the
//! definition is one call of libvirt; after it nothing is undone any more. What is made before has a marker on the host
//! first, so that `recover` can undo it without us.

mod checksum;
mod define;
mod finish;
mod hold;
mod marker;
mod merge;
mod point;
mod renew;
mod seal;
mod source;
mod stage;
mod undo;
mod withdraw;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kvm_clone_core::Result;
use kvm_clone_core::blocks::DigestKey;
use kvm_clone_core::event::Event;
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::journal::Step;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::plan::{ClonePlan, CloneRequest, FileKind, FreshIdentity};
use kvm_clone_core::wire::control::Request;
use kvm_clone_core::wire::facts::{FinishedImage, Identity};
use kvm_clone_core::wire::lane::{Base, ImageSpec};
use kvm_clone_core::wire::marker::Marker;
use uuid::Uuid;

use crate::clone::{CloneSettings, Events, Prepared, random_key};
use crate::host::{Host, Libvirt};
use crate::inventory::{self, Site, Source};
use crate::known::{Known, base_image, manifest_path};
use crate::lane::{self, Copy, CopyDisk, Kind, Moved};
use crate::reconnect;
pub(crate) use checksum::sum;
use define::OldMachine;
pub(crate) use define::{made_by, secure_definition, standing, stands};
use marker::{kept_of, marker};
pub(crate) use merge::{flatten, settle};
pub(crate) use renew::renew;
pub(crate) use source::export;
pub(crate) use undo::{Left, Side};
pub(crate) use withdraw::out_of_service;

/// What the steps of one clone work on.
pub(crate) struct Work {
    operation: Uuid,
    source: Site,
    target: Site,
    request: CloneRequest,
    fresh: FreshIdentity,
    plan: ClonePlan,
    seen: Source,
    key: DigestKey,
    /// What was known of the replica when the locks were taken.
    known: Known,
    /// What identifies images that something was merged into, and those whose header names another image now, by their paths.
    merged: BTreeMap<String, Identity>,
    settings: CloneSettings,
    events: Events,
    marker: Marker,
    /// Staging images of an earlier try.
    staged: BTreeSet<String>,
    disks: Vec<CopyDisk>,
    finished: Vec<FinishedImage>,
    /// The machine that is replaced, once it is known to be still replaceable.
    old: Option<OldMachine>,
    /// The replica before it was taken out of service.
    withdrawn: Option<OldMachine>,
    silence: Duration,
    /// Set when lane agents are about to be started for the first time.
    copy_begun: bool,
    /// The connection over which libvirt was asked to define, set right before: from then on it may have.
    define_asked: Option<Libvirt>,
    /// Whether libvirt has answered the order to begin the job of a point.
    point_settled: bool,
    /// Whether the point of a copy that is complete was ended.
    point_released: bool,
    /// Whether images that were carried as they are have lost what must not come along.
    settled: bool,
    pub(crate) moved: Moved,
    /// Checksums of the source's disks, where they were asked for.
    sums: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

impl Work {
    pub(crate) fn new(
        prepared: &Prepared,
        seen: Source,
        owner: Option<(u32, u32)>,
        known: Known,
        settings: CloneSettings,
        events: Events,
    ) -> Result<Self> {
        let (plan, operation) = (prepared.plan.clone(), prepared.fresh.operation);
        let disks = copy_disks(&plan, &seen, operation, &prepared.target.host, owner, &known);
        let marker = marker(prepared, &disks, &known);
        Ok(Self {
            operation,
            source: prepared.source.clone(),
            target: prepared.target.clone(),
            request: prepared.request.clone(),
            fresh: prepared.fresh.clone(),
            plan,
            seen,
            key: known.key.clone().map_or_else(random_key, Ok)?,
            known,
            merged: BTreeMap::new(),
            settings,
            events,
            marker,
            staged: prepared.staged.iter().flatten().map(|(path, _)| path.clone()).collect(),
            disks,
            finished: Vec::new(),
            old: None,
            withdrawn: None,
            silence: prepared.silence,
            copy_begun: false,
            define_asked: None,
            point_settled: false,
            point_released: false,
            settled: false,
            moved: Moved::default(),
            sums: Vec::new(),
            warnings: Vec::new(),
        })
    }

    /// Does a step. Each can be done again after it was done, wholly or in part: the answer to an order may be lost. Only the
    /// copy of a machine that runs cannot, once its point is gone: where that ended with the copy, nothing is left to do.
    pub(crate) async fn act(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Mark => self.mark().await,
            Step::Stage => self.stage().await,
            Step::Point => self.take_point().await,
            Step::Withdraw => self.withdraw().await,
            Step::Copy => self.copy().await,
            Step::Finish => self.finish().await,
            Step::Place => self.place().await,
            Step::Define => self.define().await,
            Step::Renew => self.renew().await,
            Step::Flatten => self.flatten().await,
            Step::Settle => self.settle().await,
            Step::Clean => self.clean_up().await,
        }
    }

    /// Whether no disk had to be read.
    pub(crate) fn all_untouched(&self) -> bool {
        !self.disks.is_empty() && self.disks.iter().all(|disk| disk.untouched)
    }

    async fn mark(&self) -> Result<()> {
        self.replaced_are_idle().await?;
        self.target.host.control.order(Request::PutMarker(Box::new(self.marker.clone()))).await
    }

    /// Copies, and stops when the source becomes another: its start is never hindered, but the copy is worthless then.
    async fn copy(&mut self) -> Result<()> {
        if self.point_released {
            return Ok(());
        }
        if std::mem::replace(&mut self.copy_begun, true) {
            self.source.host.control.order(Request::OpenLanes).await?;
            self.target.host.control.order(Request::OpenLanes).await?;
        }
        self.give_up_old_point().await?;
        self.open_exports().await?;
        let events = Arc::clone(&self.events);
        let copy = lane::copy(Copy {
            source: &self.source.host,
            target: &self.target.host,
            disks: &self.disks,
            key: &self.key,
            block: self.plan.block_size,
            verify: self.settings.verify,
            lanes: self.settings.parallel,
            stall: self.source.host.stall(),
            joint: &*self.settings.joint,
            route: self.settings.route,
            events: &*events,
        });
        let summed = async {
            let (moved, notes) = copy.await?;
            Ok((moved, notes, self.source_sums().await?))
        };
        let copied = tokio::select! {
            copied = summed => copied,
            error = self.source_changes() => Err(error),
        };
        let (moved, notes, sums) = match copied {
            Ok(copied) => copied,
            Err(error) => return Err(self.why_not_copied(error).await),
        };
        self.release_point().await?;
        (self.moved, self.sums) = (moved, sums);
        notes.into_iter().for_each(|note| self.warn(note));
        Ok(())
    }

    async fn place(&mut self) -> Result<()> {
        let takes_a_place = |disk: &&CopyDisk| self.marker.renewed.iter().any(|file| file.path == disk.path);
        for disk in self.disks.iter().filter(|disk| !disk.in_place && !takes_a_place(disk)) {
            let (from, to) = (disk.staging.path.clone(), disk.path.clone());
            let rename = Request::Rename { operation: self.operation, from, to };
            self.target.host.control.order(rename).await?;
        }
        // Only now: in a directory of another user's, root would have to take care of what it finds there.
        for directory in self.new_directories().filter(|directory| directory.owner.is_some()) {
            self.target.host.control.order(Request::MakeDirectory(directory)).await?;
        }
        self.look_at_placed().await?;
        self.refresh_pools().await;
        Ok(())
    }

    /// A pool that cannot be refreshed does not keep the machine from being whole: it is said, not failed on.
    async fn refresh_pools(&mut self) {
        match reconnect::revive(&self.target).await {
            Ok(target) => self.target = target,
            Err(error) => return self.warn(format!("the pools could not be refreshed: {error}")),
        }
        for pool in self.marker.pools.clone() {
            if let Err(error) = self.target.libvirt.refresh(pool.clone()).await {
                self.warn(format!("pool {pool} could not be refreshed: {error}"));
            }
        }
    }

    /// Cleans up, also where the target was lost right after the commit.
    async fn clean_up(&mut self) -> Result<()> {
        match self.clean().await {
            Err(error) if error.transient => {
                self.reach_target().await?;
                self.clean().await
            }
            outcome => outcome,
        }
    }

    async fn clean(&mut self) -> Result<()> {
        if let Err(error) = self.seal().await {
            self.warn(format!("what the images hold could not be noted, so the next sync reads them: {error}"));
        }
        let replaced = self.replaced().await?;
        self.remove([replaced, self.marker.outlived()].concat()).await?;
        if !self.marker.replaced.is_empty() {
            self.refresh_pools().await;
        }
        self.target.host.control.order(Request::RemoveMarker(self.operation)).await
    }

    /// The files of the machine before that nothing uses: the new definition may name one by another path, and somebody may have
    /// given one to another machine meanwhile.
    async fn replaced(&mut self) -> Result<Vec<String>> {
        match inventory::not_in_use(&self.target, &self.marker.replaced).await {
            Err(error) if !error.transient => {
                self.warn(format!("the files of the machine before stay: {error}"));
                Ok(Vec::new())
            }
            outcome => outcome,
        }
    }

    async fn remove(&self, paths: Vec<String>) -> Result<()> {
        self.target.host.control.order(Request::Remove { operation: self.operation, paths }).await
    }

    pub(crate) fn warn(&mut self, message: String) {
        (self.events)(Event::Warning { message: message.clone() });
        self.warnings.push(message);
    }
}

fn pools(plan: &ClonePlan) -> Vec<String> {
    let files = plan.files.iter().filter_map(|file| file.pool.clone());
    let mut pools: Vec<String> = plan.disks.iter().filter_map(|disk| disk.pool.clone()).chain(files).collect();
    pools.sort();
    pools.dedup();
    pools
}

/// What is copied, with staging names: hidden, beside the final ones (a rename must not cross file systems), and carrying
/// the operation's id, so that they cannot be taken for anything else.
fn copy_disks(
    plan: &ClonePlan,
    seen: &Source,
    operation: Uuid,
    target: &Host,
    qemu: Option<(u32, u32)>,
    known: &Known,
) -> Vec<CopyDisk> {
    let staged = |name: DiskTarget, source: ImageSpec, path: &str, format: ImageFormat, size| {
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        let staging = format!("{dir}/.kvm-clone-{operation}-{name}.staging");
        CopyDisk {
            source,
            staging: ImageSpec::new(staging, format),
            base: None,
            begun: false,
            untouched: false,
            in_place: false,
            manifest: manifest_path(target, operation, &name),
            size,
            path: path.to_owned(),
            kind: Kind::Disk,
            owner: qemu,
            target: name,
        }
    };
    let disks = plan.disks.iter().filter_map(|disk| {
        let source = inventory::spec(seen.machine.images.get(&disk.target)?).ok()?;
        if let Some(whole) = disk.whole {
            let file = ImageSpec::new(&source.path, ImageFormat::Raw);
            let copied = staged(disk.target.clone(), file, &disk.path, ImageFormat::Raw, whole.length);
            return Some(CopyDisk { kind: Kind::Whole, ..copied });
        }
        let copied = staged(disk.target.clone(), source, &disk.path, disk.format.clone(), disk.size);
        let Some(base) = &disk.base else { return Some(copied) };
        let image = base_image(disk).ok()?;
        let backing = base.chain().map(|link| (link.path, link.format)).collect();
        let overlay = ImageSpec { backing, ..copied.staging };
        Some(CopyDisk {
            staging: if base.in_place { image.clone() } else { overlay },
            base: Some(Base { image, digests: known.digests.get(&disk.target).cloned(), begun: false }),
            in_place: base.in_place,
            untouched: known.untouched.contains(&disk.target),
            ..copied
        })
    });
    let files = plan.files.iter().filter_map(|file| {
        let source = ImageSpec::new(&file.source_path, ImageFormat::Raw);
        let source = if file.what == FileKind::Medium { source } else { source.without_link() };
        // The directory of a state is its emulator's, who could put anything in the way of what is staged there; the one above is not.
        let beside = if file.renews { file.path.rsplit_once('/').map_or("", |(dir, _)| dir) } else { &file.path };
        let copied = staged(file.name.parse().ok()?, source, beside, ImageFormat::Raw, file.size);
        let owner = if file.what == FileKind::Tpm { target.facts.tpm_owner } else { qemu };
        Some(CopyDisk { kind: Kind::File, owner, path: file.path.clone(), ..copied })
    });
    disks.chain(files).collect()
}
