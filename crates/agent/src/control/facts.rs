//! What the agent knows of its host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kvm_clone_core::Result;
use kvm_clone_core::inventory::{HostId, HugePages, Topology, number_list};
use kvm_clone_core::wire::facts::HostFacts;

use super::{files, relay, tpm};
use crate::place::Place;
use crate::program;

/// Programs that an operation may need.
const PROGRAMS: [&str; 4] = ["qemu-img", "qemu-nbd", "virsh", "sudo"];

/// Looks once; nothing here takes longer than reading a few files of `/proc`.
pub(super) fn gather(place: &Place) -> Result<HostFacts> {
    let system = rustix::system::uname();
    let text = |value: &std::ffi::CStr| value.to_string_lossy().into_owned();
    let programs: BTreeMap<String, String> = PROGRAMS
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), program::find(name)?.display().to_string())))
        .collect();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    Ok(HostFacts {
        id: HostId(place.host_id()?),
        hostname: text(system.nodename()),
        arch: text(system.machine()),
        kernel: text(system.release()),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_total: memory("MemTotal:"),
        memory_available: memory("MemAvailable:"),
        aes: read("/proc/cpuinfo").lines().any(|line| line.starts_with("flags") && line.contains(" aes")),
        uid: rustix::process::geteuid().as_raw(),
        kvm: fs::File::open("/dev/kvm").is_ok(),
        libvirt_sockets: relay::sockets().into_iter().filter(|path| Path::new(path).exists()).collect(),
        programs,
        state_dir: place.state.display().to_string(),
        nvram_dir: nvram_dir(),
        tpm_dir: tpm::dir(),
        tpm_owner: tpm::owner(),
        boot_id: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
        bridges: network_devices(|device| device.join("bridge").is_dir()),
        links: network_devices(|_| true),
        addresses: addresses(&read("/proc/net/fib_trie"), &read("/proc/net/if_inet6")),
        topology: topology(),
        clock: i64::try_from(clock).unwrap_or(i64::MAX),
    })
}

/// `qemu_conf.c` of libvirt, `virQEMUDriverConfigNew`.
fn nvram_dir() -> String {
    if rustix::process::geteuid().is_root() {
        "/var/lib/libvirt/qemu/nvram".to_owned()
    } else {
        files::user_config().join("libvirt/qemu/nvram").display().to_string()
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A line of `/proc/meminfo` in bytes.
fn memory(name: &str) -> u64 {
    let info = read("/proc/meminfo");
    let line = info.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Network devices, of those that keep `wanted`.
fn network_devices(wanted: impl Fn(&Path) -> bool) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| wanted(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The addresses of this host, from the kernel's tables of routes (IPv4) and of addresses (IPv6).
fn addresses(trie: &str, inet6: &str) -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    let mut last = None;
    for line in trie.lines().map(str::trim) {
        match line.strip_prefix("|-- ") {
            Some(address) => last = address.parse().ok().map(IpAddr::V4),
            None if line.starts_with("/32 host LOCAL") => found.extend(last),
            None => {}
        }
    }
    let number = |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok();
    found.extend(inet6.lines().filter_map(number).map(|bits| IpAddr::V6(bits.into())));
    found
}

/// "hugepages-2048kB": Linux, `Documentation/admin-guide/mm/hugetlbpage.rst`.
fn topology() -> Topology {
    let online = |what: &str| number_list(&read(&format!("/sys/devices/system/{what}/online"))).unwrap_or_default();
    let count = |dir: &Path, name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let mut huge_pages = BTreeMap::new();
    for dir in fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let size = name.strip_prefix("hugepages-").and_then(|name| name.strip_suffix("kB")?.parse::<u64>().ok());
        if let (Some(size), Some(total), Some(free)) =
            (size, count(&dir, "nr_hugepages"), count(&dir, "free_hugepages"))
        {
            huge_pages.insert(size.saturating_mul(1024), HugePages { total, free });
        }
    }
    Topology { cpus: online("cpu"), nodes: online("node"), huge_pages, default_huge_page: memory("Hugepagesize:") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_the_kernels_tables() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.0.0.7\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n";
        let inet6 = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let expected = ["10.0.0.7", "::1"].map(|address| address.parse().ok());
        assert_eq!(addresses(trie, inet6).into_iter().map(Some).collect::<Vec<_>>(), expected);
    }
}
