//! A definition changes between two looks at a machine that is stopped. What it named before is held meanwhile, so that nobody starts the
//! machine from it: neither in between, nor at the very moment, when libvirt may have taken the definition before it.

use kvm_clone_core::plan::Replaced;
use kvm_clone_core::wire::control::Request;
use kvm_clone_core::wire::replica::HeldImage;
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use super::Work;
use super::define::made_by;
use crate::inventory::Site;

impl Work {
    /// Holds what the machine there is made of: images that become those under overlays against writers, and files that will be
    /// removed against everybody. libvirt knows neither the programs of other users nor those of other hosts that share a storage.
    pub(super) async fn hold_old(&self) -> Result<()> {
        let bases = self.plan.disks.iter().filter_map(|disk| disk.base.as_ref()).filter(|base| !base.in_place);
        let bases = bases.map(|base| HeldImage::shared(base.path.clone(), None));
        hold(&self.target, bases.chain(self.replaced_files()).collect()).await
    }

    /// Refuses where somebody has a file open that will be removed: before hours are spent on a copy that is undone for it.
    pub(super) async fn replaced_are_idle(&self) -> Result<()> {
        let files: Vec<HeldImage> = self.replaced_files().collect();
        if files.is_empty() {
            return Ok(());
        }
        hold(&self.target, files).await?;
        release(&self.target).await;
        Ok(())
    }

    fn replaced_files(&self) -> impl Iterator<Item = HeldImage> {
        self.marker.replaced.iter().cloned().map(HeldImage::alone)
    }

    /// Holds the disks that the new definition names, as they were completed.
    pub(super) async fn hold_new(&self) -> Result<()> {
        let placed = self.marker.placed();
        let finals = self.marker.finals.iter().filter(|file| file.identity.is_some() && placed.contains(&file.path));
        let finals = finals.map(|file| HeldImage::shared(file.path.clone(), file.identity)).collect();
        hold(&self.target, finals).await
    }

    /// Whether nobody started the machine that was there before in the moment of the commit: it would go on with what it was.
    pub(super) async fn was_not_started(&self) -> Result<()> {
        match &self.plan.replaces {
            None => Ok(()),
            Some(replaced) => was_not_started(&self.target, replaced, self.operation).await,
        }
    }
}

/// Keeps everybody from writing to these images, and from reading those that are held alone.
///
/// # Errors
/// [`Code::Conflict`](kvm_clone_core::Code::Conflict) where somebody does, or has written since.
pub(super) async fn hold(site: &Site, images: Vec<HeldImage>) -> Result<()> {
    if images.is_empty() {
        return Ok(());
    }
    site.host.control.order(Request::HoldImages(images)).await
}

/// Ends that. Where the order is lost the agent is, and with it what it held.
pub(super) async fn release(site: &Site) {
    let _ = site.host.control.order(Request::HoldImages(Vec::new())).await;
}

/// Whether a machine runs, if it does, by the definition that this operation made.
///
/// # Errors
/// [`Code::Conflict`](kvm_clone_core::Code::Conflict) where it runs by another.
pub(super) async fn was_not_started(site: &Site, machine: &Replaced, operation: Uuid) -> Result<()> {
    match site.libvirt.running(machine.uuid).await? {
        Some(live) if !made_by(&live, operation) => {
            let (name, host) = (&machine.name, &site.host.name);
            Err(Error::conflict(format!("machine {name} on {host} was started while its definition was changed"))
                .with("vm", name)
                .with("host", host)
                .help("Stop it, and run the command again"))
        }
        _ => Ok(()),
    }
}
