//! The steps of a clone: how each is done, and how it is undone.
//!
//! The order is the promise. Before [`Step::Define`] nothing that existed before has changed at the target; the
//! definition is one call of libvirt; after it nothing is undone any more. What is made before has a marker on the host
//! first, so that `recover` can undo it without us.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kvm_clone_core::blocks::DigestKey;
use kvm_clone_core::event::Event;
use kvm_clone_core::inventory::MachineState;
use kvm_clone_core::journal::Step;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::plan::ClonePlan;
use kvm_clone_core::wire::control::{FinalFile, FinishedImage, Marker, NewImage, Reply, Request};
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Code, Error, Result};
use uuid::Uuid;

use crate::clone::{CloneSettings, Events, Prepared};
use crate::host::Host;
use crate::host::control::unexpected;
use crate::inventory::{self, Site, Source};
use crate::lane::{self, Copy, CopyDisk, Moved};
use crate::outcome::Checksum;

/// Images belong to qemu alone.
const IMAGE_MODE: u32 = 0o600;
/// Pause between two looks whether the machine was started while its disks are copied.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// What the steps of one clone work on.
pub(crate) struct Work {
    operation: Uuid,
    source: Site,
    target: Site,
    plan: ClonePlan,
    seen: Source,
    owner: Option<(u32, u32)>,
    key: DigestKey,
    settings: CloneSettings,
    events: Events,
    marker: Marker,
    disks: Vec<CopyDisk>,
    finished: Vec<FinishedImage>,
    /// What the replaced machine was defined as.
    old_definition: Option<String>,
    /// Set right before libvirt is asked to define: from then on it may have.
    define_asked: bool,
    pub(crate) moved: Moved,
    pub(crate) warnings: Vec<String>,
}

impl Work {
    pub(crate) fn new(
        prepared: &Prepared,
        seen: Source,
        owner: Option<(u32, u32)>,
        key: DigestKey,
        settings: CloneSettings,
        events: Events,
    ) -> Self {
        let plan = prepared.plan.clone();
        let operation = prepared.fresh.operation;
        let disks = copy_disks(&plan, &seen, operation, &prepared.target.host);
        let list = |path: fn(&CopyDisk) -> &String| disks.iter().map(path).cloned().collect::<Vec<_>>();
        let marker = Marker {
            operation,
            source: format!("{} on {}", plan.vm_name, plan.source_host),
            machine: plan.new_vm_name.to_string(),
            uuid: plan.new_uuid,
            keys: prepared.target_keys(),
            staging: list(|disk| &disk.staging.path),
            finals: plan.disks.iter().map(|disk| FinalFile { path: disk.path.clone(), inode: None }).collect(),
            manifests: list(|disk| &disk.manifest),
            replaced: plan.replaces.iter().flat_map(|replaced| replaced.files.clone()).collect(),
            pools: pools(&plan),
            created: prepared.fresh.now.clone(),
        };
        Self {
            operation,
            source: prepared.source.clone(),
            target: prepared.target.clone(),
            plan,
            seen,
            owner,
            key,
            settings,
            events,
            marker,
            disks,
            finished: Vec::new(),
            old_definition: None,
            define_asked: false,
            moved: Moved::default(),
            warnings: Vec::new(),
        }
    }

