//! Right after the commit of a sync: files that no definition names become those of the new point.
//!
//! It can be done again at any time. Files that somebody changed since the sync began stay as they are, and that is said.

use kvm_clone_core::inventory::MachineState;
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::marker::Marker;
use kvm_clone_core::{Error, Result};

use super::Work;
use crate::host::control::unexpected;
use crate::inventory::Site;
use crate::reconnect;

impl Work {
    /// Keeps emulators away from what will be renewed: from before the commit until it is.
    pub(super) async fn hold_state(&self) -> Result<()> {
        if self.marker.renewed.is_empty() {
            return Ok(());
        }
        self.target.host.control.order(Request::HoldState(self.operation)).await
    }

    /// Renews, also where the target was lost right after the commit.
    pub(super) async fn renew(&mut self) -> Result<()> {
        let renewed = match renew(&self.target, &self.marker).await {
            Err(error) if error.transient => {
                self.reach_target().await?;
                self.target = reconnect::revive(&self.target).await?;
                renew(&self.target, &self.marker).await
            }
            outcome => outcome,
        };
        if let Some(why) = renewed? {
            let name = &self.plan.new_vm_name;
            self.warn(format!(
                "the TPM of {name} keeps the state that it has: {why}; the next sync refuses to overwrite it unasked"
            ));
        }
        Ok(())
    }
}

/// Has staged files take their places; says why they did not, where somebody changed what was there.
pub(crate) async fn renew(site: &Site, marker: &Marker) -> Result<Option<String>> {
    if marker.renewed.is_empty() {
        return Ok(None);
    }
    // An emulator of before swtpm 0.7 locks nothing.
    match site.libvirt.state(marker.uuid).await? {
        None | Some(MachineState::Stopped) => {}
        Some(state) => return Err(in_use(site, marker, state)),
    }
    match site.host.control.ask(Request::RenewFiles(marker.operation)).await? {
        Reply::Renewed(renewed) => Ok(renewed.err()),
        other => Err(unexpected(&other)),
    }
}

fn in_use(site: &Site, marker: &Marker, state: MachineState) -> Error {
    let name = &marker.machine;
    Error::conflict(format!("machine {name} is {state}: the new state of its TPM waits until it is stopped"))
        .with("vm", name)
        .with("host", &site.host.name)
        .help(format!("virsh shutdown {name}; then kvm-clone recover {}", site.host.name))
}
