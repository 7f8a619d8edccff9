//! What the journal has of an operation, so that any later process can go on with it; and whether that still fits.

use std::collections::BTreeMap;

use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::journal::Status;
use kvm_clone_core::name::{DiskTarget, SourceName};
use kvm_clone_core::plan::{ClonePlan, CloneRequest, FreshIdentity};
use kvm_clone_core::wire::facts::Identity;
use kvm_clone_core::wire::lane::Verify;
use kvm_clone_core::{Error, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::client::HostSpec;
use crate::clone::{CloneSettings, Prepared};
use crate::known::Known;
use crate::store::{Found, Store};

/// What is written down of an operation when it begins, so that a later process can go on with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Resumable {
    pub(super) source: HostSpec,
    pub(super) target: HostSpec,
    pub(super) name: SourceName,
    /// The source machine's UUID.
    pub(super) machine: Uuid,
    pub(super) request: CloneRequest,
    pub(super) fresh: FreshIdentity,
    verify: Verify,
    checksum: Option<Algorithm>,
    discard_target_changes: bool,
    paranoid: bool,
    /// What the user agreed to lose.
    replaces: serde_json::Value,
    replica: Option<Base>,
}

/// A replica as it was when a sync of it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Base {
    /// The operation that brought it to its point.
    operation: Uuid,
    /// Its point.
    point: String,
    /// What identifies its images.
    images: BTreeMap<DiskTarget, Vec<Identity>>,
}

impl Resumable {
    /// What is to be written down.
    pub(crate) fn of(prepared: &Prepared, known: &Known, settings: &CloneSettings) -> Result<Self> {
        let replica = prepared.plan.replica.as_ref().map(|replica| Base {
            operation: replica.operation,
            point: replica.point.clone(),
            images: known.identities.clone(),
        });
        Ok(Self {
            source: prepared.source.host.spec()?,
            target: prepared.target.host.spec()?,
            name: prepared.name.clone(),
            machine: prepared.seen.uuid,
            request: prepared.request.clone(),
            fresh: prepared.fresh.clone(),
            verify: settings.verify,
            checksum: settings.checksum,
            discard_target_changes: settings.discard_target_changes,
            paranoid: settings.paranoid,
            replaces: agreed(&prepared.plan)?,
            replica,
        })
    }

    /// What was asked for when it began counts still.
    pub(super) fn settings(&self, settings: &CloneSettings) -> CloneSettings {
        CloneSettings {
            verify: self.verify,
            checksum: self.checksum,
            discard_target_changes: self.discard_target_changes,
            paranoid: self.paranoid,
            ..settings.clone()
        }
    }

    /// Whether the plan is still of the machine that the user agreed to, and of the replica that it began with.
    pub(super) fn fits(&self, plan: &ClonePlan) -> Result<()> {
        let now = plan.replica.as_ref().map(|replica| (replica.operation, &replica.point));
        if now != self.replica.as_ref().map(|base| (base.operation, &base.point)) {
            return Err(self.another("the replica is at another point than when the operation began"));
        }
        if agreed(plan)? != self.replaces {
            return Err(self.another("the machine that is to be replaced is not what it was when the operation began"));
        }
        Ok(())
    }

    /// Whether the operation itself writes to the replica's images, and has taken it out of service for that.
    pub(super) fn has_withdrawn(&self, plan: &ClonePlan) -> bool {
        plan.replica.as_ref().is_some_and(|replica| replica.incomplete == Some(self.fresh.operation))
    }

    /// Whether nobody wrote to the replica's images since the operation began.
    pub(super) fn same_images(&self, known: &Known) -> Result<()> {
        let Some(base) = &self.replica else { return Ok(()) };
        let is_same = |(disk, then): (&DiskTarget, &Vec<Identity>)| {
            let now = known.identities.get(disk).map_or(&[][..], Vec::as_slice);
            now.len() == then.len() && now.iter().zip(then).all(|(now, then)| now.is_same_file(then))
        };
        let changed = base.images.iter().find(|both| !is_same(*both));
        changed.map_or(Ok(()), |(disk, _)| {
            let what = format!("the replica's image of disk {disk} was changed since the operation began");
            Err(self.another(&what).with("disk", disk))
        })
    }

    pub(super) fn another(&self, what: &str) -> Error {
        let target = self.target.addr.to_string();
        Error::conflict(format!("operation {} cannot go on: {what}", self.fresh.operation))
            .with("vm", &self.name)
            .with("host", &target)
            .help(format!("kvm-clone recover {target} undoes it; then run the command again"))
    }
}

fn agreed(plan: &ClonePlan) -> Result<serde_json::Value> {
    serde_json::to_value(&plan.replaces).map_err(|error| Error::internal(error.to_string()))
}

/// What the journal has of an operation that can be gone on with.
pub(super) async fn noted(store: &Store, operation: Uuid) -> Result<Resumable> {
    let refuse = |why: &str| Error::validation(format!("operation {operation} {why}")).with("operation_id", operation);
    let Some(Found { status, resume }) = store.find(operation).await? else {
        return Err(refuse("is not in this controller's journal")
            .help("An operation goes on with the journal of the controller that began it (state.url)")
            .help("kvm-clone recover HOST ends what another controller left"));
    };
    match status {
        Status::Running | Status::Interrupted | Status::Pending => {}
        Status::Completed => return Err(refuse("is complete; there is nothing to go on with")),
        Status::Failed | Status::Cancelled => {
            return Err(refuse("failed or was stopped, and is undone").help("Run the command again"));
        }
    }
    let text = resume.ok_or_else(|| {
        refuse("was begun by an older kvm-clone, which did not write down how to go on")
            .help("kvm-clone recover HOST undoes it; then run the command again")
    })?;
    serde_json::from_str(&text).map_err(|error| {
        refuse(&format!("cannot go on: what the journal has of it cannot be read: {error}"))
            .help("kvm-clone recover HOST undoes it; then run the command again")
    })
}
