//! A sync in place: the replica's own images are written, where there is no room for overlays or no way to have any.
//!
//! Never chosen by itself: asked for by word, or what completes a replica that such a sync has left out of service.

use super::Facts;
use super::check::Checks;
use super::replica::other_user;
use super::request::{Candidates, SyncRequest, Update, WITHOUT_POINTS};
use super::shared::is_one_storage;
use crate::domain::{DiskElement, Incomplete, Lineage, starts_without};
use crate::error::{Error, Result};
use crate::inventory::{ImageFacts, ImageFormat, Replica};
use crate::size::{ByteSize, whole_sectors};

/// How the replica is updated: one that is out of service holds no point that overlays could keep.
///
/// # Errors
/// [`Code::Validation`](crate::Code::Validation) where new images are asked for, or the old point, and to write the old images.
pub(super) fn update(request: &SyncRequest, lineage: &Lineage) -> Result<Update> {
    let asked = request.update;
    let whole = asked.candidates == Candidates::All;
    if whole && asked.in_place {
        return Err(Error::validation("new images are not written in place").help("Leave --full or --in-place out"));
    }
    if request.safety.keep && asked.in_place {
        return Err(Error::validation("a sync that writes into the replica's own disks cannot keep their old point")
            .help("Leave --in-place or --safety-snapshot out")
            .help(WITHOUT_POINTS));
    }
    Ok(Update { in_place: asked.in_place || (lineage.incomplete.is_some() && !whole), ..asked })
}

/// What is at stake.
pub(super) fn note_risk(replica: &Replica, update: Update, checks: &mut Checks) {
    if update.in_place {
        checks.warn(
            "in place",
            risk(replica),
            Some("Without --in-place the old point stands until the new one is complete"),
        );
    }
}

fn risk(replica: &Replica) -> String {
    let name = &replica.name;
    match replica.lineage.incomplete {
        None => format!(
            "the disks of {name} are written in place: from the first byte until the last one it is out of service, \
             and if the sync is interrupted its old point is lost and it stays so until a sync completes it"
        ),
        Some(_) => format!("{name} stays out of service until its disks are complete"),
    }
}

/// A replica that holds no point.
pub(super) fn note_incomplete(replica: &Replica, incomplete: &Incomplete, update: Update, checks: &mut Checks) {
    let then = match update.candidates {
        Candidates::All => "new images take its place",
        _ => "everything is compared, and completed in place",
    };
    let message = format!(
        "machine {} is out of service: operation {} was interrupted while it wrote its disks, which are neither old nor \
         new, and no point that could be kept; {then}",
        replica.name, incomplete.operation
    );
    checks.warn("replica", message, None);
}

/// A disk that an interrupted sync has written, and that this one would leave as it is in a definition that stays.
pub(super) fn refuse_left_out(facts: &Facts<'_>, replica: &Replica, update: Update) -> Option<Error> {
    let incomplete = replica.lineage.incomplete.as_ref().filter(|_| update.disks_only)?;
    let is_written = |disk: &&DiskElement| facts.replica_disk(disk).is_some();
    let written: Vec<_> = facts.domain.data_disks().filter(is_written).map(|disk| &disk.target).collect();
    let left = incomplete.images.keys().find(|disk| !written.contains(disk))?;
    let message =
        format!("disk {left} of replica {} is neither old nor new, and its source has none such", replica.name);
    Some(
        Error::conflict(message)
            .with("disk", left)
            .with("host", &facts.target.host_name)
            .help("Sync without --disks-only: the replica loses the disk"),
    )
}

/// Whether writing this image would be writing to what is copied.
fn is_of_source(facts: &Facts<'_>, image: &ImageFacts) -> bool {
    let storage = |image: &ImageFacts| (image.file, image.device_id.clone());
    let (own, device) = storage(image);
    // Of a device without a name of its own two hosts cannot tell.
    let can_tell = image.regular_file || device.is_some();
    facts.source.images.values().flatten().map(storage).any(|(file, other)| {
        let is_here = facts.is_same_host() && file.is(&own);
        is_here || (can_tell && is_one_storage((file, other.as_ref()), (own, device.as_ref())))
    })
}

/// Why an image cannot be written in place, if it cannot.
pub(super) fn refuse_image(
    facts: &Facts<'_>,
    replica: &Replica,
    disk: &DiskElement,
    chain: &[ImageFacts],
) -> Option<Error> {
    let image = chain.first()?;
    let (path, name, size) = (&image.path, &replica.name, facts.source_size(disk));
    let refuse = |what: &str| {
        let message = format!("image {path} of replica {name} {what}, and cannot be written in place");
        Error::unsupported(message).with("path", path)
    };
    if let Some(other) = other_user(facts, replica, image) {
        let message = format!("image {path} of replica {name} is used by machine {} as well", other.name);
        let error = Error::conflict(message).with("path", path).with("host", &facts.target.host_name);
        return Some(error.help("Leave --in-place out, or give one of the two an image of its own"));
    }
    let error = match () {
        () if image.format != ImageFormat::Raw => refuse(&format!("is of format {}", image.format)).help(
            "Leave --in-place out: overlays stage what differs, and the old point stands until they are complete",
        ),
        () if facts.replica.is_some_and(|own| starts_without(own, &disk.target)) => {
            refuse("may be missing when the machine starts (startupPolicy)")
        }
        // What libvirt's pools give it can be another device after the next reboot.
        () if !image.regular_file && facts.device_of(&disk.target).is_none() => {
            refuse("is a device that the definition does not name as one")
                .help("Have the replica's definition name the device: <disk type='block'><source dev='...'/>")
        }
        () if is_of_source(facts, image) => {
            Error::conflict(format!("image {path} of replica {name} is an image of the source itself"))
                .with("path", path)
                .help("Give the replica's disk an image of its own")
        }
        () if !image.regular_file && image.virtual_size != size => {
            let (here, there) = (ByteSize(image.virtual_size), ByteSize(size));
            refuse(&format!(
                "is a device of {here} ({} bytes), the source's disk has {there} ({size})",
                image.virtual_size
            ))
            .help("Give the device exactly the size of the source's disk")
        }
        () if image.virtual_size > whole_sectors(size) => {
            let (old, new) = (ByteSize(image.virtual_size), ByteSize(size));
            Error::conflict(format!(
                "the source's disk has {new} now, that of replica {name} {old}: a disk is never shrunk in its image"
            ))
        }
        () => return None,
    };
    Some(error.with("host", &facts.target.host_name))
}
