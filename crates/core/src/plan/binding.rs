//! Whether the target has what the machine is bound to. Left out by word (`--drop-tuning`), never by itself: what runs on
//! other CPUs than it was meant to is another machine to whoever measures it.

use std::collections::{BTreeMap, BTreeSet};

use super::Facts;
use super::check::Checks;
use crate::domain::Binding;
use crate::error::Error;
use crate::inventory::HugePages;
use crate::size::ByteSize;

/// Memory of this page size is any host's ordinary memory.
const PLAIN_PAGE: u64 = 4096;

const LEAVE_OUT: &str = "Leave the binding out with --drop-tuning, or change the source's definition";

pub(super) fn check(facts: &Facts<'_>, checks: &mut Checks) {
    let binding = facts.domain.binding();
    if binding == Binding::default() {
        return;
    }
    let topology = &facts.target.topology;
    let failures = [
        missing(facts, "CPUs", &binding.cpus, &topology.cpus),
        missing(facts, "NUMA nodes", &binding.nodes, &topology.nodes),
    ];
    let needed = pages_needed(facts, &binding);
    let pages: Vec<Error> =
        needed.into_iter().filter_map(|(size, count)| check_pages(facts, size, count, checks)).collect();
    let failures: Vec<Error> = failures.into_iter().flatten().chain(pages).collect();
    checks.all("binding", failures, "the target has the CPUs, nodes and huge pages that the machine is bound to");
}

fn missing(facts: &Facts<'_>, what: &str, wanted: &BTreeSet<u32>, there: &BTreeSet<u32>) -> Option<Error> {
    let lacking: Vec<String> = wanted.difference(there).map(ToString::to_string).collect();
    if there.is_empty() || lacking.is_empty() {
        return None;
    }
    let message = format!("the machine is bound to {what} {}, which the target does not have", lacking.join(", "));
    Some(Error::unsupported(message).with("host", &facts.target.host_name).help(LEAVE_OUT))
}

/// How many huge pages the machine needs of each size. Where its memory takes several sizes, how much of each is for libvirt
/// to know; memory devices that name their own are part of its memory, and counted by themselves.
fn pages_needed(facts: &Facts<'_>, binding: &Binding) -> BTreeMap<u64, u64> {
    let of_devices = binding.device_pages.values().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
    let rest = facts.domain.memory().0.saturating_sub(of_devices);
    let is_alone = binding.huge_pages.len() == 1;
    let mut needed = BTreeMap::new();
    for size in binding.huge_pages.iter().map(|size| size.unwrap_or(facts.target.topology.default_huge_page)) {
        needed.insert(size, if is_alone { rest.div_ceil(size.max(1)) } else { 1 });
    }
    for (size, bytes) in binding.device_pages.iter().filter(|(size, _)| **size > PLAIN_PAGE) {
        let count: &mut u64 = needed.entry(*size).or_default();
        *count = count.saturating_add(bytes.div_ceil(*size));
    }
    needed
}

/// Fewer than the machine's memory needs are no start; fewer free ones only none at this moment.
fn check_pages(facts: &Facts<'_>, size: u64, needed: u64, checks: &mut Checks) -> Option<Error> {
    if facts.target.topology.huge_pages.is_empty() {
        return None;
    }
    let there = facts.target.topology.huge_pages.get(&size).copied().unwrap_or(HugePages { total: 0, free: 0 });
    let shown = ByteSize(size);
    if there.total < needed {
        let message = format!("the machine needs {needed} huge pages of {shown}, the target has {}", there.total);
        let error = Error::insufficient(message).with("host", &facts.target.host_name);
        return Some(error.help("Set more aside there (vm.nr_hugepages), or leave them out with --drop-tuning"));
    }
    if there.free < needed {
        let message =
            format!("the machine needs {needed} huge pages of {shown}, {} are free at the target now", there.free);
        checks.warn("binding", message, Some("Stop another machine before starting this one"));
    }
    None
}
