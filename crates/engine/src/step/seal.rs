//! Seals: at the end, both hosts note what their images hold, so that the next sync need not read what nobody touched.

use std::collections::BTreeMap;

use kvm_clone_core::Result;
use kvm_clone_core::blocks::Root;
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::wire::control::Request;
use kvm_clone_core::wire::facts::{FinishedImage, Identity};
use kvm_clone_core::wire::lane::{Base, ImageSpec};
use kvm_clone_core::wire::replica::{Rewritten, SealOrder};

use super::Work;
use crate::inventory;
use crate::lane::{CopyDisk, Kind};

impl Work {
    /// Seals the images under their final names, and those of a source that stands still. What cannot be sealed is read
    /// next time.
    pub(super) async fn seal(&self) -> Result<()> {
        let at_target = self.seals(|disk, finished| self.made(disk, finished));
        let target = self.target.host.control.order(Request::TakeSeals(at_target));
        // On one host both would have one name; the replica's is worth more, as its source is read in any case.
        if self.seen.machine.live.is_some() || self.source.host.is(&self.target.host) {
            return target.await;
        }
        let at_source = self.seals(|disk, _| {
            let chain = self.seen.machine.images.get(&disk.target)?;
            Some((inventory::spec(chain).ok()?, self.seen.identities.get(&disk.target)?.clone()))
        });
        let source = self.source.host.control.order(Request::TakeSeals(at_source));
        tokio::try_join!(target, source).map(drop)
    }

    /// Their new names have changed what identifies the images: seals are of what they are from here on.
    pub(super) async fn look_at_placed(&mut self) -> Result<()> {
        let disks = self.disks.iter().zip(&mut self.finished);
        for (disk, finished) in disks.filter(|(disk, _)| disk.kind == Kind::Disk && !disk.in_place) {
            // Of the file alone, whatever is in it.
            let file = ImageSpec::new(&disk.path, ImageFormat::Raw);
            let now = inventory::inspect(&self.target.host, file).await?.identities;
            let same = now.into_iter().next().filter(|now| now.is_same_file(&finished.identity));
            finished.identity = same.unwrap_or(finished.identity);
        }
        Ok(())
    }

    /// What a disk of the copy lies in, and what these files were when they held just that.
    fn made(&self, disk: &CopyDisk, finished: &FinishedImage) -> Option<(ImageSpec, Vec<Identity>)> {
        let Some(base) = &disk.base else {
            return Some((ImageSpec::new(&disk.path, disk.staging.format.clone()), vec![finished.identity]));
        };
        if disk.in_place {
            return Some((base.image.clone(), vec![finished.identity]));
        }
        let known = self.last_seen(disk, base, finished);
        let images = self.plan.disks.iter().find(|planned| planned.target == disk.target)?.in_the_end();
        let seen = images.iter().map(|(path, _)| known.get(path.as_str()).copied()).collect::<Option<_>>()?;
        let ((path, format), behind) = images.split_first()?;
        Some((ImageSpec { backing: behind.to_vec(), ..ImageSpec::new(path, format.clone()) }, seen))
    }

    /// Notes what a merge has made of an image, unless somebody had written to it since it was looked at: then nobody knows what it holds.
    pub(super) fn note_merged(&mut self, disk: &DiskTarget, image: String, done: Rewritten) {
        let copied = self.disks.iter().zip(&self.finished).find(|(copied, _)| copied.target == *disk);
        let seen = copied.and_then(|(copied, finished)| {
            self.last_seen(copied, copied.base.as_ref()?, finished).get(image.as_str()).copied()
        });
        if seen == Some(done.before) {
            self.merged.insert(image, done.after);
        }
    }

    /// What the images of a replica's disk were when they were looked at last.
    fn last_seen<'a>(
        &'a self,
        disk: &'a CopyDisk,
        base: &'a Base,
        finished: &FinishedImage,
    ) -> BTreeMap<&'a str, Identity> {
        let before = [&base.image.path].into_iter().chain(base.image.backing.iter().map(|(path, _)| path));
        let looked_at = self.known.identities.get(&disk.target).into_iter().flatten().copied();
        let merged = self.merged.iter().map(|(path, identity)| (path.as_str(), *identity));
        let placed = [(disk.path.as_str(), finished.identity)];
        placed.into_iter().chain(before.map(String::as_str).zip(looked_at)).chain(merged).collect()
    }

    /// One for each disk; an image that was carried as a file has digests of the file, not of what its guest sees.
    fn seals(&self, image: impl Fn(&CopyDisk, &FinishedImage) -> Option<(ImageSpec, Vec<Identity>)>) -> Vec<SealOrder> {
        let disks = self.disks.iter().zip(&self.finished).filter(|(disk, _)| disk.kind == Kind::Disk);
        let order = |(disk, finished): (&CopyDisk, &FinishedImage)| {
            let (image, seen) = image(disk, finished)?;
            Some(SealOrder {
                operation: self.operation,
                disk: disk.target.clone(),
                root: Root(finished.root),
                key: self.key.id(),
                image,
                seen,
            })
        };
        disks.filter_map(order).collect()
    }
}
