//! What of its host a machine is bound to: CPUs, NUMA nodes, huge pages.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::Element;
use super::{Domain, amount, bytes_of_unit};
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
    /// Bytes of memory devices, by the size of the pages that they ask for themselves.
    pub device_pages: BTreeMap<u64, u64>,
}

impl Domain {
    /// What the machine is bound to: formatdomain, "CPU Allocation", "CPU Tuning", "NUMA Node Tuning", "Memory Backing",
    /// "Memory devices".
    #[must_use]
    pub fn binding(&self) -> Binding {
        let below = |name: &'static str| self.root.all(name).flat_map(|element| element.children.iter());
        let pinned = below("cputune").chain(self.root.all("vcpu")).filter_map(|element| element.attr("cpuset"));
        let masks = self.devices_named("memory").filter_map(|device| device.text_at(&["source", "nodemask"]));
        let placed = below("numatune").filter_map(|element| element.attr("nodeset")).chain(masks);
        let numbers = |list: &str| number_list(list).unwrap_or_default();
        let pages = self.root.at(&["memoryBacking", "hugepages"]);
        let sizes = pages.into_iter().flat_map(|pages| pages.all("page").map(page_size));
        let sizes: Vec<Option<u64>> = sizes.collect();
        Binding {
            cpus: pinned.flat_map(numbers).collect(),
            nodes: placed.flat_map(numbers).collect(),
            huge_pages: if pages.is_some() && sizes.is_empty() { vec![None] } else { sizes },
            device_pages: self.device_pages(),
        }
    }

    fn device_pages(&self) -> BTreeMap<u64, u64> {
        let mut pages = BTreeMap::new();
        for device in self.devices_named("memory") {
            if let Some(size) = device.at(&["source", "pagesize"]).and_then(amount) {
                let bytes = device.at(&["target", "size"]).and_then(amount).unwrap_or(0);
                let sum: &mut u64 = pages.entry(size).or_default();
                *sum = sum.saturating_add(bytes);
            }
        }
        pages
    }
}

/// "Memory Backing": KiB where no unit is named.
fn page_size(page: &Element) -> Option<u64> {
    let size: u64 = page.attr("size")?.parse().ok()?;
    size.checked_mul(bytes_of_unit(page.attr("unit").unwrap_or("KiB")))
}
