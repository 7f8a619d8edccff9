//! The machines of a host.

use futures_util::StreamExt;
use futures_util::stream;
use kvm_clone_core::Result;
use kvm_clone_core::inventory::{ImageChain, ImageFacts, ImageFormat, Machine, MachineDisk, PointOf};
use kvm_clone_core::plan::costs;
use kvm_clone_core::wire::lane::ImageSpec;

use crate::inventory::{Site, age, inspect};

/// Machines looked at at once: hides the round trips of a far host, and stays below what an agent answers at a time.
const LOOKING: usize = 16;

/// Every machine with the sizes of its disks, by name.
pub(crate) async fn machines(site: &Site) -> Result<Vec<Machine>> {
    let mut machines = site.libvirt.machines().await?;
    machines.sort_by(|a, b| a.name.cmp(&b.name));
    let now = jiff::Timestamp::now();
    for replica in machines.iter_mut().filter_map(|machine| machine.replica_of.as_mut()) {
        replica.age_seconds = age(&replica.point, now);
        replica.points.iter_mut().for_each(|kept| kept.age_seconds = age(&kept.point, now));
    }
    let machines_now = stream::iter(machines).map(|machine| measured(site, machine)).buffered(LOOKING);
    Ok(machines_now.collect().await)
}

/// A machine with the sizes of its disks, and with what its kept points take.
async fn measured(site: &Site, mut machine: Machine) -> Machine {
    for disk in &mut machine.disks {
        let images = measure(site, disk).await.unwrap_or_default();
        machine.replica_of.iter_mut().for_each(|of| add_costs(&mut of.points, disk, &images));
    }
    machine
}

fn add_costs(points: &mut [PointOf], disk: &MachineDisk, images: &[ImageFacts]) {
    let there = |path: &str| images.iter().any(|image| image.path == path);
    let kept =
        points.iter_mut().filter_map(|kept| Some((kept.images.get(&disk.target)?.path.clone(), &mut kept.bytes)));
    let (paths, bytes): (Vec<String>, Vec<_>) = kept.filter(|(path, _)| there(path)).unzip();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let links = images.iter().map(|image| (image.path.as_str(), image.allocated));
    for (bytes, cost) in bytes.into_iter().zip(costs(links, &paths)) {
        *bytes = Some(bytes.unwrap_or(0).saturating_add(cost));
    }
}

/// Fills in the size that the guest sees, and returns the disk's images. One that cannot be read stays without: a list shows what
/// there is.
async fn measure(site: &Site, disk: &mut MachineDisk) -> Option<ImageChain> {
    let path = match (&disk.path, &disk.pool) {
        (Some(volume), Some(pool)) => site.libvirt.volume_path(pool.clone(), volume.clone()).await.ok(),
        (path, _) => path.clone(),
    };
    let path = path.filter(|path| path.starts_with('/'))?;
    let spec = ImageSpec::new(path.clone(), ImageFormat::named(disk.format.as_deref()));
    disk.path = Some(path);
    let seen = inspect(&site.host, spec).await.ok()?;
    disk.size = seen.images.first().map(|image| image.virtual_size);
    Some(seen.images)
}
