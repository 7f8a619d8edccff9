//! Disks that a replica has and its source has not any more, and what becomes of their images.

use super::Facts;
use super::check::Checks;
use super::replica::is_same_disk;
use super::request::Update;
use crate::domain::{DiskElement, Domain};
use crate::inventory::Replica;

/// Disks that the replica has and the source has not.
pub(super) fn left_over<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = &'a DiskElement> {
    let disks = facts.replica.into_iter().flat_map(Domain::data_disks);
    disks.filter(|disk| facts.domain.data_disks().all(|other| !is_same_disk(other, disk)))
}

/// A disk that the replica has and the source has not.
pub(super) struct Lost<'a> {
    pub(super) disk: &'a DiskElement,
    /// Its image, or what its definition names.
    pub(super) image: &'a str,
    /// Whether the image is removed.
    pub(super) goes: bool,
}

impl<'a> Lost<'a> {
    /// An image goes by word alone, and where nothing else needs it: no other machine, and no point that is kept.
    pub(super) fn of(
        facts: &Facts<'a>,
        replica: &'a Replica,
        update: Update,
        disk: &'a DiskElement,
        removable: &[String],
    ) -> Self {
        let chain = replica.images.get(&disk.target).map_or(&[][..], Vec::as_slice);
        let image = chain.first().map_or_else(|| disk.source.as_deref().unwrap_or_default(), |image| &image.path);
        let is_listed =
            replica.lineage.points.iter().flat_map(|kept| kept.images.values()).any(|kept| kept.path == image);
        let is_kept = facts.request.safety.keep || chain.len() > 1 || is_listed;
        let goes = update.remove_lost && !update.disks_only && !is_kept && removable.iter().any(|path| path == image);
        Self { disk, image, goes }
    }

    pub(super) fn note(&self, update: Update, checks: &mut Checks) {
        let (disk, image) = (&self.disk.target, self.image);
        if update.disks_only {
            checks.warn("disks", format!("disk {disk} is gone from the source; the replica's stays as it is"), None);
            return;
        }
        let (fate, hint) = match (self.goes, update.remove_lost) {
            (true, _) => ("is removed", None),
            (false, true) => ("stays, as old points or other machines may need it", None),
            (false, false) => ("stays", Some("--remove-lost-disks removes it; later that is to be done by hand")),
        };
        let message = format!("disk {disk} is gone from the source; the replica loses it, its image {image} {fate}");
        checks.warn("disks", message, hint);
    }
}
