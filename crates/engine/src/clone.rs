//! A clone from the outside: prepared (hosts reached, planned), then carried out.
//!
//! The main flow of the whole program is [`Prepared::execute`]: lock and read again, then the steps of the saga, the intent of each
//! journaled before it is done; on failure everything is undone in reverse.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_clone_core::blocks::DigestKey;
use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::event::{Event, Phase};
use kvm_clone_core::inventory::{ImageFormat, SourceMachine, TargetHost};
use kvm_clone_core::journal::{LockKey, Mark, Status, Step, Trail};
use kvm_clone_core::name::SourceName;
use kvm_clone_core::plan::{ClonePlan, CloneRequest, FreshIdentity, plan_clone};
use kvm_clone_core::wire::lane::Verify;
use kvm_clone_core::{Code, Error, Result};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::boundary::{Boundary, Moment, Straight, Then};
use crate::failure::keeps;
use crate::inventory::{self, Site, Source};
use crate::known::{self, Known};
use crate::lane::{Joint, Pipes, RoutePolicy};
use crate::locks::lock_both;
use crate::operation::Attendance;
use crate::outcome::{CloneResult, OperationType};
use crate::phases::Phases;
use crate::recover;
use crate::resume::Resumable;
use crate::step::Work;
use crate::store::{NewOperation, Store};

/// Where events go. Called from the engine's tasks; must not block.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// How a clone is carried out; what it makes is in the [`CloneRequest`].
#[derive(Debug, Clone)]
pub struct CloneSettings {
    /// Lanes at most.
    pub parallel: u16,
    /// How what was written is checked.
    pub verify: Verify,
    /// How long the whole operation may take.
    pub timeout: Option<Duration>,
    /// Bytes that may pile up on the source host of what a running guest overwrites; none leaves half of what is free.
    pub scratch_limit: Option<u64>,
    /// What whole disks of both sides are summed up with: both are read once more.
    pub checksum: Option<Algorithm>,
    /// Of a sync: whether what was written on the replica since its last point is overwritten.
    pub discard_target_changes: bool,
    /// Of a sync: whether everything is read and compared, whatever is known.
    pub paranoid: bool,
    /// Whether what is staged is kept when it fails in passing: then the error says `resumable`, and [`Client::resume`] goes on
    /// without sending again what is there.
    ///
    /// [`Client::resume`]: crate::Client::resume
    pub keep_staging: bool,
    /// What happens between the steps: nothing, but where tests set faults off.
    pub boundary: Arc<dyn Boundary>,
    /// The way that lanes take.
    pub route: RoutePolicy,
    /// How the ends of a lane that goes over SSH are joined.
    pub joint: Arc<dyn Joint>,
}

impl Default for CloneSettings {
    fn default() -> Self {
        Self {
            parallel: 4,
            verify: Verify::On,
            timeout: None,
            scratch_limit: None,
            checksum: None,
            discard_target_changes: false,
            paranoid: false,
            keep_staging: false,
            boundary: Arc::new(Straight),
            route: RoutePolicy::Auto,
            joint: Arc::new(Pipes),
        }
    }
}

/// A clone that is planned and can be carried out.
pub struct Prepared {
    pub(crate) request: CloneRequest,
    pub(crate) fresh: FreshIdentity,
    pub(crate) source: Site,
    pub(crate) target: Site,
    pub(crate) plan: ClonePlan,
    pub(crate) store: Store,
    pub(crate) silence: Duration,
    pub(crate) name: SourceName,
    /// The source machine as the plan has it.
    pub(crate) seen: SourceMachine,
    pub(crate) started: Instant,
    pub(crate) phases: Phases,
    /// Of an operation that was interrupted and goes on: its staging images that are there, and the bytes that each takes.
    pub(crate) staged: Option<BTreeMap<String, u64>>,
}

/// How closely the source is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// With a check of the images' structure, which takes long where they are large.
    First,
    /// For what changed.
    Again,
}

/// Takes the source's inventory.
pub(crate) async fn look_at_source(
    source: &Site,
    name: &SourceName,
    request: &CloneRequest,
    look: Look,
) -> Result<Source> {
    let mut seen = inventory::source(source, name, request).await?;
    if look == Look::First {
        inventory::check_images(source, &mut seen).await?;
    }
    Ok(seen)
}

/// Plans from both inventories.
pub(crate) fn plan(
    source: &SourceMachine,
    target: &Site,
    host: &TargetHost,
    request: &CloneRequest,
    fresh: &FreshIdentity,
) -> Result<ClonePlan> {
    let plan = plan_clone(request, source, host, fresh)?;
    require_qemu_img(target, &plan)?;
    Ok(plan)
}

