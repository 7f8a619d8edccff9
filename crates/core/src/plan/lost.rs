//! Disks that a replica has and its source has not any more, and what becomes of their images.

use super::Facts;
use super::check::Checks;
use super::replica::{is_at, is_same_disk};
use super::request::Update;
use crate::domain::{DiskElement, Domain};
use crate::inventory::{ExistingMachine, Replica};

/// Disks that the replica has and the source has not.
pub(super) fn left_over<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = &'a DiskElement> {
    let disks = facts.replica.into_iter().flat_map(Domain::data_disks);
    disks.filter(|disk| facts.domain.data_disks().all(|other| !is_same_disk(other, disk)))
}

/// A disk that the replica has and the source has not.
pub(super) struct Lost<'a> {
    pub(super) disk: &'a DiskElement,
    /// The paths by which its image goes in the replica's definition.
    paths: Vec<String>,
    /// Whether the image is removed.
    pub(super) goes: bool,
}

impl<'a> Lost<'a> {
    /// An image goes by word alone, and where nothing else needs it: no other machine, and no point that is kept. Nor does it where
    /// the replica's disks are written in place, since nobody looks at the others until that is complete.
    pub(super) fn of(
        facts: &Facts<'a>,
        (replica, existing): (&Replica, &ExistingMachine),
        update: Update,
        disk: &'a DiskElement,
        removable: &[String],
    ) -> Self {
        let chain = replica.images.get(&disk.target).map_or(&[][..], Vec::as_slice);
        let is_its = |path: &&String| {
            disk.source.as_ref() == Some(*path) || chain.first().is_some_and(|image| is_at(existing, path, image))
        };
        let named = existing.disk_files.iter().map(|file| &file.path);
        let paths: Vec<String> = named.filter(is_its).cloned().collect();
        let mut listed = replica.lineage.points.iter().flat_map(|kept| kept.images.values());
        let is_listed =
            listed.any(|kept| paths.contains(&kept.path) || chain.first().is_some_and(|image| image.path == kept.path));
        let is_kept = facts.request.safety.keep || chain.len() > 1 || is_listed;
        let is_in_place = update.in_place || replica.lineage.incomplete.is_some();
        let is_asked = update.remove_lost && !update.disks_only;
        let goes = is_asked && !is_kept && !is_in_place && paths.iter().any(|path| removable.contains(path));
        Self { disk, paths, goes }
    }

    /// Whether this is its image, and stays.
    pub(super) fn keeps(&self, path: &String) -> bool {
        !self.goes && self.paths.contains(path)
    }

    pub(super) fn note(&self, update: Update, checks: &mut Checks) {
        let disk = &self.disk.target;
        if update.disks_only {
            checks.warn("disks", format!("disk {disk} is gone from the source; the replica's stays as it is"), None);
            return;
        }
        let image = self.paths.first().map_or_else(|| self.disk.source.as_deref().unwrap_or("file"), String::as_str);
        let (fate, hint) = match (self.goes, update.remove_lost) {
            (true, _) => ("is removed", None),
            (false, true) => {
                ("stays: it is a device, or old points, other machines or an unfinished sync may need it", None)
            }
            (false, false) => ("stays", Some("--remove-lost-disks removes it; later that is to be done by hand")),
        };
        let message = format!("disk {disk} is gone from the source; the replica loses it, its image {image} {fate}");
        checks.warn("disks", message, hint);
    }
}
