//! Whether a copy of a machine whose guest writes records is one point in time, and whether that guest goes on.

use std::path::Path;
use std::process::Command;

use kvm_clone_lab::guest::records;
use kvm_clone_lab::{Host, Machine};

use super::{disk_path, run_in, wait_for};

/// The first two disks of the copy are of one moment; the number of its last record.
pub fn assert_one_point(dir: &Path, host: &Host, xml: &str) -> u64 {
    let last: Vec<u64> = ["vda", "vdb"].map(|disk| last_record(dir, host, xml, disk)).into();
    assert!(last[0] >= 20, "{last:?}");
    assert!(last[0] == last[1] || last[0] == last[1] + 1, "the disks are of different moments: {last:?}");
    last[0]
}

fn last_record(dir: &Path, host: &Host, xml: &str, target: &str) -> u64 {
    let (image, raw) = (host.path(&disk_path(xml, target)), dir.join("copy.raw"));
    run_in(dir, Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&image).arg(&raw));
    records(&raw).unwrap().last
}

/// The disks that the guest leaves alone are copied bit for bit.
pub fn assert_left_alone(source: &Machine, host: &Host, xml: &str) {
    for disk in source.disks().iter().skip(2) {
        let compare = ["compare", "-U", "-f", disk.format.name(), "-F", disk.format.name()];
        let copy = host.path(&disk_path(xml, &disk.target));
        run_in(Path::new("/"), Command::new("qemu-img").args(compare).arg(source.host().path(&disk.path)).arg(copy));
    }
}

/// The guest runs, and goes on writing.
pub fn assert_goes_on(machine: &Machine) {
    assert_eq!(machine.state().unwrap(), "running");
    let wrote = || machine.console().matches("guest: wrote").count();
    let before = wrote();
    wait_for("more records", || wrote() != before);
}
