//! The open file, and its tables.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::{DeviceError, NamedImage, Problem, Result, file};
use super::header::{HEADER_LEN, Header, RefcountTable};
use super::layout::{CLUSTER, COPIED, L2_ENTRIES, Layout, ZERO};

/// An image of ours.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) layout: Layout,
    refcounts: RefcountTable,
    backing: Option<NamedImage>,
}

impl Image {
    pub(super) fn create(path: &Path, virtual_size: u64, backing: Option<&NamedImage>) -> Result<Self> {
        let unsupported = |feature| DeviceError::new(path, Problem::Unsupported { feature });
        let layout = Layout::new(virtual_size).ok_or_else(|| {
            unsupported(format!("a size of {virtual_size} bytes (multiples of 512 up to 2 PiB are possible)"))
        })?;
        let header = Header { layout, refcounts: RefcountTable::NONE, backing: backing.cloned() };
        let bytes = header.encode().ok_or_else(|| {
            unsupported("a backing file whose path is not absolute, or longer than 1023 bytes".to_owned())
        })?;
        let file = file::create_new(path)?;
        let image = Self::of(path, file, header);
        image.set_len(layout.data_start())?;
        image.write(&bytes, 0)?;
        Ok(image)
    }

    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, _) = file::open_staging(path)?;
        let mut bytes = [0; HEADER_LEN];
        file::read_or_zero(&file, &mut bytes, 0).map_err(|error| DeviceError::io(path, "read its header", error))?;
        let header =
            Header::parse(&bytes).ok_or_else(|| DeviceError::corrupt(path, "it is not an image this program makes"))?;
        Ok(Self::of(path, file, header))
    }

    fn of(path: &Path, file: File, header: Header) -> Self {
        let Header { layout, refcounts, backing } = header;
        Self { file, path: path.to_owned(), layout, refcounts, backing }
    }

    /// The L2 entry of a cluster of zeros.
    pub(super) fn zero_entry(&self) -> u64 {
        if self.backing.is_some() { ZERO } else { 0 }
    }

    /// The file that shows through where nothing was written.
    pub(super) fn backing(&self) -> Option<&NamedImage> {
        self.backing.as_ref()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.refcounts != RefcountTable::NONE
    }

    /// Refuses a finished image: its reference counts would no longer be true.
    pub(super) fn expect_unfinished(&self) -> Result<()> {
        if self.is_finished() {
            return Err(DeviceError::corrupt(
                &self.path,
                "it is finished, and has to be recovered before it is written",
            ));
        }
        Ok(())
    }

    pub(super) fn failed(&self, doing: &'static str, error: io::Error) -> DeviceError {
        DeviceError::io(&self.path, doing, error)
    }

    pub(super) fn len(&self) -> Result<u64> {
        self.file.metadata().map(|data| data.len()).map_err(|error| self.failed("tell its size", error))
    }

    pub(super) fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|error| self.failed("give it its size", error))
    }

    pub(super) fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(data, offset).map_err(|error| self.failed("write", error).at(offset))
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| self.failed("make it durable", error))
    }

    /// Writes the header again, with another refcount table.
    pub(super) fn set_refcounts(&self, refcounts: RefcountTable) -> Result<()> {
        let header = Header { layout: self.layout, refcounts, backing: self.backing.clone() };
        // It was read from this file, or written to it.
        let bytes = header.encode().ok_or_else(|| DeviceError::corrupt(&self.path, "its header cannot be written"))?;
        self.write(&bytes, 0)
    }

    /// Reads `count` big-endian numbers.
    pub(super) fn read_entries(&self, offset: u64, count: u64) -> Result<Vec<u64>> {
        let len = usize::try_from(count * 8).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len];
        file::read_or_zero(&self.file, &mut bytes, offset)
            .map_err(|error| self.failed("read its tables", error).at(offset))?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    /// Writes big-endian numbers, in one call.
    pub(super) fn write_entries(&self, offset: u64, entries: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.write(&bytes, offset)
    }

    /// Whether the L1 table names an L2 table. An entry that names another place than ours is corruption.
    pub(super) fn has_table(&self, table: u32) -> Result<bool> {
        let entries = self.read_entries(self.layout.l1_entry(table), 1)?;
        self.is_table(table, entries.first().copied().unwrap_or(0))
    }

    /// Makes the L1 table name an L2 table. Whoever else does that writes the same.
    pub(super) fn add_table(&self, table: u32) -> Result<()> {
        if self.has_table(table)? {
            return Ok(());
        }
        self.write_entries(self.layout.l1_entry(table), &[self.layout.table(table) | COPIED])
    }

    /// The L2 tables that the L1 table names, in order.
    pub(super) fn tables(&self) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        let mut start = 0;
        while start < self.layout.tables {
            let count = (self.layout.tables - start).min(8192);
            let entries = self.read_entries(self.layout.l1_entry(start), u64::from(count))?;
            for (table, entry) in (start..).zip(entries) {
                if self.is_table(table, entry)? {
                    found.push(table);
                }
            }
            start += count;
        }
        Ok(found)
    }

    fn is_table(&self, table: u32, entry: u64) -> Result<bool> {
        match entry {
            0 => Ok(false),
            entry if entry == self.layout.table(table) | COPIED => Ok(true),
            entry => Err(self.corrupt_entry("L1", self.layout.l1_entry(table), entry)),
        }
    }

    /// All entries of an L2 table.
    pub(super) fn table(&self, table: u32) -> Result<Vec<u64>> {
        self.read_entries(self.layout.table(table), L2_ENTRIES)
    }

    /// What an L2 entry refers to: nothing (what is under the image, or zeros), or a data cluster of ours.
    pub(super) fn cluster(&self, entry: u64, entry_offset: u64) -> Result<Option<u64>> {
        let host = entry & !COPIED;
        if entry == 0 || entry == self.zero_entry() {
            Ok(None)
        } else if entry & COPIED != 0
            && host >> 56 == 0
            && host.is_multiple_of(CLUSTER)
            && host >= self.layout.data_start()
        {
            Ok(Some(host))
        } else {
            Err(self.corrupt_entry("L2", entry_offset, entry))
        }
    }

    fn corrupt_entry(&self, table: &str, offset: u64, entry: u64) -> DeviceError {
        DeviceError::corrupt(&self.path, format!("its {table} table has an entry {entry:#x} that we do not write"))
            .at(offset)
    }
}
