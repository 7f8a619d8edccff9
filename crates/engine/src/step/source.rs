//! Whether the source stands still while it is copied. Its start is never hindered; a copy made meanwhile is worthless.

use std::time::Duration;

use kvm_clone_core::inventory::MachineState;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Code, Error, Result};

use super::Work;
use crate::inventory::{self, Site};
use crate::reconnect;

/// Pause between two looks whether the machine was started while its disks are copied.
const WATCH_EVERY: Duration = Duration::from_secs(2);

impl Work {
    /// Resolves when the source machine does not stand still any more, or cannot be watched any more.
    pub(super) async fn source_starts(&self) -> Error {
        let mut site = self.source.clone();
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            let Err(error) = self.stopped(&site).await else { continue };
            if error.code == Code::Conflict {
                return error;
            }
            // A libvirt that was restarted is no reason to give up hours of copying.
            site = match reconnect::revive(&site).await {
                Ok(site) => site,
                Err(error) => return error,
            };
        }
    }

    async fn stopped(&self, site: &Site) -> Result<()> {
        let what = match site.libvirt.state(self.seen.machine.uuid).await? {
            Some(MachineState::Stopped) => return Ok(()),
            Some(state) => format!("was started while it was copied (it is {state})"),
            None => "was undefined while it was copied".to_owned(),
        };
        let name = &self.plan.vm_name;
        Err(Error::conflict(format!("machine {name} {what}")).with("vm", name).help("Shut it down and clone it again"))
    }

    /// Whether the source is what it was when the locks were taken: stopped, and its images not written to.
    pub(super) async fn source_unchanged(&mut self) -> Result<()> {
        self.source = reconnect::revive(&self.source).await?;
        self.stopped(&self.source).await?;
        for (target, chain) in &self.seen.machine.images {
            let (top, _) = chain.split_first().ok_or_else(|| Error::internal("an image chain is empty"))?;
            let spec =
                ImageSpec { path: top.path.clone(), format: top.format.clone(), backing: Vec::new(), export: None };
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
}
