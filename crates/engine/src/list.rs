//! The machines of a host.

use futures_util::StreamExt;
use futures_util::stream;
use kvm_clone_core::Result;
use kvm_clone_core::inventory::{ImageFormat, Machine, MachineDisk};
use kvm_clone_core::wire::lane::ImageSpec;

use crate::inventory::{Site, inspect};

/// Images looked at at once: hides the round trips of a far host, and stays below what an agent answers at a time.
const LOOKING: usize = 16;

/// Every machine with the sizes of its disks, by name.
pub(crate) async fn machines(site: &Site) -> Result<Vec<Machine>> {
    let mut machines = site.libvirt.machines().await?;
    machines.sort_by(|a, b| a.name.cmp(&b.name));
    let now = jiff::Timestamp::now();
    for replica in machines.iter_mut().filter_map(|machine| machine.replica_of.as_mut()) {
        let point: Option<jiff::Timestamp> = replica.point.parse().ok();
        replica.age_seconds = point.and_then(|point| u64::try_from(now.duration_since(point).as_secs()).ok());
    }
    let disks = machines.iter_mut().flat_map(|machine| &mut machine.disks);
    stream::iter(disks).for_each_concurrent(LOOKING, |disk| measure(site, disk)).await;
    Ok(machines)
}

/// Fills in the size that the guest sees. An image that cannot be read stays without: a list shows what there is.
async fn measure(site: &Site, disk: &mut MachineDisk) {
    let path = match (&disk.path, &disk.pool) {
        (Some(volume), Some(pool)) => site.libvirt.volume_path(pool.clone(), volume.clone()).await.ok(),
        (path, _) => path.clone(),
    };
    let Some(path) = path.filter(|path| path.starts_with('/')) else { return };
    let spec = ImageSpec::new(path.clone(), ImageFormat::named(disk.format.as_deref()));
    disk.path = Some(path);
    if let Ok(seen) = inspect(&site.host, spec).await {
        disk.size = seen.images.first().map(|image| image.virtual_size);
    }
}
