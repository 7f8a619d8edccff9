//! Writing the guest's data.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_clone_core::size::whole_sectors;

use super::super::{DeviceError, Problem, Result, WriteDevice, check_range, file};
use super::chunks::{CHUNK, ChunkAllocator};
use super::image::Image;
use super::layout::{CLUSTER, COPIED, L2_ENTRIES};

/// Padding for the last cluster of a disk that ends inside it.
static PADDING: [u8; 65536] = [0; 65536];

/// One process's access to an image that is being written. Threads share it.
pub struct Qcow2Writer {
    image: Image,
    chunks: Arc<dyn ChunkAllocator>,
    /// What is left of the current chunk.
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    next: u64,
    end: u64,
}

/// What an image shows in one of its clusters.
#[derive(Clone, Copy)]
pub(super) enum Shown {
    /// What is at this place in the file.
    Cluster(u64),
    /// Zeros.
    Zeros,
    /// What is under the image.
    Below,
}

/// A run of clusters inside one L2 table.
#[derive(Clone, Copy)]
struct Run {
    table: u32,
    /// Index of the first entry in the table.
    first: u64,
    count: u64,
    /// Where the run starts on the disk.
    guest: u64,
}

impl Qcow2Writer {
    /// Opens an image that [`super::create`] made or [`super::recover`] took back, in whatever process.
    ///
    /// # Errors
    /// Where it cannot be opened for writing, is not an image of ours, or is finished.
    pub fn open(path: &Path, chunks: Arc<dyn ChunkAllocator>) -> Result<Self> {
        let image = Image::open(path)?;
        image.expect_unfinished()?;
        Ok(Self { image, chunks, free: Mutex::default() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.image.path
    }

    /// What the image shows in the cluster of this place on the disk.
    pub(super) fn shown(&self, offset: u64) -> Result<Shown> {
        let cluster = offset / CLUSTER;
        let table = u32::try_from(cluster / L2_ENTRIES).unwrap_or(u32::MAX);
        let nothing = if self.image.backing().is_some() { Shown::Below } else { Shown::Zeros };
        if !self.image.has_table(table)? {
            return Ok(nothing);
        }
        let at = self.image.layout.table(table) + cluster % L2_ENTRIES * 8;
        let entry = self.image.read_entries(at, 1)?.first().copied().unwrap_or(0);
        Ok(match self.image.cluster(entry, at)? {
            Some(host) => Shown::Cluster(host),
            None if entry == 0 => nothing,
            None => Shown::Zeros,
        })
    }

    /// Writes over a part of a cluster, at this place in the file.
    pub(super) fn overwrite(&self, data: &[u8], host: u64) -> Result<()> {
        self.image.write(data, host)
    }

    /// The range in runs, each inside one L2 table. Refuses what is not made of whole clusters: half of one would need
    /// the other half read, which may be another writer's. The end of the disk may lie inside a cluster; what follows it
    /// there becomes zeros.
    fn runs(&self, offset: u64, len: u64) -> Result<impl Iterator<Item = Run>> {
        let size = self.image.layout.virtual_size;
        check_range(&self.image.path, size, offset, len)?;
        let end = offset + len;
        // A disk whose size is no multiple of a sector lies in an image that is larger by less than one.
        let at_end = whole_sectors(end) == size;
        if !offset.is_multiple_of(CLUSTER) || !(end.is_multiple_of(CLUSTER) || at_end) {
            return Err(DeviceError::new(&self.image.path, Problem::BadRequest { len, size }).at(offset));
        }
        let (mut next, end) = (offset / CLUSTER, end.div_ceil(CLUSTER));
        Ok(std::iter::from_fn(move || {
            let first = next % L2_ENTRIES;
            let run = Run {
                // A layout has at most 2^22 tables, and the range is inside.
                table: u32::try_from(next / L2_ENTRIES).ok()?,
                first,
                count: (L2_ENTRIES - first).min(end - next),
                guest: next * CLUSTER,
            };
            next += run.count;
            (run.count > 0).then_some(run)
        }))
    }

    /// Up to `wanted` clusters in a row: their offset and how many.
    fn take(&self, wanted: u64) -> Result<(u64, u64)> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.next == free.end {
            let chunk = self.chunks.next_chunk()?;
            // It may come from another process.
            if chunk < self.image.layout.data_start() || !chunk.is_multiple_of(CLUSTER) || chunk >> 55 != 0 {
                return Err(DeviceError::corrupt(&self.image.path, format!("there cannot be a chunk at {chunk}")));
            }
            *free = Free { next: chunk, end: chunk + CHUNK };
        }
        let (host, count) = (free.next, wanted.min((free.end - free.next) / CLUSTER));
        free.next += count * CLUSTER;
        Ok((host, count))
    }

    /// The entries of a run and where they lie.
    fn entries(&self, run: Run) -> Result<(u64, Vec<u64>)> {
        let at = self.image.layout.table(run.table) + run.first * 8;
        Ok((at, self.image.read_entries(at, run.count)?))
    }

    /// Where the clusters of a run lie: runs that lie in a row in the file, or nowhere, with their first index.
    fn placed(&self, at: u64, entries: &[u64]) -> Result<Vec<(usize, usize, Option<u64>)>> {
        let mut out: Vec<(usize, usize, Option<u64>)> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let host = self.image.cluster(*entry, at + index as u64 * 8)?;
            match out.last_mut() {
                Some((_, count, start)) if host == start.map(|start| start + *count as u64 * CLUSTER) => *count += 1,
                _ => out.push((index, 1, host)),
            }
        }
        Ok(out)
    }

