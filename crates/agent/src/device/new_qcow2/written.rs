//! What an image that is being written holds itself: of an overlay, that is not what is under it.

use std::ops::Range;
use std::path::Path;

use super::super::{NamedImage, Result, check_range};
use super::image::Image;
use super::layout::{CLUSTER, L2_ENTRIES};

/// Whether an image is one of ours that shows a disk of so many bytes, over this backing file or over none.
///
/// # Errors
/// Where it cannot be read, or is not an image of ours.
pub fn shows(path: &Path, virtual_size: u64, backing: Option<&NamedImage>) -> Result<bool> {
    let image = Image::open(path)?;
    Ok(image.layout.virtual_size == virtual_size && image.backing() == backing)
}

/// Tells which parts of the disk were written to an image.
#[derive(Debug)]
pub struct Written(Image);

impl Written {
    /// Looks at an image of ours.
    ///
    /// # Errors
    /// Where it cannot be opened, or is not an image of ours.
    pub fn open(path: &Path) -> Result<Self> {
        Image::open(path).map(Self)
    }

    /// The parts of a range that were written, with zeros or data, in order: offsets on the disk.
    ///
    /// # Errors
    /// Where the range is beyond the disk, or the image cannot be read.
    pub fn runs(&self, offset: u64, len: u64) -> Result<Vec<Range<u64>>> {
        let image = &self.0;
        check_range(&image.path, image.layout.virtual_size, offset, len)?;
        let end = offset + len;
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut next = offset / CLUSTER;
        while next * CLUSTER < end {
            // A layout has at most 2^22 tables.
            let (table, first) = (u32::try_from(next / L2_ENTRIES).unwrap_or(u32::MAX), next % L2_ENTRIES);
            let count = (L2_ENTRIES - first).min(end.div_ceil(CLUSTER) - next);
            let entries = match image.has_table(table)? {
                true => image.read_entries(image.layout.table(table) + first * 8, count)?,
                false => Vec::new(),
            };
            for (cluster, _) in (next..).zip(entries).filter(|(_, entry)| *entry != 0) {
                let here = (cluster * CLUSTER).max(offset)..((cluster + 1) * CLUSTER).min(end);
                match runs.last_mut() {
                    Some(last) if last.end == here.start => last.end = here.end,
                    _ => runs.push(here),
                }
            }
            next += count;
        }
        Ok(runs)
    }
}
