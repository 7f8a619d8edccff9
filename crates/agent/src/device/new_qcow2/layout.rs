//! Where things lie in an image of ours, and its header. Sections are those of qemu's `docs/interop/qcow2.rst`.

/// One cluster; qemu's default, and our block.
pub(super) const CLUSTER: u64 = 65536;
const CLUSTER_BITS: u32 = 16;
/// Entries of an L2 table ("Cluster mapping").
pub(super) const L2_ENTRIES: u64 = CLUSTER / 8;
/// What one L2 table maps: 512 MiB.
pub(super) const L2_SPAN: u64 = L2_ENTRIES * CLUSTER;
/// "qemu has an implementation limit of 32 MB as the maximum L1 table size."
const MAX_TABLES: u64 = (32 << 20) / 8;
/// Bit 63 of L1 and L2 entries: the reference count is exactly one, so it may be written in place.
pub(super) const COPIED: u64 = 1 << 63;
/// Reference counts have 16 bits ("refcount_order" 4), qemu's default, so that the image can have snapshots later.
const REFCOUNT_ORDER: u32 = 4;

/// The length of our header: all fields of version 3, compression type included, as qemu writes them, and after it the
/// empty list of extensions (zeros, as is the rest of the cluster).
pub(super) const HEADER_LEN: usize = 112;

/// The refcount table, as the header names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RefcountTable {
    pub(super) offset: u64,
    pub(super) clusters: u32,
}

impl RefcountTable {
    /// None yet: the image is not finished.
    pub(super) const NONE: Self = Self { offset: 0, clusters: 0 };
}

/// The places in an image of a certain size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) virtual_size: u64,
    /// How many L2 tables there is room for, which is also how many entries the L1 table has.
    pub(super) tables: u32,
}

impl Layout {
    /// The layout for a disk of this size, if qcow2 and qemu can have one.
    pub(super) fn new(virtual_size: u64) -> Option<Self> {
        let tables = virtual_size.div_ceil(L2_SPAN);
        let possible = virtual_size.is_multiple_of(512) && tables <= MAX_TABLES;
        let tables = u32::try_from(tables).ok().filter(|_| possible)?;
        // A disk of no bytes has one table as well: nobody tests images without an L1 table.
        Some(Self { virtual_size, tables: tables.max(1) })
    }

    /// Where the L1 table is.
    #[allow(clippy::unused_self, reason = "reads like its neighbours")]
    pub(super) fn l1(&self) -> u64 {
        CLUSTER
    }

    /// Where the entry of an L2 table in the L1 table is.
    pub(super) fn l1_entry(&self, table: u32) -> u64 {
        self.l1() + u64::from(table) * 8
    }

    /// Where the L2 tables begin, behind the clusters of the L1 table.
    pub(super) fn tables_start(&self) -> u64 {
        self.l1_entry(self.tables).next_multiple_of(CLUSTER)
    }

    /// Where an L2 table is.
    pub(super) fn table(&self, table: u32) -> u64 {
        self.tables_start() + u64::from(table) * CLUSTER
    }

    /// Where the first data cluster may be.
    pub(super) fn data_start(&self) -> u64 {
        self.table(self.tables)
    }

    /// The header ("Header").
    pub(super) fn header(&self, refcounts: RefcountTable) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let words = [
            (0, 0x5146_49fb), // magic
            (4, 3),           // version
            (20, CLUSTER_BITS),
            (36, self.tables), // l1_size
            (56, refcounts.clusters),
            (96, REFCOUNT_ORDER),
            (100, 112), // header_length
        ];
        for (at, word) in words {
            out[at..at + 4].copy_from_slice(&u32::to_be_bytes(word));
        }
        for (at, long) in [(24, self.virtual_size), (40, self.l1()), (48, refcounts.offset)] {
            out[at..at + 8].copy_from_slice(&u64::to_be_bytes(long));
        }
        out
    }

    /// Reads a header back, if it is one that [`Layout::header`] writes.
    pub(super) fn parse(header: &[u8; HEADER_LEN]) -> Option<(Self, RefcountTable)> {
        let long = |at: usize| header[at..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        let word = |at: usize| header[at..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        let layout = Self::new(long(24)?)?;
        let refcounts = RefcountTable { offset: long(48)?, clusters: word(56)? };
        (layout.header(refcounts) == *header).then_some((layout, refcounts))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_qcow2_cannot_have_are_refused() {
        for size in [1, 511, 513, (2 << 50) + 512, u64::MAX] {
            assert_eq!(Layout::new(size), None, "{size}");
        }
    }

    #[test]
    fn a_large_disk_has_room_for_its_tables() {
        let layout = Layout::new(64 << 40).unwrap();
        assert_eq!(layout.tables, 131_072);
        assert_eq!(layout.tables_start(), CLUSTER + (1 << 20));
        assert_eq!(layout.data_start() - layout.tables_start(), 8 << 30);
    }

    #[test]
    fn headers_are_read_back_and_foreign_ones_are_not() {
        for size in [0, 512, 3 << 30, 2 << 50] {
            let layout = Layout::new(size).unwrap();
            let table = RefcountTable { offset: 5 << 16, clusters: 2 };
            let mut header = layout.header(table);
            assert_eq!(Layout::parse(&header), Some((layout, table)));
            header[79] = 1;
            assert_eq!(Layout::parse(&header), None);
        }
    }
}
