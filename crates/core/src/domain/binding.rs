//! What of its host a machine is bound to: CPUs, NUMA nodes, huge pages.

use std::collections::BTreeSet;

use super::Domain;
use super::tree::Element;
use crate::inventory::number_list;

/// What a definition binds its machine to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Binding {
    /// CPUs, by number.
    pub cpus: BTreeSet<u32>,
    /// NUMA nodes, by number.
    pub nodes: BTreeSet<u32>,
    /// Sizes of huge pages in bytes; none stands for the host's own.
    pub huge_pages: Vec<Option<u64>>,
}

impl Domain {
    /// What the machine is bound to: formatdomain, "CPU Allocation", "CPU Tuning", "NUMA Node Tuning", "Memory Backing".
    #[must_use]
    pub fn binding(&self) -> Binding {
        let below = |name: &'static str| self.root.all(name).flat_map(|element| element.children.iter());
        let pinned = below("cputune").chain(self.root.all("vcpu")).filter_map(|element| element.attr("cpuset"));
        let placed = below("numatune").filter_map(|element| element.attr("nodeset"));
        let numbers = |list: &str| number_list(list).unwrap_or_default();
        let pages = self.root.at(&["memoryBacking", "hugepages"]);
        let sizes = pages.into_iter().flat_map(|pages| pages.all("page").map(page_size));
        let sizes: Vec<Option<u64>> = sizes.collect();
        Binding {
            cpus: pinned.flat_map(numbers).collect(),
            nodes: placed.flat_map(numbers).collect(),
            huge_pages: if pages.is_some() && sizes.is_empty() { vec![None] } else { sizes },
        }
    }
}

/// "Memory Backing": KiB where no unit is named.
fn page_size(page: &Element) -> Option<u64> {
    let size: u64 = page.attr("size")?.parse().ok()?;
    let unit = match page.attr("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        _ => return None,
    };
    size.checked_mul(unit)
}