    /// Does a step.
    pub(crate) async fn act(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Mark => self.target.host.control.order(Request::PutMarker(self.marker.clone())).await,
            Step::Stage => self.stage().await,
            Step::Copy => self.copy().await,
            Step::Finish => self.finish().await,
            Step::Place => self.place().await,
            Step::Define => self.define().await,
            Step::Clean => self.clean().await,
        }
    }

    /// Undoes a step that may have been done, wholly or in part.
    pub(crate) async fn undo(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Define => self.undefine().await,
            Step::Place => {
                self.remove(self.marker.finals.iter().map(|file| file.path.clone()).collect()).await?;
                self.refresh_pools().await;
                Ok(())
            }
            Step::Copy => self.target.host.control.order(Request::EndLanes).await,
            Step::Stage => self.remove([self.marker.staging.clone(), self.marker.manifests.clone()].concat()).await,
            Step::Mark => self.target.host.control.order(Request::RemoveMarker(self.operation)).await,
            Step::Finish | Step::Clean => Ok(()),
        }
    }

    async fn stage(&self) -> Result<()> {
        for image in self.new_images() {
            self.target.host.control.order(Request::CreateImage(image)).await?;
        }
        Ok(())
    }

    /// Copies, and stops when the source is started meanwhile: its start is never hindered, but the copy is worthless.
    async fn copy(&mut self) -> Result<()> {
        let events = Arc::clone(&self.events);
        let copy = lane::copy(Copy {
            source: &self.source.host,
            target: &self.target.host,
            disks: &self.disks,
            key: &self.key,
            verify: self.settings.verify,
            lanes: self.settings.parallel,
            stall: self.settings.stall_timeout,
            joint: &*self.settings.joint,
            events: &*events,
        });
        self.moved = tokio::select! {
            moved = copy => moved?,
            error = self.source_starts() => return Err(error),
        };
        Ok(())
    }

    /// Resolves when the source machine does not stand still any more.
    async fn source_starts(&self) -> Error {
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            if let Err(error) = self.source_still_stopped().await {
                return error;
            }
        }
    }

    async fn source_still_stopped(&self) -> Result<()> {
        let what = match self.source.libvirt.state(self.seen.machine.uuid).await? {
            Some(MachineState::Stopped) => return Ok(()),
            Some(state) => format!("was started while it was copied (it is {state})"),
            None => "was undefined while it was copied".to_owned(),
        };
        let name = &self.plan.vm_name;
        Err(Error::conflict(format!("machine {name} {what}")).with("vm", name).help("Shut it down and clone it again"))
    }

    /// Whether the source is what it was when the locks were taken: stopped, and its images not written to.
    async fn source_unchanged(&self) -> Result<()> {
        self.source_still_stopped().await?;
        for (target, chain) in &self.seen.machine.images {
            let (top, _) = chain.split_first().ok_or_else(|| Error::internal("an image chain is empty"))?;
            let spec = ImageSpec { path: top.path.clone(), format: top.format.clone(), backing: Vec::new() };
            let now = inventory::inspect(&self.source.host, spec).await?;
            let before = self.seen.identities.get(target);
            if before.is_none_or(|before| !before.iter().eq(now.iter().map(|(_, identity)| identity))) {
                return Err(Error::conflict(format!("the image of disk {target} changed while it was copied"))
                    .with("disk", target)
                    .with("path", &top.path)
                    .help("Something writes to it: find it with fuser or lsof on the source, and clone again"));
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        self.source_unchanged().await?;
        for image in self.new_images() {
            match self.target.host.control.ask(Request::FinishImage(image)).await? {
                Reply::Image(finished) => self.finished.push(finished),
                other => return Err(unexpected(&other)),
            }
        }
        for (file, finished) in self.marker.finals.iter_mut().zip(&self.finished) {
            file.inode = Some(finished.inode);
        }
        // From here on the final names can be told from other people's files.
        self.target.host.control.order(Request::PutMarker(self.marker.clone())).await
    }

    async fn place(&mut self) -> Result<()> {
        for (disk, planned) in self.disks.iter().zip(&self.plan.disks) {
            let rename = Request::Rename { from: disk.staging.path.clone(), to: planned.path.clone() };
            self.target.host.control.order(rename).await?;
        }
        self.refresh_pools().await;
        Ok(())
    }

    /// A pool that cannot be refreshed does not keep the machine from being whole: it is said, not failed on.
    async fn refresh_pools(&mut self) {
        for pool in self.marker.pools.clone() {
            if let Err(error) = self.target.libvirt.refresh(pool.clone()).await {
                self.warn(format!("pool {pool} could not be refreshed: {error}"));
            }
        }
    }

    /// The commit: everything before it is invisible, everything after it is tidying up.
    async fn define(&mut self) -> Result<()> {
        self.source_unchanged().await?;
        self.target_unchanged().await?;
        let definition = self.plan.definition.clone().ok_or_else(|| Error::internal("the plan has no definition"))?;
        self.define_asked = true;
        self.target.libvirt.define(definition).await?;
        self.target.host.control.order(Request::SyncDefinitions).await
    }

    /// Whether the place of the new machine is still free, or still held by the machine that is to be replaced.
    async fn target_unchanged(&mut self) -> Result<()> {
        let uuid = self.plan.new_uuid;
        let state = self.target.libvirt.state(uuid).await?;
        match (&self.plan.replaces, state) {
            (None, None) => Ok(()),
            (Some(_), Some(MachineState::Stopped)) => {
                self.old_definition = self.target.libvirt.definition(uuid).await?;
                Ok(())
            }
            (Some(replaced), Some(state)) => {
                Err(Error::conflict(format!("machine {} is {state}; only a stopped machine can be replaced", replaced.name))
                    .with("vm", &replaced.name))
            }
            (Some(replaced), None) => {
                Err(Error::conflict(format!("machine {} vanished while it was to be replaced", replaced.name)))
            }
            (None, Some(_)) => Err(Error::new(Code::VmExists, "a machine of this UUID appeared at the target")),
        }
    }

    /// Takes the definition back, if libvirt has it: the answer to the call may have been lost.
    async fn undefine(&mut self) -> Result<()> {
        if !self.define_asked || !self.stands().await? {
            return Ok(());
        }
        match self.old_definition.take() {
            Some(old) => self.target.libvirt.define(old).await?,
            None => self.target.libvirt.undefine(self.plan.new_uuid).await?,
        }
        self.target.host.control.order(Request::SyncDefinitions).await
    }

    async fn stands(&self) -> Result<bool> {
        let definition = self.target.libvirt.definition(self.plan.new_uuid).await?;
        Ok(definition.is_some_and(|xml| made_by(&xml, self.operation)))
    }

    async fn clean(&mut self) -> Result<()> {
        self.remove([self.marker.replaced.clone(), self.marker.staging.clone()].concat()).await?;
        if !self.marker.replaced.is_empty() {
            self.refresh_pools().await;
        }
        self.target.host.control.order(Request::RemoveMarker(self.operation)).await
    }

    async fn remove(&self, paths: Vec<String>) -> Result<()> {
        self.target.host.control.order(Request::Remove { operation: self.operation, paths }).await
    }

    /// Makes sure of a target that can be talked to: the failure to be undone may be that it was lost.
    pub(crate) async fn prepare_undo(&mut self, silence: Duration) -> Result<()> {
        if self.target.host.control.order(Request::EndLanes).await.is_ok() {
            return Ok(());
        }
        self.target = crate::reconnect::reconnect(&self.target, self.operation, &self.marker.keys, silence).await?;
        Ok(())
    }

    /// The error of an operation that could not be undone: what is left, where, and how to get rid of it.
    pub(crate) fn left_behind(&self, cause: &Error, failure: &Error) -> Error {
        let host = &self.target.host.name;
        let left = self.disks.iter().map(|disk| disk.staging.path.clone()).collect::<Vec<_>>().join(", ");
        let mut error = Error::new(Code::UndoFailed, format!("{cause}; and it could not be undone on {host}: {failure}"))
            .with("cause_code", cause.code.number())
            .with("host", host)
            .with("left", left)
            .help(format!("kvm-clone recover {host} removes what is left, once the host can be reached"));
        error.context.extend(cause.context.clone());
        error
    }

    pub(crate) fn warn(&mut self, message: String) {
        (self.events)(Event::Warning { message: message.clone() });
        self.warnings.push(message);
    }

    pub(crate) fn checksums(&self) -> BTreeMap<DiskTarget, Checksum> {
        let hex = |root: &[u8; 32]| root.iter().map(|byte| format!("{byte:02x}")).collect();
        let disks = self.disks.iter().zip(&self.finished);
        disks
            .map(|(disk, image)| {
                (disk.target.clone(), Checksum { algorithm: "kvm-clone-root", value: hex(&image.root) })
            })
            .collect()
    }

    fn new_images(&self) -> Vec<NewImage> {
        let new = |(index, disk): (u16, &CopyDisk)| NewImage {
            operation: self.operation,
            disk: index,
            image: disk.staging.clone(),
            virtual_size: disk.size,
            manifest: disk.manifest.clone(),
            key: self.key.clone(),
            owner: self.owner,
            mode: IMAGE_MODE,
        };
        (0..).zip(&self.disks).map(new).collect()
    }
}

/// Whether a definition was made by this operation.
pub(crate) fn made_by(xml: &str, operation: Uuid) -> bool {
    let domain = kvm_clone_core::domain::Domain::parse(xml).ok();
    domain.and_then(|domain| domain.lineage()).is_some_and(|lineage| lineage.operation == operation)
}

fn pools(plan: &ClonePlan) -> Vec<String> {
    let mut pools: Vec<String> = plan.disks.iter().map(|disk| disk.pool.clone()).collect();
    pools.sort();
    pools.dedup();
    pools
}

/// The disks with their staging names: hidden, beside the final ones (a rename must not cross file systems), and
/// carrying the operation's id, so that they cannot be taken for anything else.
fn copy_disks(plan: &ClonePlan, seen: &Source, operation: Uuid, target: &Host) -> Vec<CopyDisk> {
    let disk = |planned: &kvm_clone_core::plan::DiskPlan| {
        let dir = planned.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        let staging = format!("{dir}/.kvm-clone-{operation}-{}.staging", planned.target);
        let chain = seen.machine.images.get(&planned.target)?;
        Some(CopyDisk {
            target: planned.target.clone(),
            source: inventory::spec(chain).ok()?,
            staging: ImageSpec { path: staging, format: planned.format.clone(), backing: Vec::new() },
            manifest: format!("{}/manifests/{operation}-{}", target.facts.state_dir, planned.target),
            size: planned.size,
        })
    };
    plan.disks.iter().filter_map(disk).collect()
}
