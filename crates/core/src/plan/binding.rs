//! Whether the target has what the machine is bound to. Left out by word (`--drop-tuning`), never by itself: what runs on
//! other CPUs than it was meant to is another machine to whoever measures it.

use std::collections::BTreeSet;

use super::Facts;
use super::check::Checks;
use crate::domain::Binding;
use crate::error::Error;
use crate::inventory::HugePages;
use crate::size::ByteSize;

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
    let pages = binding.huge_pages.iter().filter_map(|size| {
        let size = size.unwrap_or(topology.default_huge_page);
        check_pages(facts, size, binding.huge_pages.len() == 1, checks)
    });
    let pages: Vec<Error> = pages.collect();
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

/// Fewer than the machine's memory needs are no start; fewer free ones only none at this moment. Where it takes several
/// sizes, how much of each is for libvirt to know.
fn check_pages(facts: &Facts<'_>, size: u64, alone: bool, checks: &mut Checks) -> Option<Error> {
    if facts.target.topology.huge_pages.is_empty() {
        return None;
    }
    let there = facts.target.topology.huge_pages.get(&size).copied().unwrap_or(HugePages { total: 0, free: 0 });
    let needed = if alone { facts.domain.memory().0.div_ceil(size.max(1)) } else { 1 };
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
