//! The point of a running source: taken before the copy, ended right after it, whatever came of it.

use std::time::Duration;

use kvm_clone_core::journal::LockKey;
use kvm_clone_core::plan::backup_xml;
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::lane::Export;
use kvm_clone_core::wire::point::{COMING, GOING, PointOrder, PointPlace, PointState};
use kvm_clone_core::{Code, Error, Result};

use super::Work;
use crate::host::control::unexpected;
use crate::lane::Kind;
use crate::reconnect;

impl Work {
    /// Holds a point of a running source; the disks are read from its job from now on. The agent guards it before
    /// libvirt is asked: there is no moment at which nobody would end it.
    pub(super) async fn take_point(&mut self) -> Result<()> {
        let Some(live) = self.seen.machine.live.clone() else { return Ok(()) };
        self.source = reconnect::revive(&self.source).await?;
        // libvirt may take long to end a job that has just begun, and lets no other one begin meanwhile.
        if self.holds_point().await? {
            return Ok(());
        }
        let control = &self.source.host.control;
        control.order(Request::EndPoint { settled: true }).await?;
        let disks = self
            .disks
            .iter()
            .filter(|disk| disk.kind == Kind::Disk)
            .map(|disk| (disk.target.clone(), disk.source.path.clone()));
        let order = PointOrder {
            operation: self.operation,
            source: self.marker.source.clone(),
            new_name: self.plan.new_vm_name.to_string(),
            machine: self.seen.machine.uuid,
            domain_id: live.id,
            disks: disks.collect(),
            scratch_limit: self.settings.scratch_limit,
        };
        let place = match control.ask(Request::ArmPoint(order)).await? {
            Reply::Point(place) => place,
            other => return Err(unexpected(&other)),
        };
        let job = backup_xml(&place.socket, &place.scratch);
        let begun = self.source.libvirt.begin_backup(self.seen.machine.uuid, job).await;
        // A refusal is an answer; silence is none, and the job may yet come up.
        let silence = |error: &Error| error.transient && error.code != Code::Locked;
        self.point_settled = !begun.as_ref().is_err_and(silence);
        if let Err(error) = begun {
            return Err(self.why_not_copied(error.with("vm", &self.plan.vm_name)).await);
        }
        self.require_guard().await?;
        // While the point is held nobody resizes a disk, takes a snapshot or moves the machine: qemu and libvirt refuse. What
        // came before it, since the plan was made, shows now.
        self.same_source(&self.source).await?;
        self.read_from(&place);
        Ok(())
    }

    /// Who cannot see the job would neither watch nor end it.
    async fn require_guard(&self) -> Result<()> {
        match self.point_state().await? {
            PointState { ended_because: Some(cause), .. } => Err(cause),
            PointState { held: true, .. } => Ok(()),
            PointState { held: false, .. } => {
                Err(Error::unsupported("the source's agent does not see the backup job that libvirt has begun")
                    .with("vm", &self.plan.vm_name)
                    .help("Log in where the machine's process runs, not in a container or another network namespace")
                    .help("Or shut the machine down and clone it then"))
            }
        }
    }

    /// Whether the point was taken already, and is held still.
    async fn holds_point(&self) -> Result<bool> {
        if !self.disks.iter().any(|disk| disk.kind == Kind::Disk && disk.source.export.is_some()) {
            return Ok(false);
        }
        let state = self.point_state().await?;
        Ok(state.held && state.ended_because.is_none())
    }

    fn read_from(&mut self, place: &PointPlace) {
        for disk in self.disks.iter_mut().filter(|disk| disk.kind == Kind::Disk) {
            disk.source.export = Some(Export { socket: place.socket.clone(), name: disk.target.to_string() });
        }
    }

    /// Ends the point of a copy that is complete, having made sure that it was held to the end.
    pub(super) async fn release_point(&mut self) -> Result<()> {
        if self.seen.machine.live.is_none() {
            return Ok(());
        }
        let state = self.point_state().await?;
        if let Some(error) = state.ended_because {
            return Err(error);
        }
        self.source = reconnect::revive(&self.source).await?;
        self.same_source(&self.source).await?;
        self.same_files().await?;
        self.source.host.control.order(Request::EndPoint { settled: true }).await?;
        self.point_released = true;
        Ok(())
    }

    async fn point_state(&self) -> Result<PointState> {
        match self.source.host.control.ask(Request::PointState).await? {
            Reply::PointState(state) => Ok(state),
            other => Err(unexpected(&other)),
        }
    }

    /// Of a copy that failed, what lies behind it: lanes only see that the job's socket closed.
    pub(super) async fn why_not_copied(&self, error: Error) -> Error {
        if self.seen.machine.live.is_none() {
            return error;
        }
        if let Ok(PointState { ended_because: Some(cause), .. }) = self.point_state().await {
            return cause;
        }
        match self.same_source(&self.source).await {
            Err(cause) if cause.code == Code::Conflict => cause,
            _ => error,
        }
    }

    /// Undoes [`Self::take_point`]. Where the source's agent was lost, another one, which takes the machine's lock, ends
    /// what that one may have left.
    pub(super) async fn drop_point(&mut self) -> Result<()> {
        if self.seen.machine.live.is_none() {
            return Ok(());
        }
        let end = Request::EndPoint { settled: self.point_settled };
        match self.source.host.control.order(end).await {
            Err(error) if error.transient && self.source.host.control.is_gone() => {
                let keys = [LockKey::Machine(self.seen.machine.uuid).to_string()];
                // The agent that was lost may itself wait for a job that can still come up.
                let silence = self.silence + GOING + if self.point_settled { Duration::ZERO } else { COMING };
                self.source = reconnect::reconnect(&self.source, self.operation, &keys, silence).await?;
                self.source.host.control.order(Request::ClearPoints).await
            }
            outcome => outcome,
        }
    }
}
