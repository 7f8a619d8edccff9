//! Whether the source stays what it is while it is copied. Its start is never hindered; a copy made meanwhile is worthless.

use std::time::Duration;

use kvm_clone_core::inventory::MachineState;
use kvm_clone_core::plan::FileKind;
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Code, Error, Result};

use super::Work;
use crate::host::Host;
use crate::host::control::unexpected;
use crate::inventory::{self, Site};
use crate::lane::{CopyDisk, Kind};
use crate::reconnect;

/// Pause between two looks at the machine while its disks are copied.
const WATCH_EVERY: Duration = Duration::from_secs(2);

impl Work {
    /// Has qemu read the images of a stopped source that our own readers do not understand. The exports end with the
    /// lane agents. What runs is exported by its own process already.
    pub(super) async fn open_exports(&mut self) -> Result<()> {
        let mut read = Vec::new();
        for disk in &self.disks {
            read.push(self.readable(disk).await?);
        }
        for (disk, image) in self.disks.iter_mut().zip(read) {
            disk.source = image;
        }
        Ok(())
    }

    /// The image of a disk as lane agents can read it.
    pub(super) async fn readable(&self, disk: &CopyDisk) -> Result<ImageSpec> {
        if self.seen.machine.live.is_some() || disk.kind != Kind::Disk {
            return Ok(disk.source.clone());
        }
        self.read_by(&self.source.host, disk, disk.source.clone()).await
    }

    /// This image of a disk as a host's agent can read it: by qemu, where the source's needs that.
    pub(super) async fn read_by(&self, host: &Host, disk: &CopyDisk, image: ImageSpec) -> Result<ImageSpec> {
        let chain = self.seen.machine.images.get(&disk.target).map_or(&[][..], Vec::as_slice);
        if chain.iter().all(|image| image.by_qemu.is_empty()) {
            return Ok(image);
        }
        export(host, disk.target.to_string(), image).await.map_err(|error| error.with("disk", &disk.target))
    }

    /// Resolves when the source machine is not what it was any more, or cannot be watched any more.
    pub(super) async fn source_changes(&self) -> Error {
        let mut site = self.source.clone();
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            let Err(error) = self.same_source(&site).await else { continue };
            if error.code == Code::Conflict {
                return error;
            }
            // A libvirt that was restarted is no reason to give up hours of copying.
            site = match reconnect::revive(&site).await {
                Ok(site) => site,
                Err(error) => return error,
            };
        }
    }

    /// Whether a stopped source is stopped still, and one that runs the same process with the same disks.
    pub(super) async fn same_source(&self, site: &Site) -> Result<()> {
        let uuid = self.seen.machine.uuid;
        let Some(before) = &self.seen.machine.live else { return self.stopped(site).await };
        let what = match site.libvirt.live(uuid).await? {
            Some(now) => before.change_to(&now),
            None => Some("stopped, or moved to another host,".to_owned()),
        };
        what.map_or(Ok(()), |what| Err(self.source_is_another(&format!("{what} while it was copied"))))
    }

    async fn stopped(&self, site: &Site) -> Result<()> {
        let what = match site.libvirt.state(self.seen.machine.uuid).await? {
            Some(MachineState::Stopped) => return Ok(()),
            Some(state) => format!("was started while it was copied (it is {state})"),
            None => "was undefined while it was copied".to_owned(),
        };
        Err(self.source_is_another(&what))
    }

    fn source_is_another(&self, what: &str) -> Error {
        let name = &self.plan.vm_name;
        Error::conflict(format!("machine {name} {what}"))
            .with("vm", name)
            .help("Let it come to rest and clone it again")
    }

    /// Whether a stopped source is what it was when the locks were taken: stopped, and its images not written to. One
    /// that runs was copied as of a point, which nothing that comes later touches.
    pub(super) async fn source_unchanged(&mut self) -> Result<()> {
        if self.seen.machine.live.is_some() {
            return Ok(());
        }
        self.source = reconnect::revive(&self.source).await?;
        self.stopped(&self.source).await?;
        for (target, chain) in &self.seen.machine.images {
            let (top, _) = chain.split_first().ok_or_else(|| Error::internal("an image chain is empty"))?;
            let spec = ImageSpec::new(&top.path, top.format.clone());
            let now = inventory::inspect(&self.source.host, spec).await?;
            let before = self.seen.identities.get(target);
            if before.is_none_or(|before| *before != now.identities) {
                return Err(Error::conflict(format!("the image of disk {target} changed while it was copied"))
                    .with("disk", target)
                    .with("path", &top.path)
                    .help("Something writes to it: find it with fuser or lsof on the source, and clone again"));
            }
        }
        self.same_files().await
    }

    /// Whether nobody wrote to the files beside the disks.
    pub(super) async fn same_files(&self) -> Result<()> {
        for (path, chain) in &self.seen.machine.files {
            let (top, _) = chain.split_first().ok_or_else(|| Error::internal("an image chain is empty"))?;
            let Some(file) = self.plan.files.iter().find(|file| file.source_path == top.path) else { continue };
            let spec = ImageSpec::new(path, top.format.clone());
            let spec = if file.what == FileKind::Medium { spec } else { spec.without_link() };
            let now = inventory::inspect(&self.source.host, spec).await?;
            let before = self.seen.file_identities.get(path);
            if before.is_none_or(|before| *before != now.identities) {
                return Err(Error::conflict(format!("{path} changed while it was copied"))
                    .with("path", path)
                    .help("Something wrote to it, as firmware does when its machine boots; clone the machine again")
                    .transient());
            }
        }
        Ok(())
    }
}

/// Has qemu read an image that our own readers do not understand, under a name that is its own there, until lane agents are
/// ended or our agent is.
pub(crate) async fn export(host: &Host, name: String, image: ImageSpec) -> Result<ImageSpec> {
    match host.control.ask(Request::Export { name, image: image.clone() }).await? {
        Reply::Export(export) => Ok(ImageSpec { export: Some(export), ..image }),
        other => Err(unexpected(&other)),
    }
}
