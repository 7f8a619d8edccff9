//! Of a sync in place: before the first byte is written, one definition takes the replica out of service. From then until the
//! commit its disks name files that are not there, so that a mixture of two points can neither be booted nor be taken for a machine.

use std::collections::BTreeMap;

use kvm_clone_core::domain::{Domain, Incomplete, WrittenImage, with_true_images, withdraw};
use kvm_clone_core::journal::Stands;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::plan::DiskPlan;
use kvm_clone_core::wire::control::Request;
use kvm_clone_core::{Code, Error, Result};

use super::define::standing;
use super::hold::was_not_started;
use super::{Work, kept_of};
use crate::reconnect;

impl Work {
    /// The images that will be written, by disk, as definitions name them. What nobody touched is not written.
    pub(super) fn written(&self) -> BTreeMap<DiskTarget, WrittenImage> {
        let is_written = |disk: &DiskTarget| {
            self.disks.iter().any(|copied| copied.target == *disk && copied.in_place && !copied.untouched)
        };
        let planned = self.plan.disks.iter().filter(|disk| is_written(&disk.target));
        planned.filter_map(|disk| Some((disk.target.clone(), disk.base.as_ref()?.written()))).collect()
    }

    /// Takes the replica out of service, durably. Until the copy begins nothing else of it is changed.
    pub(super) async fn withdraw(&mut self) -> Result<()> {
        let images = self.written();
        if images.is_empty() {
            return Ok(());
        }
        // From a source that is lost or another by now nothing would come.
        self.source_unchanged().await?;
        self.same_source(&self.source).await?;
        self.target = reconnect::revive(&self.target).await?;
        let replaced = self.plan.replaces.clone();
        let replaced = replaced.ok_or_else(|| Error::internal("a sync in place has no replica"))?;
        if self.withdrawn.is_none() || !self.is_withdrawn().await? {
            let before = self.still_replaceable(&replaced).await?;
            let replica = with_true_images(&Domain::parse(&before.definition)?)?;
            let definition = withdraw(&replica, Incomplete { operation: self.operation, images })?;
            self.hold_state().await?;
            self.withdrawn = Some(before);
            self.target.libvirt.define(definition).await?;
        }
        was_not_started(&self.target, &replaced, self.operation).await?;
        self.target.host.control.order(Request::SyncDefinitions).await
    }

    /// Before the first byte is written in place the images get their new sizes, and what was kept of the old point's disks goes.
    pub(super) async fn give_up_old_point(&self) -> Result<()> {
        if self.written().is_empty() {
            return Ok(());
        }
        for (image, _) in self.new_images().into_iter().zip(&self.disks).filter(|(_, disk)| disk.in_place) {
            self.target.host.control.order(Request::ResizeInPlace(image)).await?;
        }
        self.drop_old_digests().await
    }

    /// Whoever puts the old definition back by hand must not find the old digests of its disks beside it. Those of files beside the disks
    /// stay: they are what they were.
    async fn drop_old_digests(&self) -> Result<()> {
        let Some(replica) = &self.plan.replica else { return Ok(()) };
        let kept = |disk: &DiskPlan| kept_of(&self.target.host, replica.operation, disk.target.as_str());
        self.remove(self.plan.disks.iter().flat_map(kept).collect()).await
    }

    async fn is_withdrawn(&self) -> Result<bool> {
        Ok(standing(&self.target, self.plan.new_uuid, self.operation).await? == Stands::Withdrawn)
    }

    /// Puts the replica back into service, as long as nothing can have been written.
    ///
    /// # Errors
    /// [`Code::UndoFailed`] from the first byte on: neither the old point nor the new one is there.
    pub(super) async fn reinstate(&mut self) -> Result<()> {
        if self.written().is_empty() {
            return Ok(());
        }
        let incomplete = self.plan.replica.as_ref().and_then(|replica| replica.incomplete);
        if self.copy_begun || incomplete == Some(self.operation) {
            return Err(self.out_of_service());
        }
        let Some(before) = &self.withdrawn else { return Ok(()) };
        self.target.libvirt.no_more_changes().await?;
        self.target = reconnect::revive(&self.target).await?;
        // Whatever stands now: an order to define that failed may have come true.
        self.target.libvirt.define(before.definition.clone()).await?;
        self.target.host.control.order(Request::SyncDefinitions).await
    }

    fn out_of_service(&self) -> Error {
        out_of_service(self.plan.new_vm_name.as_str())
    }

    /// Where the images lie that are neither old nor new.
    pub(super) fn written_paths(&self) -> Vec<String> {
        self.written().into_values().map(|image| image.path).collect()
    }

    /// The ways on.
    pub(super) fn out_of_service_helps(&self) -> [String; 2] {
        let (source, dest) = (&self.plan.source_host, &self.plan.dest_host);
        let (machine, name) = (&self.plan.vm_name, &self.plan.new_vm_name);
        [
            format!("kvm-clone sync {source} {dest} {machine} -t {name} compares everything and completes it"),
            format!("kvm-clone resume {} does so, too", self.operation),
        ]
    }
}

/// What is to be said of a replica that is out of service.
pub(crate) fn out_of_service(name: &str) -> Error {
    let message = format!("replica {name} is out of service: its disks are neither the old point nor the new one");
    Error::new(Code::UndoFailed, message).with("vm", name)
}
