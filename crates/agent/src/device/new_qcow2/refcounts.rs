//! Which clusters of the file are used, and the reference counts that say so ("Host cluster management").

use std::collections::BTreeSet;

use super::header::RefcountTable;
use super::layout::CLUSTER;

/// Counts in one refcount block: 16 bits each. One block speaks for 2 GiB of the file.
const BLOCK_COUNTS: u64 = CLUSTER / 2;

/// One bit for each cluster of the file: 2 MiB of memory for 1 TiB of data.
#[derive(Debug, Default)]
pub(super) struct Used {
    bits: Vec<u64>,
}

impl Used {
    /// Marks a cluster. `false`: it was marked already.
    pub(super) fn mark(&mut self, cluster: u64) -> bool {
        let (word, bit) = place(cluster);
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        let new = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        new
    }

    pub(super) fn contains(&self, cluster: u64) -> bool {
        let (word, bit) = place(cluster);
        self.bits.get(word).is_some_and(|bits| bits & bit != 0)
    }

    /// The number of clusters up to the last used one.
    pub(super) fn end(&self) -> u64 {
        let last = self.bits.iter().rposition(|bits| *bits != 0);
        last.map_or(0, |word| word as u64 * 64 + u64::from(64 - self.bits[word].leading_zeros()))
    }

    /// The runs of unused clusters before the end: start and length, in clusters.
    pub(super) fn gaps(&self) -> Vec<(u64, u64)> {
        let (mut out, mut start): (Vec<(u64, u64)>, _) = (Vec::new(), None);
        for cluster in 0..self.end() {
            match (self.contains(cluster), start) {
                (false, None) => start = Some(cluster),
                (true, Some(from)) => {
                    out.push((from, cluster - from));
                    start = None;
                }
                _ => {}
            }
        }
        out
    }

    /// The refcount blocks that are needed: one for each 2 GiB in which anything is used.
    fn blocks(&self) -> BTreeSet<u64> {
        let words = usize::try_from(BLOCK_COUNTS / 64).unwrap_or(usize::MAX);
        (0..)
            .zip(self.bits.chunks(words))
            .filter(|(_, bits)| bits.iter().any(|word| *word != 0))
            .map(|(i, _)| i)
            .collect()
    }

    /// The bytes of a refcount block: one reference for what is used.
    pub(super) fn block(&self, index: u64) -> Vec<u8> {
        let first = index * BLOCK_COUNTS;
        (first..first + BLOCK_COUNTS).flat_map(|cluster| u16::from(self.contains(cluster)).to_be_bytes()).collect()
    }
}

fn place(cluster: u64) -> (usize, u64) {
    (usize::try_from(cluster / 64).unwrap_or(usize::MAX), 1 << (cluster % 64))
}

/// Where the refcount structures go: behind all else.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The refcount blocks: for which 2 GiB of the file, and where.
    pub(super) blocks: Vec<(u64, u64)>,
    /// The table that names them.
    pub(super) table: RefcountTable,
}

/// Lays the refcount structures behind the last used cluster, and marks them as used, as they count themselves.
pub(super) fn plan(used: &mut Used) -> Plan {
    let start = used.end();
    let mut blocks = used.blocks();
    // Each block more may need another block to count it, and a longer table; it settles after two or three rounds.
    let table_clusters = loop {
        let last = blocks.last().copied().unwrap_or(0);
        let table_clusters = ((last + 1) * 8).div_ceil(CLUSTER);
        let end = start + blocks.len() as u64 + table_clusters;
        let before = blocks.len();
        blocks.extend(start / BLOCK_COUNTS..=(end - 1) / BLOCK_COUNTS);
        if blocks.len() == before {
            break table_clusters;
        }
    };
    let blocks: Vec<_> = blocks.into_iter().zip((start..).map(|cluster| cluster * CLUSTER)).collect();
    let table_start = start + blocks.len() as u64;
    for cluster in start..table_start + table_clusters {
        used.mark(cluster);
    }
    let clusters = u32::try_from(table_clusters).unwrap_or(u32::MAX);
    Plan { blocks, table: RefcountTable { offset: table_start * CLUSTER, clusters } }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_used_cluster_is_counted_and_no_other(
            clusters in prop::collection::btree_set(0u64..100_000, 1..50),
            edge in 0u64..4,
        ) {
            let mut used = Used::default();
            // Near a block's end, so that the structures themselves reach into the next one.
            used.mark(4 * BLOCK_COUNTS - edge - 1);
            clusters.iter().for_each(|cluster| { used.mark(*cluster); });
            let before = used.end();
            let gaps: u64 = used.gaps().iter().map(|(_, len)| len).sum();
            let marked = clusters.len() as u64 + u64::from(!clusters.contains(&(4 * BLOCK_COUNTS - edge - 1)));
            prop_assert_eq!(gaps + marked, before);
            let plan = plan(&mut used);
            prop_assert_eq!(used.end() * CLUSTER, plan.table.offset + u64::from(plan.table.clusters) * CLUSTER);
            let mut counted = 0u64;
            for (index, _) in &plan.blocks {
                for count in used.block(*index).as_chunks::<2>().0 {
                    counted += u64::from(u16::from_be_bytes(*count));
                }
            }
            prop_assert_eq!(counted, marked + plan.blocks.len() as u64 + u64::from(plan.table.clusters));
        }
    }
}