/// A finished qcow2 image is checked by `qemu-img`: that it is missing must not show after everything was copied.
fn require_qemu_img(target: &Site, plan: &ClonePlan) -> Result<()> {
    let wanted = plan.disks.iter().any(|disk| disk.format == ImageFormat::Qcow2);
    if !wanted || target.host.facts.programs.contains_key("qemu-img") {
        return Ok(());
    }
    let name = &target.host.name;
    Err(Error::insufficient(format!("qemu-img is not installed on {name}; new qcow2 images are checked with it"))
        .with("host", name)
        .with("program", "qemu-img")
        .help(format!("Install qemu-utils (Debian) or qemu-img (Fedora) on {name}")))
}

impl Prepared {
    /// What will be done, with every check; show it before [`Prepared::execute`].
    #[must_use]
    pub fn plan(&self) -> &ClonePlan {
        &self.plan
    }

    /// Carries the plan out. On an error nothing of it is left at the target, or the error says what is; unless what is staged
    /// is to be kept for another try.
    ///
    /// # Errors
    /// The first failed check of the plan, whatever failed later, or [`Code::Cancelled`] and [`Code::Timeout`].
    pub async fn execute(
        self,
        settings: &CloneSettings,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<CloneResult> {
        if let Some(refusal) = self.plan.refusal() {
            return Err(refusal);
        }
        let attendance = Attendance::begin(&self.store, self.fresh.operation, events, &cancel).await?;
        let ended = self.start(settings, Arc::clone(&attendance.events), attendance.cancel.clone()).await;
        attendance.close(ended).await
    }

    async fn start(
        mut self,
        settings: &CloneSettings,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<CloneResult> {
        events(Event::Started { operation_id: self.fresh.operation });
        self.phases.enter(Phase::Prepare, &events);
        self.lock().await?;
        let (source, owner) = self.read_again().await?;
        let known = known::look(&self.source.host, &self.target, &source, &self.plan, settings).await?;
        self.begin(&known, settings).await?;
        let work = Work::new(&self, source, owner, known, settings.clone(), Arc::clone(&events))?;
        self.carry_out(work, settings, events, cancel).await
    }

    /// The saga. Each of its steps can be done again after it was done, so one that was interrupted is simply begun again.
    pub(crate) async fn carry_out(
        mut self,
        mut work: Work,
        settings: &CloneSettings,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<CloneResult> {
        let id = self.fresh.operation;
        let mut trail = Trail::default();
        let steps: Vec<Step> = Step::ALL.into_iter().filter(|step| self.has(*step)).collect();
        for step in steps {
            self.phases.enter(phase_of(step), &events);
            let outcome = tokio::select! {
                biased;
                () = cancel.cancelled(), if can_be_stopped(step) => Err(cancelled()),
                () = deadline(self.started, settings.timeout), if can_be_stopped(step) => Err(too_long(settings.timeout)),
                outcome = self.act(&mut work, step, &mut trail, &*settings.boundary) => outcome,
            };
            match outcome {
                Ok(()) => {}
                // The new point is there: what is left to be tidied up is no failure.
                Err(error) if step > Step::Define => {
                    work.warn(format!(
                        "cleaning up failed: {error}; kvm-clone recover {} does it",
                        self.target.host.name
                    ));
                    break;
                }
                Err(error) => {
                    if settings.keep_staging && keeps(step, &error) {
                        return Err(self.leave(work, error).await);
                    }
                    self.phases.enter(Phase::Undo, &events);
                    return Err(self.fail(work, trail, error).await);
                }
            }
        }
        if let Err(error) = recover::drop_superseded(&self.target, &self.store, self.plan.new_uuid, id).await {
            work.warn(format!("what an earlier sync left could not be removed: {error}"));
        }
        let mut result = self.report(&work, settings);
        let outcome = serde_json::to_string(&result).unwrap_or_default();
        // The machine stands, whatever becomes of the record of it.
        if let Err(error) = self.store.end(id, Status::Completed, &outcome).await {
            result.warnings.push(format!("the journal could not be written: {error}"));
        }
        self.store.close().await;
        Ok(result)
    }

    /// Takes the locks on both hosts.
    async fn lock(&self) -> Result<()> {
        let source = vec![LockKey::Machine(self.seen.uuid).to_string()];
        lock_both(&self.source, &self.target, self.fresh.operation, source, self.target_keys()).await
    }

    pub(crate) fn target_keys(&self) -> Vec<String> {
        let name = LockKey::Name(self.plan.new_vm_name.clone());
        vec![LockKey::Machine(self.plan.new_uuid).to_string(), name.to_string()]
    }

    /// Under the locks all that the plan relied on is read again; what changed since the user saw it is a conflict.
    async fn read_again(&mut self) -> Result<(Source, Option<(u32, u32)>)> {
        // The target is looked at for the source as it was: where that is another now, the plan is another, too.
        let (source, (target, owner)) = tokio::try_join!(
            look_at_source(&self.source, &self.name, &self.request, Look::Again),
            inventory::target(&self.target, &self.request, &self.seen, &self.fresh),
        )?;
        let plan = plan(&source.machine, &self.target, &target, &self.request, &self.fresh)?;
        if let Some(refusal) = plan.refusal() {
            return Err(refusal);
        }
        let same = plan.definition == self.plan.definition
            && plan.replaces == self.plan.replaces
            && plan.replica == self.plan.replica
            && plan.disks.iter().map(|disk| &disk.path).eq(self.plan.disks.iter().map(|disk| &disk.path))
            && plan.lengths().eq(self.plan.lengths());
        if !same {
            return Err(Error::conflict("source or target changed since the plan was made")
                .help("Run the command again to see and accept the new plan")
                .transient());
        }
        self.plan = plan;
        Ok((source, owner))
    }

    async fn begin(&self, known: &Known, settings: &CloneSettings) -> Result<()> {
        let json = |error: serde_json::Error| Error::internal(error.to_string());
        let new = NewOperation {
            id: self.fresh.operation,
            kind: self.kind(),
            source_host: self.source.host.name.clone(),
            dest_host: self.target.host.name.clone(),
            vm_name: self.plan.vm_name.to_string(),
            new_vm_name: self.plan.new_vm_name.to_string(),
            plan: serde_json::to_string(&self.plan).map_err(json)?,
            resume: serde_json::to_string(&Resumable::of(self, known, settings)?).map_err(json)?,
        };
        self.store.begin(&new).await
    }

    /// One step: intent journaled, done. That it is done is journaled with the intent of the next one, as the journal is made
    /// durable each time; of the last one the operation's end says it.
    async fn act(&self, work: &mut Work, step: Step, trail: &mut Trail, boundary: &dyn Boundary) -> Result<()> {
        let id = self.fresh.operation;
        boundary.pass(step, Moment::Begun).await?;
        let before = trail.open().last().map(|before| (*before, Mark::Done));
        let marks: Vec<_> = before.into_iter().chain([(step, Mark::Intended)]).collect();
        self.store.mark(id, &marks).await?;
        trail.take(step, Mark::Intended)?;
        boundary.pass(step, Moment::Intended).await?;
        work.act(step).await?;
        if boundary.pass(step, Moment::Acted).await? == Then::Again {
            work.act(step).await?;
        }
        trail.take(step, Mark::Done)
    }

    /// Whether the plan has this step.
    fn has(&self, step: Step) -> bool {
        let update = self.plan.replica.as_ref().map(|replica| replica.update);
        match update {
            None => !step.is_of_sync(),
            Some(update) => update.in_place || !step.is_in_place(),
        }
    }

    pub(crate) const fn kind(&self) -> OperationType {
        if self.plan.replica.is_some() { OperationType::Sync } else { OperationType::Clone }
    }
}

/// Whether a step may be left in the middle. Not where libvirt is asked to define: it would do so later, unseen.
fn can_be_stopped(step: Step) -> bool {
    step < Step::Define && step != Step::Withdraw
}

const fn phase_of(step: Step) -> Phase {
    match step {
        Step::Mark | Step::Stage | Step::Point | Step::Withdraw => Phase::Prepare,
        Step::Copy => Phase::Copy,
        Step::Finish | Step::Place => Phase::Finish,
        Step::Define => Phase::Commit,
        Step::Renew | Step::Flatten | Step::Settle | Step::Clean => Phase::Clean,
    }
}

fn cancelled() -> Error {
    Error::new(Code::Cancelled, "stopped by the user")
}

pub(crate) fn too_long(timeout: Option<Duration>) -> Error {
    let seconds = timeout.unwrap_or_default().as_secs();
    Error::timeout(format!("the operation took longer than {seconds} s")).help("Give it more time with --timeout")
}

/// Resolves when the operation has taken too long.
pub(crate) async fn deadline(started: Instant, timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep_until((started + timeout).into()).await,
        None => std::future::pending().await,
    }
}

pub(crate) fn random_key() -> Result<DigestKey> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::internal(format!("no random bytes: {error}")))?;
    Ok(DigestKey::new(bytes))
}

/// Identities that no other machine has.
pub(crate) fn fresh_identity(interfaces: usize) -> Result<FreshIdentity> {
    let mut macs = vec![[0; 6]; interfaces];
    for mac in &mut macs {
        getrandom::fill(mac).map_err(|error| Error::internal(format!("no random bytes: {error}")))?;
    }
    Ok(FreshIdentity {
        operation: Uuid::now_v7(),
        uuid: Uuid::new_v4(),
        genid: Uuid::new_v4(),
        macs,
        now: jiff::Timestamp::now().to_string(),
    })
}
