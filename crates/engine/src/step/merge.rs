//! After the commit of a sync: its overlays are merged into the replica's images, which the definition then names again.
//!
//! All of it can be done again at any time: an image that is merged in part, under its overlay, reads as the new point.

use std::collections::BTreeMap;

use kvm_clone_core::domain::{Domain, NewDisk, repoint};
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::wire::control::{Marker, Reply, Request};
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::wire::replica::{Flatten, Flattened, OverlayFile};
use kvm_clone_core::{Error, Result};

use super::Work;
use crate::host::Host;
use crate::host::control::unexpected;
use crate::inventory::Site;
use crate::reconnect;

impl Work {
    pub(super) async fn flatten(&mut self) -> Result<()> {
        let host = self.target.host.clone();
        let merged = flatten(&host, &mut self.marker).await?;
        for (disk, done) in merged {
            done.notes.into_iter().for_each(|note| self.warn(note));
            self.merged.insert(disk, done.image);
        }
        Ok(())
    }

    pub(super) async fn settle(&mut self) -> Result<()> {
        self.target = reconnect::revive(&self.target).await?;
        settle(&self.target, &self.marker).await
    }
}

/// Merges every overlay into the image under it, and notes in the marker that they may go.
pub(crate) async fn flatten(host: &Host, marker: &mut Marker) -> Result<Vec<(DiskTarget, Flattened)>> {
    let mut merged = Vec::new();
    for overlay in &mut marker.overlays {
        let order = Flatten { operation: marker.operation, overlay: spec(overlay), exact_size: overlay.exact_size };
        match host.control.ask(Request::Flatten(order)).await? {
            Reply::Flattened(done) => {
                overlay.flattened = done.overlay.or(overlay.flattened);
                merged.push((overlay.disk.clone(), done));
            }
            other => return Err(unexpected(&other)),
        }
    }
    if !marker.overlays.is_empty() {
        host.control.order(Request::PutMarker(Box::new(marker.clone()))).await?;
    }
    Ok(merged)
}

/// Has the definition name the images again, in the place of those overlays that it still names. Whatever else was changed
/// in it since the commit stays.
pub(crate) async fn settle(site: &Site, marker: &Marker) -> Result<()> {
    let Some(xml) = site.libvirt.definition(marker.uuid).await? else { return Ok(()) };
    let domain = Domain::parse(&xml)?;
    let lineage = domain.lineage().ok_or_else(|| Error::internal("the replica has no lineage any more"))?;
    let named = |overlay: &&OverlayFile| {
        domain.disks().iter().any(|disk| disk.target == overlay.disk && disk.source.as_ref() == Some(&overlay.path))
    };
    let image = |overlay: &OverlayFile| NewDisk::new(&overlay.image, overlay.format.clone());
    let images: BTreeMap<_, _> =
        marker.overlays.iter().filter(named).map(|overlay| (overlay.disk.clone(), image(overlay))).collect();
    if !images.is_empty() {
        site.libvirt.define(repoint(&domain, &images, &lineage)?).await?;
    }
    // Durable before the overlays go: else a power cut would leave a definition without its disks.
    site.host.control.order(Request::SyncDefinitions).await
}

fn spec(overlay: &OverlayFile) -> ImageSpec {
    let backing = vec![(overlay.image.clone(), overlay.format.clone())];
    ImageSpec { backing, ..ImageSpec::new(&overlay.path, ImageFormat::Qcow2) }
}
