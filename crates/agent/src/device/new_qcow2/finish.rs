//! Making a written image a proper one: reference counts, exactly.

use std::path::Path;

use super::super::{DeviceError, Result, file};
use super::image::Image;
use super::layout::CLUSTER;
use super::refcounts::{Used, plan};

/// Ends the writing of an image: counts references, gives back what is not used, and makes all durable. After it,
/// `qemu-img check` finds no error and no leak. To be called by one process, when all writers are done; a second call
/// changes nothing. It may be killed at any moment and called again: the header is written last. Tells of each cluster of
/// tables that it has looked at or written.
///
/// # Errors
/// [`super::super::Problem::Corrupt`] where two blocks of the disk share a cluster or an entry makes no sense, which
/// means that the image must not be used; or where the file cannot be written.
pub fn finish(path: &Path, done: &dyn Fn(u64)) -> Result<()> {
    let image = Image::open(path)?;
    if image.is_finished() {
        return image.sync();
    }
    let mut used = used_clusters(&image, done)?;
    give_back(&image, &used)?;
    image.set_len(used.end() * CLUSTER)?;
    let plan = plan(&mut used);
    let mut table = vec![0; usize::try_from(u64::from(plan.table.clusters) * CLUSTER / 8).unwrap_or(usize::MAX)];
    for (index, offset) in &plan.blocks {
        image.write(&used.block(*index), *offset)?;
        done(1);
        // The plan's table has an entry for each of its blocks.
        if let Some(entry) = usize::try_from(*index).ok().and_then(|index| table.get_mut(index)) {
            *entry = *offset;
        }
    }
    image.write_entries(plan.table.offset, &table)?;
    // Only what is durable may be called finished.
    image.sync()?;
    image.set_refcounts(plan.table)?;
    image.sync()
}

/// All clusters that the header and the tables refer to. A second reference to one is an error: it would mean that two
/// writers were given one chunk, so that one has overwritten the other.
fn used_clusters(image: &Image, done: &dyn Fn(u64)) -> Result<Used> {
    let mut used = Used::default();
    for cluster in 0..image.layout.tables_start() / CLUSTER {
        used.mark(cluster);
    }
    let len = image.len()?;
    for table in image.tables()? {
        used.mark(image.layout.table(table) / CLUSTER);
        for (at, entry) in (image.layout.table(table)..).step_by(8).zip(image.table(table)?) {
            let Some(host) = image.cluster(entry, at)? else { continue };
            if host + CLUSTER > len {
                return Err(DeviceError::corrupt(&image.path, "a data cluster lies beyond its end").at(at));
            }
            if !used.mark(host / CLUSTER) {
                return Err(DeviceError::corrupt(&image.path, "two blocks share a data cluster").at(at));
            }
        }
        done(1);
    }
    Ok(used)
}

/// Punches holes where killed or resumed writers left what nothing refers to. Where that cannot be done, the space stays
/// taken, which is no reason to fail.
fn give_back(image: &Image, used: &Used) -> Result<()> {
    for (start, len) in used.gaps() {
        file::punch(&image.file, start * CLUSTER, len * CLUSTER)
            .map_err(|error| image.failed("punch a hole", error).at(start * CLUSTER))?;
    }
    Ok(())
}
