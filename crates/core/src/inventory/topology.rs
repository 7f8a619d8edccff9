//! CPUs, NUMA nodes and huge pages of a host: what a definition can bind a machine to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// More numbers than any host has: a list that names more is not read.
const NUMBERS: u32 = 8192;

/// What a machine can be bound to; what is not known is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The numbers of the CPUs that are online.
    pub cpus: BTreeSet<u32>,
    /// The numbers of the NUMA nodes that are online.
    pub nodes: BTreeSet<u32>,
    /// Huge pages by their size in bytes.
    pub huge_pages: BTreeMap<u64, HugePages>,
    /// The size of huge pages where none is named.
    pub default_huge_page: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePages {
    /// How many there are.
    pub total: u64,
    /// How many nobody uses.
    pub free: u64,
}

/// The numbers of a list such as `0-3,^2,8`, as the kernel and libvirt write them (formatdomain, "CPU Allocation"); none
/// where it is no such list.
#[must_use]
pub fn number_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for part in text.trim().split(',').map(str::trim) {
        if let Some(without) = part.strip_prefix('^') {
            numbers.remove(&without.parse().ok()?);
            continue;
        }
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last >= NUMBERS {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers_are_read() {
        assert_eq!(number_list("0-3,^2,8\n").unwrap(), BTreeSet::from([0, 1, 3, 8]));
        assert_eq!(number_list("5").unwrap(), BTreeSet::from([5]));
        for text in ["", "a", "1-", "0-4294967295", "-1", "1,,2"] {
            assert_eq!(number_list(text), None, "{text}");
        }
    }
}
