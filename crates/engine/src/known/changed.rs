//! Whether a replica was changed since its last point, asked where its images are replaced whole or written in place. A sync with
//! overlays finds that out on its way; others would have thrown it away by then.

use std::collections::BTreeMap;

use kvm_clone_core::domain::Domain;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::plan::ReplicaPlan;
use kvm_clone_core::wire::facts::Identity;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Error, Result};

use super::{kept_digests, sealed, untold_disk};
use crate::host::Host;
use crate::inventory::{self, Site};
use crate::verify::with_digests;

/// Of these disks, reads what no seal vouches for, or all of it, and compares it with the digests of the last point. Returns what
/// identified their images before that.
///
/// # Errors
/// [`kvm_clone_core::Code::Conflict`] where a disk was changed, or where that cannot be told.
pub(super) async fn refuse(
    target: &Site,
    replica: &ReplicaPlan,
    paranoid: bool,
    which: impl Fn(&DiskTarget) -> bool,
) -> Result<BTreeMap<String, Vec<Identity>>> {
    let domain = Domain::parse(&replica.before)?;
    let mut looked_at = BTreeMap::new();
    for (disk, seen) in inventory::disk_images(target, &domain).await?.into_iter().filter(|(disk, _)| which(disk)) {
        let size = seen.images.first().map_or(0, |image| image.virtual_size);
        let image = inventory::spec(&seen.images)?;
        let checked = refuse_disk(&target.host, (replica, paranoid), &disk, &image, size).await;
        checked.map_err(|error| error.with("disk", &disk))?;
        // What is seen of a device does not tell whether somebody writes to it.
        if let Some((image, identity)) =
            seen.images.first().zip(seen.identities.first()).filter(|(image, _)| image.regular_file)
        {
            looked_at.insert(image.path.clone(), vec![*identity]);
        }
    }
    Ok(looked_at)
}

async fn refuse_disk(
    host: &Host,
    (replica, paranoid): (&ReplicaPlan, bool),
    disk: &DiskTarget,
    image: &ImageSpec,
    size: u64,
) -> Result<()> {
    let kept = kept_digests(host, replica.operation, disk, size).await?;
    let kept = [(disk.clone(), kept.map_err(|why| untold_disk(host, replica, disk, &why))?)];
    if !paranoid && !sealed(host, replica.operation, &kept, |_| Some(image.clone())).await?.is_empty() {
        return Ok(());
    }
    let [(_, kept)] = kept;
    match with_digests(&host.control, image, &kept, &|_| ()).await?.bytes() {
        0 => Ok(()),
        bytes => Err(changed(host, replica, disk, image, bytes)),
    }
}

fn changed(host: &Host, replica: &ReplicaPlan, disk: &DiskTarget, image: &ImageSpec, bytes: u64) -> Error {
    let message = format!("disk {disk} of replica {} was changed since its point of {}", replica.name, replica.point);
    Error::conflict(message)
        .with("vm", &replica.name)
        .with("host", &host.name)
        .with("path", &image.path)
        .with("bytes", bytes)
        .help(format!("See what it is: kvm-clone verify {} {}", host.name, replica.name))
        .help("--discard-target-changes throws it away")
}
