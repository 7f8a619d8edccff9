//! After the commit of a sync: overlays are merged into the images under them, and the definition names what is left.
//!
//! What is merged is the new point, unless the old one is kept; and points that were kept and are not any more. All of it can be
//! done again until the definition names the images: whatever is merged in part reads, by the definition, as the new point.

use std::collections::{BTreeMap, BTreeSet};

use kvm_clone_core::domain::{Domain, Lineage, NewDisk, repoint};
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::wire::marker::Marker;
use kvm_clone_core::wire::replica::{DiskChain, Flatten, Flattened, HeldImage, OverlayFile};
use kvm_clone_core::{Error, Result};

use super::Work;
use super::hold::{hold, release};
use crate::host::control::unexpected;
use crate::inventory::Site;
use crate::reconnect;

impl Work {
    pub(super) async fn flatten(&mut self) -> Result<()> {
        self.target = reconnect::revive(&self.target).await?;
        let site = self.target.clone();
        for (overlay, done) in flatten(&site, &mut self.marker).await? {
            done.notes.into_iter().for_each(|note| self.warn(note));
            self.note_merged(&overlay.disk, overlay.image, done.image);
            if let Some((above, done)) = overlay.above.zip(done.above) {
                self.note_merged(&overlay.disk, above, done);
            }
        }
        Ok(())
    }

    pub(super) async fn settle(&mut self) -> Result<()> {
        self.target = reconnect::revive(&self.target).await?;
        settle(&self.target, &self.marker).await
    }
}

/// Merges every overlay into its image, in order, and notes in the marker that they may go. Disks that are settled are let alone: their
/// guest may have written to them since.
pub(crate) async fn flatten(site: &Site, marker: &mut Marker) -> Result<Vec<(OverlayFile, Flattened)>> {
    let mut merged = Vec::new();
    let Some(domain) = definition(site, marker).await? else { return Ok(merged) };
    let open = unsettled(&domain, marker);
    if !open.is_empty() && !marker.merging {
        marker.merging = true;
        site.host.control.order(Request::PutMarker(Box::new(marker.clone()))).await?;
    }
    for overlay in marker.overlays.iter_mut().filter(|overlay| open.contains(&overlay.disk)) {
        let order = Flatten {
            operation: marker.operation,
            overlay: spec(overlay),
            above: overlay.above.clone(),
            exact_size: overlay.exact_size,
        };
        match site.host.control.ask(Request::Flatten(order)).await? {
            Reply::Flattened(done) => {
                overlay.flattened = done.overlay.or(overlay.flattened);
                merged.push((overlay.clone(), *done));
            }
            other => return Err(unexpected(&other)),
        }
    }
    if !merged.is_empty() {
        site.host.control.order(Request::PutMarker(Box::new(marker.clone()))).await?;
    }
    Ok(merged)
}

/// Has the definition name what is left of each disk's images, and the lineage where its kept points are, wherever overlays are
/// named still. Whatever else was changed in it since the commit stays.
pub(crate) async fn settle(site: &Site, marker: &Marker) -> Result<()> {
    let Some(domain) = definition(site, marker).await? else { return Ok(()) };
    let before = domain.lineage().ok_or_else(|| Error::internal("the replica has no lineage any more"))?;
    let mut lineage = before.clone();
    let open = unsettled(&domain, marker);
    let overlays = || marker.overlays.iter().filter(|overlay| open.contains(&overlay.disk));
    overlays().for_each(|overlay| move_point(&mut lineage, overlay));
    let is_named = |(disk, chain): &(DiskTarget, NewDisk)| {
        let mut names = overlays().filter(|overlay| overlay.disk == *disk).map(|overlay| &overlay.path);
        let source = domain.disks().iter().find(|named| named.target == *disk).and_then(|named| named.source.as_ref());
        source.is_some_and(|source| *source == chain.path || names.any(|name| name == source))
    };
    let images: BTreeMap<_, _> =
        chains(marker).into_iter().filter(|(disk, _)| open.contains(disk)).filter(is_named).collect();
    if !images.is_empty() || lineage != before {
        let merged = overlays().map(|overlay| HeldImage::shared(overlay.path.clone(), overlay.flattened));
        let left = images.values().map(|image| HeldImage::shared(image.path.clone(), None));
        hold(site, merged.chain(left).collect()).await?;
        exchange(site, marker, &domain, repoint(&domain, &images, &lineage)?).await?;
        release(site).await;
    }
    // Durable before the overlays go: else a power cut would leave a definition without its disks.
    site.host.control.order(Request::SyncDefinitions).await
}

