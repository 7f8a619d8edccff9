//! What both sides hold, counted and summed up.

use std::collections::BTreeMap;

use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Error, Result};

use super::Work;
use crate::host::Host;
use crate::host::control::unexpected;
use crate::lane::{CopyDisk, Kind};
use crate::outcome::{Checksum, DiskResult, DiskSide};

impl Work {
    /// The checksums of the source's disks, where they were asked for. Read once more, from the same point.
    pub(super) async fn source_sums(&self) -> Result<Vec<String>> {
        let Some(algorithm) = self.settings.checksum else { return Ok(Vec::new()) };
        let mut sums = Vec::new();
        for disk in &self.disks {
            let image = match self.whole(disk, &disk.source) {
                Some(image) => self.read_by(&self.source.host, disk, image).await?,
                None => self.readable(disk).await?,
            };
            sums.push(
                sum(&self.source.host, image, algorithm).await.map_err(|error| error.with("disk", &disk.target))?,
            );
        }
        // What qemu read for us ends with the lane agents, of which there are none any more.
        self.source.host.control.order(Request::EndLanes).await?;
        Ok(sums)
    }

    /// The disk in a file that is carried as it is: a checksum is of what a guest reads, whatever it was read from.
    fn whole(&self, disk: &CopyDisk, file: &ImageSpec) -> Option<ImageSpec> {
        (disk.kind == Kind::Whole).then(|| ImageSpec::new(&file.path, ImageFormat::Qcow2))
    }

    /// Whether the finished images have the source's checksums.
    pub(super) async fn same_sums(&self) -> Result<()> {
        let Some(algorithm) = self.settings.checksum else { return Ok(()) };
        let mut exported = false;
        for (disk, expected) in self.disks.iter().zip(&self.sums) {
            let image = match self.whole(disk, &disk.staging) {
                Some(image) => self.read_by(&self.target.host, disk, image).await?,
                None => disk.staging.clone(),
            };
            exported |= image.export.is_some();
            let found = sum(&self.target.host, image, algorithm).await;
            let found = found.map_err(|error| error.with("disk", &disk.target))?;
            if found != *expected {
                return Err(Error::verification(format!(
                    "disk {} has another {algorithm} checksum than its source",
                    disk.target
                ))
                .with("disk", &disk.target)
                .with("source", expected)
                .with("target", found)
                .help("Memory or storage of one of the hosts is faulty: look at their kernel logs"));
            }
        }
        // What qemu read for us ends with the lane agents.
        if exported { self.target.host.control.order(Request::EndLanes).await } else { Ok(()) }
    }

    /// Whether as many blocks with data arrived as were sent, disk by disk.
    pub(super) fn same_blocks(&self) -> Result<()> {
        for ((disk, sent), image) in self.disks.iter().zip(&self.moved.source_blocks).zip(&self.finished) {
            if !disk.untouched && *sent != image.data_blocks {
                let message =
                    format!("disk {} has {} blocks with data, its source {sent}", disk.target, image.data_blocks);
                return Err(Error::verification(message).with("disk", &disk.target).help("Please report this"));
            }
        }
        Ok(())
    }

    pub(crate) fn checksums(&self) -> BTreeMap<DiskTarget, Checksum> {
        let hex = |root: &[u8; 32]| root.iter().map(|byte| format!("{byte:02x}")).collect();
        let roots = self.finished.iter().map(|image| Checksum { algorithm: "kvm-clone-root", value: hex(&image.root) });
        let sums = |algorithm: Algorithm| {
            self.sums.iter().map(move |sum| Checksum { algorithm: algorithm.word(), value: sum.clone() })
        };
        let all: Vec<Checksum> =
            self.settings.checksum.map_or_else(|| roots.collect(), |algorithm| sums(algorithm).collect());
        self.disks.iter().map(|disk| disk.target.clone()).zip(all).collect()
    }

    /// Sizes and counts of both sides.
    pub(crate) fn disk_results(&self) -> Vec<DiskResult> {
        let sides = self.disks.iter().zip(&self.moved.source_blocks).zip(&self.finished);
        sides
            .map(|((disk, sent), image)| {
                let side = |path: &str, format: String, allocated, data_blocks| DiskSide {
                    path: path.to_owned(),
                    format,
                    size: disk.size,
                    allocated,
                    blocks: disk.size.div_ceil(self.plan.block_size.bytes()),
                    data_blocks,
                };
                let machine = &self.seen.machine;
                let chain = machine.images.get(&disk.target).or_else(|| machine.files.get(&disk.source.path));
                let allocated = chain.into_iter().flatten().map(|image| image.allocated).sum();
                DiskResult {
                    target: disk.target.clone(),
                    source: side(
                        &disk.source.path,
                        stands_for(disk, &disk.source).to_string(),
                        allocated,
                        if disk.untouched { image.data_blocks } else { *sent },
                    ),
                    dest: self.dest(disk, |path, format| side(path, format, image.allocated, image.data_blocks)),
                }
            })
            .collect()
    }
}

impl Work {
    /// Bytes that the overlays of this sync took when they were complete.
    pub(crate) fn overlay_bytes(&self) -> u64 {
        let overlays = self.disks.iter().zip(&self.finished).filter(|(disk, _)| disk.base.is_some());
        overlays.map(|(_, image)| image.allocated).sum()
    }

    /// The image that the target has of a disk in the end.
    fn dest(&self, disk: &CopyDisk, side: impl Fn(&str, String) -> DiskSide) -> DiskSide {
        let planned = self.plan.disks.iter().find(|planned| planned.target == disk.target && planned.base.is_some());
        match planned.and_then(|planned| planned.in_the_end().into_iter().next()) {
            Some((path, format)) => side(&path, format.to_string()),
            None => side(&disk.path, stands_for(disk, &disk.staging).to_string()),
        }
    }
}

/// The format of an image; of one that is carried as a file, what is in that file.
fn stands_for<'a>(disk: &CopyDisk, image: &'a ImageSpec) -> &'a ImageFormat {
    if disk.kind == Kind::Whole { &ImageFormat::Qcow2 } else { &image.format }
}

/// Sums up a whole disk.
pub(crate) async fn sum(host: &Host, image: ImageSpec, algorithm: Algorithm) -> Result<String> {
    match host.control.ask(Request::Checksum { image, algorithm }).await? {
        Reply::Checksum(sum) => Ok(sum),
        other => Err(unexpected(&other)),
    }
}
