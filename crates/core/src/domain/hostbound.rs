//! What a copy carries although it was made for the source's host: said, so that a start which fails is understood.

use super::Domain;
use super::{arguments, cpu};

/// What was made for the source's host, in words.
pub(super) fn warnings(domain: &Domain) -> Vec<String> {
    let tests: [fn(&Domain) -> Option<String>; 5] = [cpu::warning, tuning, huge_pages, arguments::warning, listen];
    tests.iter().filter_map(|test| test(domain)).collect()
}

/// formatdomain, "CPU Tuning", "NUMA Node Tuning", "Resource partitioning", "Memory devices".
fn tuning(domain: &Domain) -> Option<String> {
    let pins = ["vcpupin", "emulatorpin", "iothreadpin"];
    let is_pinned = domain.root.child("cputune").is_some_and(|tune| pins.iter().any(|pin| tune.child(pin).is_some()));
    let has_cpus = domain.root.attr_at(&["vcpu"], "cpuset").is_some();
    let has_nodes = domain.root.child("numatune").is_some() || has_memory_on(domain, "nodemask");
    let has_partition = domain.root.at(&["resource", "partition"]).is_some();
    (is_pinned || has_cpus || has_nodes || has_partition)
        .then(|| "CPU pinning, NUMA or cgroup settings are carried as they are; they must fit the target".to_owned())
}

fn huge_pages(domain: &Domain) -> Option<String> {
    let has_pages = domain.root.at(&["memoryBacking", "hugepages"]).is_some();
    (has_pages || has_memory_on(domain, "pagesize"))
        .then(|| "the machine needs huge pages; the target must have enough of them free".to_owned())
}

fn has_memory_on(domain: &Domain, place: &str) -> bool {
    domain.devices_named("memory").any(|device| device.at(&["source", place]).is_some())
}

/// Addresses are looked at when the definition is made; what a name means on the target is the target's to say.
fn listen(domain: &Domain) -> Option<String> {
    let mut names = domain.devices_named("graphics").filter_map(|graphics| graphics.attr("listen"));
    let name = names.find(|name| *name != "localhost" && name.parse::<std::net::IpAddr>().is_err())?;
    Some(format!("a display listens on {name}, which must be an address of the target"))
}
