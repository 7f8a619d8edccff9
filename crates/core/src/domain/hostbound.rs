//! What a copy carries although it was made for the source's host: said, so that a start which fails is understood.

use super::Domain;
use super::cpu;
use super::refuse::cannot;
use super::tree::Element;
use crate::error::Error;

/// The namespace of arguments that libvirt hands to qemu as they are: "QEMU command-line passthrough" (drvqemu).
const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// Parts of arguments that name images or other files, which the copy would share with its source.
const NAMES_FILES: [&str; 12] = [
    "-drive",
    "-blockdev",
    "-hda",
    "-hdb",
    "-hdc",
    "-hdd",
    "-cdrom",
    "-fda",
    "-pflash",
    "-mtdblock",
    "file=",
    "filename",
];

/// What was made for the source's host, in words.
pub(super) fn warnings(domain: &Domain) -> Vec<String> {
    let tests: [fn(&Domain) -> Option<String>; 5] = [cpu::warning, tuning, huge_pages, arguments, listen];
    let filters = domain.devices_named("interface").filter_map(|nic| nic.attr_at(&["filterref"], "filter"));
    let filters = filters.map(|name| format!("the network filter {name:?} must exist on the target"));
    tests.iter().filter_map(|test| test(domain)).chain(filters).collect()
}

/// formatdomain, "CPU Tuning", "NUMA Node Tuning", "Resource partitioning".
fn tuning(domain: &Domain) -> Option<String> {
    let pins = ["vcpupin", "emulatorpin", "iothreadpin"];
    let is_pinned = domain.root.child("cputune").is_some_and(|tune| pins.iter().any(|pin| tune.child(pin).is_some()));
    let has_cpus = domain.root.attr_at(&["vcpu"], "cpuset").is_some();
    let has_nodes = domain.root.child("numatune").is_some();
    let has_partition = domain.root.at(&["resource", "partition"]).is_some();
    (is_pinned || has_cpus || has_nodes || has_partition)
        .then(|| "CPU pinning, NUMA or cgroup settings are carried as they are; they must fit the target".to_owned())
}

fn huge_pages(domain: &Domain) -> Option<String> {
    let has_pages = domain.root.at(&["memoryBacking", "hugepages"]).is_some();
    has_pages.then(|| "the machine needs huge pages; the target must have enough of them free".to_owned())
}

fn arguments(domain: &Domain) -> Option<String> {
    let is_extended = domain.root.children.iter().any(|element| element.namespace == QEMU);
    is_extended
        .then(|| "arguments and settings for qemu itself are carried as they are; they must fit the target".to_owned())
}

/// Addresses are looked at when the definition is made; what a name means on the target is the target's to say.
fn listen(domain: &Domain) -> Option<String> {
    let mut names = domain.devices_named("graphics").filter_map(|graphics| graphics.attr("listen"));
    let name = names.find(|name| *name != "localhost" && name.parse::<std::net::IpAddr>().is_err())?;
    Some(format!("a display listens on {name}, which must be an address of the target"))
}

/// Arguments for qemu that name files: the copy would open its source's.
pub(super) fn refuse_arguments(domain: &Domain) -> Vec<Error> {
    let lines =
        domain.root.children.iter().filter(|element| element.namespace == QEMU && element.name == "commandline");
    let values = lines.flat_map(Element::descendants).filter_map(|argument| argument.attr("value"));
    let named = values.filter(|value| NAMES_FILES.iter().any(|part| value.contains(part)));
    let refuse = |value: &str| {
        cannot(
            format!("an argument for qemu names a file of the source's host: {value}"),
            "Describe the device in the definition instead of in <qemu:commandline>",
        )
    };
    named.map(refuse).collect()
}
