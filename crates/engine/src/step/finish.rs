//! What was copied becomes images that count: complete, compared with their source, checked, handed over.

use kvm_clone_core::Result;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::facts::FinishedImage;

use super::Work;
use crate::host::control::unexpected;
use crate::lane::Kind;

impl Work {
    pub(super) async fn finish(&mut self) -> Result<()> {
        self.source_unchanged().await?;
        // What is settled is not what was copied any more: it is compared once.
        if !self.settled {
            self.finished.clear();
            for (image, disk) in self.new_images().into_iter().zip(&self.disks) {
                let order = if disk.in_place { Request::FinishInPlace(image) } else { Request::FinishImage(image) };
                self.finished.push(self.hand_over(order, &disk.target).await?);
            }
            self.same_blocks()?;
            self.settle_wholes().await?;
        }
        // After that: what was taken out of an image must not have changed what a guest reads.
        self.same_sums().await?;
        let staged = self.disks.iter().zip(&self.finished).filter(|(disk, _)| !disk.in_place);
        for (file, (_, finished)) in self.marker.finals.iter_mut().zip(staged) {
            file.identity = Some(finished.identity);
        }
        // From here on the final names can be told from other people's files.
        self.target.host.control.order(Request::PutMarker(Box::new(self.marker.clone()))).await
    }

    /// Takes what must not come along out of images that were carried as they are.
    async fn settle_wholes(&mut self) -> Result<()> {
        for (index, image) in self.new_images().into_iter().enumerate() {
            if let Some(disk) = self.disks.get(index).filter(|disk| disk.kind == Kind::Whole) {
                let settled = self.hand_over(Request::SettleImage(image), &disk.target).await?;
                self.finished.get_mut(index).into_iter().for_each(|finished| *finished = settled);
            }
        }
        self.settled = self.disks.iter().any(|disk| disk.kind == Kind::Whole);
        Ok(())
    }

    async fn hand_over(&self, order: Request, disk: &DiskTarget) -> Result<FinishedImage> {
        let asked = self.target.host.control.ask(order).await;
        match asked.map_err(|error| error.with("disk", disk))? {
            Reply::Image(finished) => Ok(finished),
            other => Err(unexpected(&other)),
        }
    }
}