/// Gives a machine that is stopped its definition without the overlays. Where somebody started it from them at this very moment, they stay
/// its disks.
async fn exchange(site: &Site, marker: &Marker, old: &Domain, new: String) -> Result<()> {
    let runs = async || site.libvirt.running(marker.uuid).await;
    if runs().await?.is_some() {
        return Err(in_use(site, marker));
    }
    site.libvirt.define(new).await?;
    let names_overlay = |live: &str| {
        let named = Domain::parse(live).map(|live| live.named_paths());
        named.map_or(true, |named| marker.overlays.iter().any(|overlay| named.contains(&overlay.path)))
    };
    if runs().await?.is_some_and(|live| names_overlay(&live)) {
        site.libvirt.define(old.xml().to_owned()).await?;
        return Err(in_use(site, marker));
    }
    Ok(())
}

fn in_use(site: &Site, marker: &Marker) -> Error {
    let (machine, host) = (&marker.machine, &site.host.name);
    Error::conflict(format!(
        "machine {machine} on {host} runs, and keeps the images that it runs from until it is stopped"
    ))
    .with("vm", machine)
    .with("host", host)
    .help(format!("virsh shutdown {machine}; then kvm-clone recover {host}"))
}

async fn definition(site: &Site, marker: &Marker) -> Result<Option<Domain>> {
    let xml = site.libvirt.definition(marker.uuid).await?;
    xml.map(|xml| Domain::parse(&xml)).transpose()
}

/// The disks that are not settled: of which the definition still names an overlay that is to be merged, as source, as backing store
/// or in the lineage, or which it has elsewhere or not at all by now.
fn unsettled(domain: &Domain, marker: &Marker) -> BTreeSet<DiskTarget> {
    let (named, chains) = (domain.named_paths(), chains(marker));
    let is_at_home = |disk: &DiskTarget| {
        let source = domain.disks().iter().find(|named| named.target == *disk).and_then(|named| named.source.as_ref());
        source.is_some() && source == chains.get(disk).map(|chain| &chain.path)
    };
    let open = marker.overlays.iter().filter(|overlay| named.contains(&overlay.path) || !is_at_home(&overlay.disk));
    open.map(|overlay| overlay.disk.clone()).collect()
}

fn move_point(lineage: &mut Lineage, overlay: &OverlayFile) {
    lineage.move_point(&overlay.disk, &overlay.path, (&overlay.image, &overlay.format));
}

/// What each disk lies in once all is merged. Markers of older versions do not say it: their images stand by themselves.
fn chains(marker: &Marker) -> BTreeMap<DiskTarget, NewDisk> {
    let alone = marker
        .overlays
        .iter()
        .map(|overlay| (overlay.disk.clone(), NewDisk::new(&overlay.image, overlay.format.clone())));
    let told = |chain: &DiskChain| Some((chain.disk.clone(), NewDisk::of_chain(&chain.images)?));
    alone.chain(marker.chains.iter().filter_map(told)).collect()
}

fn spec(overlay: &OverlayFile) -> ImageSpec {
    let image = (overlay.image.clone(), overlay.format.clone());
    let backing = [image].into_iter().chain(overlay.under.iter().cloned()).collect();
    ImageSpec { backing, ..ImageSpec::new(&overlay.path, ImageFormat::Qcow2) }
}
