//! Staging: empty images, or those that an interrupted try has begun, and the directories that files beside the disks need.

use std::collections::BTreeSet;

use kvm_clone_core::plan::DirectoryPlan;
use kvm_clone_core::wire::control::{NewDirectory, NewImage, Reply, Request};
use kvm_clone_core::wire::marker::Marker;
use kvm_clone_core::{Error, Result};

use super::Work;
use crate::host::control::unexpected;
use crate::lane::CopyDisk;

/// Images belong to qemu alone.
const IMAGE_MODE: u32 = 0o600;

/// Where the old digests of an image that is written in place are meanwhile.
pub(super) fn aside(manifest: &str) -> String {
    format!("{manifest}-before")
}

impl Work {
    /// Whatever an earlier try of this operation staged goes first, but for the images that are gone on with.
    pub(super) async fn stage(&mut self) -> Result<()> {
        let begun = self.begun_images();
        let removed = self.marker.staged().into_iter().filter(|path| !begun.contains(path)).collect();
        self.remove(removed).await?;
        for directory in self.new_directories().map(|directory| NewDirectory { owner: None, ..directory }) {
            self.target.host.control.order(Request::MakeDirectory(directory)).await?;
        }
        for (index, image) in self.new_images().into_iter().enumerate() {
            if self.disks.get(index).is_some_and(|disk| disk.in_place) {
                self.target.host.control.order(Request::TakeInPlace(image)).await?;
            } else if begun.contains(&image.image.path) {
                self.take_up(index, image).await?;
            } else {
                self.target.host.control.order(Request::CreateImage(image)).await?;
            }
        }
        self.keep_digests_aside().await?;
        // What did not change has the digests that it had.
        for disk in self.disks.iter().filter(|disk| disk.untouched) {
            let digests = disk.base.as_ref().and_then(|base| base.digests.as_ref());
            let from = digests.ok_or_else(|| Error::internal("an untouched disk has no digests"))?.manifest.clone();
            self.adopt(from, disk.manifest.clone()).await?;
        }
        for (from, to) in self.known.kept_digests(&self.plan, &self.target.host, self.operation) {
            self.adopt(from, to).await?;
        }
        Ok(())
    }

    async fn adopt(&self, from: String, to: String) -> Result<()> {
        self.target.host.control.order(Request::AdoptManifest { operation: self.operation, from, to }).await
    }

    /// Copies the digests of images that will be written in place: lanes compare with them, while those of the old point go before the
    /// first byte is written.
    async fn keep_digests_aside(&mut self) -> Result<()> {
        for disk in self.disks.iter_mut().filter(|disk| disk.in_place && !disk.untouched) {
            let aside = aside(&disk.manifest);
            let Some(digests) = disk.base.as_mut().and_then(|base| base.digests.as_mut()) else { continue };
            if digests.manifest != aside {
                let from = std::mem::replace(&mut digests.manifest, aside.clone());
                let adopt = Request::AdoptManifest { operation: self.operation, from, to: aside };
                self.target.host.control.order(adopt).await?;
            }
        }
        Ok(())
    }

    /// The staging images of an earlier try, as long as anything is to be read of their disks.
    fn begun_images(&self) -> BTreeSet<String> {
        let paths = self.disks.iter().filter(|disk| !disk.untouched).map(|disk| disk.staging.path.clone());
        paths.filter(|path| self.staged.contains(path)).collect()
    }

    /// Goes on with an image that is there, or begins it anew and says so.
    async fn take_up(&mut self, index: usize, image: NewImage) -> Result<()> {
        let taken = match self.target.host.control.ask(Request::TakeUpImage(image)).await? {
            Reply::TakenUp(taken) => taken,
            other => return Err(unexpected(&other)),
        };
        let Some(disk) = self.disks.get_mut(index) else { return Ok(()) };
        disk.begun = taken.is_ok();
        if let Err(why) = taken {
            let message = format!("what was staged of disk {} is of no use, so it begins anew: {why}", disk.target);
            self.warn(message);
        }
        Ok(())
    }

    /// Removes what an earlier try staged, as its marker says, and what this one has no use for.
    pub(crate) async fn drop_leftover(&self, before: &Marker) -> Result<()> {
        let now = self.marker.staged();
        let leftover: Vec<String> = before.staged().into_iter().filter(|path| !now.contains(path)).collect();
        if leftover.is_empty() { Ok(()) } else { self.remove(leftover).await }
    }

    pub(super) fn new_images(&self) -> Vec<NewImage> {
        let new = |(index, disk): (u16, &CopyDisk)| NewImage {
            operation: self.operation,
            disk: index,
            image: disk.staging.clone(),
            virtual_size: disk.size,
            manifest: disk.manifest.clone(),
            key: self.key.clone(),
            block: self.plan.block_size,
            owner: disk.owner,
            mode: IMAGE_MODE,
        };
        (0..).zip(&self.disks).map(new).collect()
    }

    /// With owners and modes as libvirt gives them when it makes them itself: `qemu_tpm.c`, `qemuTPMEmulatorCreateStorage`.
    pub(super) fn new_directories(&self) -> impl Iterator<Item = NewDirectory> {
        let new = |directory: &DirectoryPlan| NewDirectory {
            operation: self.operation,
            path: directory.path.clone(),
            owner: self.target.host.facts.tpm_owner.filter(|_| directory.private),
            mode: if directory.private { 0o700 } else { 0o711 },
        };
        self.plan.directories.iter().map(new)
    }
}
