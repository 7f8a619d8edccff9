//! Making an interrupted image fit to be written again.

use std::path::Path;

use super::super::{Result, file};
use super::header::RefcountTable;
use super::image::Image;
use super::layout::CLUSTER;

/// Takes an image back into writing: one that was interrupted, by whatever, or one that is finished and must be
/// repaired. To be called by one process, before the chunks are counted and the writers open it.
///
/// Afterwards each entry refers to a cluster inside the file, and every L2 table that has entries is named by the L1
/// table. Without that, an entry that a power cut left without its table would come to light when a later writer names
/// the table, after its blocks were verified as zeros; and a cluster beyond the end would be handed out again.
///
/// # Errors
/// Where the image is not one of ours, was changed by another program, or cannot be written.
pub fn recover(path: &Path) -> Result<()> {
    let image = Image::open(path)?;
    // Nothing is touched before all of it is known to be ours: a finished image may have been used by qemu since.
    let tables = image.tables()?;
    for table in &tables {
        check_table(&image, *table)?;
    }
    // Then this first, so that nothing opens the image as a finished one meanwhile.
    image.set_refcounts(RefcountTable::NONE)?;
    image.sync()?;
    if image.len()? < image.layout.data_start() {
        image.set_len(image.layout.data_start())?;
    }
    drop_orphans(&image, &tables)?;
    let len = image.len()?;
    for table in tables {
        drop_unwritten(&image, table, len)?;
    }
    image.sync()
}

/// Refuses entries that we do not write.
fn check_table(image: &Image, table: u32) -> Result<()> {
    let entries = (image.layout.table(table)..).step_by(8).zip(image.table(table)?);
    entries.map(|(at, entry)| image.cluster(entry, at)).try_for_each(|cluster| cluster.map(drop))
}

/// Clears the L2 tables that the L1 table does not name.
fn drop_orphans(image: &Image, tables: &[u32]) -> Result<()> {
    let mut start = image.layout.tables_start();
    let ends = tables.iter().map(|table| image.layout.table(*table)).chain([image.layout.data_start()]);
    for end in ends {
        file::zero_range(&image.file, start, end - start).map_err(|error| image.failed("clear its tables", error))?;
        start = end + CLUSTER;
    }
    Ok(())
}

/// Clears the entries of a table that refer to clusters beyond the end of the file.
fn drop_unwritten(image: &Image, table: u32, len: u64) -> Result<()> {
    let mut entries = image.table(table)?;
    let mut changed = false;
    for (at, entry) in (image.layout.table(table)..).step_by(8).zip(&mut entries) {
        if image.cluster(*entry, at)?.is_some_and(|host| host + CLUSTER > len) {
            *entry = 0;
            changed = true;
        }
    }
    if changed { image.write_entries(image.layout.table(table), &entries) } else { Ok(()) }
}