    /// Where a range is stored: offsets in the file, and lengths.
    fn stored(&self, offset: u64, len: u64) -> Result<Vec<(u64, u64)>> {
        let mut stored = Vec::new();
        for run in self.runs(offset, len)? {
            let (at, entries) = self.entries(run)?;
            let placed = self.placed(at, &entries)?.into_iter();
            stored.extend(placed.filter_map(|(_, count, host)| Some((host?, count as u64 * CLUSTER))));
        }
        Ok(stored)
    }

    /// Writes data to the clusters of one run: over what is there, else into new clusters. Data first, then the L1 and
    /// L2 entries that make it visible.
    fn write_run(&self, run: Run, data: &[u8]) -> Result<()> {
        let (at, mut entries) = self.entries(run)?;
        let mut added = false;
        for (index, count, host) in self.placed(at, &entries)? {
            if let Some(host) = host {
                self.write_clusters(data, index, count, host)?;
                continue;
            }
            added = true;
            let (mut index, end) = (index, index + count);
            while index < end {
                let (host, got) = self.take((end - index) as u64)?;
                let got = usize::try_from(got).unwrap_or(end - index);
                self.write_clusters(data, index, got, host)?;
                for (entry, host) in entries[index..index + got].iter_mut().zip((host..).step_by(PADDING.len())) {
                    *entry = host | COPIED;
                }
                index += got;
            }
        }
        if added {
            self.image.add_table(run.table)?;
            self.image.write_entries(at, &entries)?;
        }
        Ok(())
    }

    /// Writes the clusters `index..index + count` of a run to a place in the file, the end of the disk padded.
    fn write_clusters(&self, data: &[u8], index: usize, count: usize, host: u64) -> Result<()> {
        let start = index * PADDING.len();
        let end = start + count * PADDING.len();
        let data = &data[start..end.min(data.len())];
        self.image.write(data, host)?;
        let missing = end - start - data.len();
        if missing > 0 {
            self.image.write(&PADDING[..missing], host + data.len() as u64)?;
        }
        Ok(())
    }

    /// Makes the clusters of a run read as zeros, and gives their space back.
    fn clear_run(&self, run: Run) -> Result<()> {
        let zero = self.image.zero_entry();
        // Most tables of most disks do not exist: one look saves a look at thousands of entries. Over a backing file, zeros
        // have to be said.
        if zero == 0 && !self.image.has_table(run.table)? {
            return Ok(());
        }
        let (at, entries) = self.entries(run)?;
        if entries.iter().all(|entry| *entry == zero) {
            return Ok(());
        }
        let placed = self.placed(at, &entries)?;
        self.image.add_table(run.table)?;
        self.image.write_entries(at, &vec![zero; entries.len()])?;
        for (_, count, host) in placed {
            if let Some(host) = host {
                // Where holes cannot be punched, the space stays taken; nothing refers to it.
                file::punch(&self.image.file, host, count as u64 * CLUSTER)
                    .map_err(|error| self.image.failed("punch a hole", error).at(run.guest))?;
            }
        }
        Ok(())
    }
}

impl WriteDevice for Qcow2Writer {
    fn size(&self) -> u64 {
        self.image.layout.virtual_size
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        for run in self.runs(offset, data.len() as u64)? {
            // Inside `data`, so it fits.
            let start = usize::try_from(run.guest - offset).unwrap_or(data.len());
            let end = usize::try_from(run.count * CLUSTER).map_or(data.len(), |len| data.len().min(start + len));
            self.write_run(run, &data[start..end]).map_err(|error| guest_offset(error, run.guest))?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.runs(offset, len)?.try_for_each(|run| self.clear_run(run))
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        for (host, len) in self.stored(offset, len).unwrap_or_default() {
            file::start_write_back(&self.image.file, host, len);
        }
    }

    fn write_back(&self, offset: u64, len: u64) -> Result<()> {
        for (host, len) in self.stored(offset, len)? {
            file::write_back(&self.image.file, host, len)
                .map_err(|error| self.image.failed("write it out", error).at(offset))?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.image.file.sync_data().map_err(|error| self.image.failed("make it durable", error))
    }
}

/// Failed writes name the disk's offset, which means something to the user, instead of the file's; what is wrong with
/// the image itself keeps the place in the file.
fn guest_offset(error: DeviceError, guest: u64) -> DeviceError {
    if matches!(error.problem, Problem::Corrupt(_)) { error } else { error.at(guest) }
}

impl std::fmt::Debug for Qcow2Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Writer").field("image", &self.image).finish_non_exhaustive()
    }
}
