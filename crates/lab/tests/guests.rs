#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use kvm_clone_lab::{DiskSpec, Fill, HostSpec, Lab, MachineSpec, available, define_machine, fault};

const MIB: u64 = 1 << 20;

#[test]
fn a_guest_boots_and_sees_its_disks() {
    if !available("guests") {
        return;
    }
    let lab = Lab::new().unwrap();
    let host = lab.host(HostSpec::named("alpha")).unwrap();
    let data = Fill::Random { seed: 7, bytes: 4 * MIB };
    let spec = MachineSpec::named("web1").disk(DiskSpec::qcow2("vda", 64 * MIB).fill(data));
    let spec = spec.disk(DiskSpec::raw("vdb", 8 * MIB + 512).fill(Fill::Bootable));
    let machine = define_machine(&host, spec).unwrap();
    machine.start().unwrap();
    let up = machine.wait_for_console("kvm-clone-guest: up", Duration::from_secs(60)).unwrap();
    // The first mebibyte of the image is what the guest says it is.
    let image = &machine.disks()[0].path;
    let sum = host.shell("qemu-img dd -U if=\"$(ls /var/lib/libvirt/images/*.qcow2)\" -f qcow2 -O raw bs=1M count=1 of=/tmp/m >/dev/null; sha256sum </tmp/m");
    let sum = sum.unwrap();
    assert!(up.ends_with(sum.split(' ').next().unwrap()), "{up} of {image}: {sum}");
    assert_eq!(machine.state().unwrap(), "running");
    assert_eq!(fault::kill(&host, "qemu-system-x86_64 -name guest=web1").unwrap(), 1);
    fault::wait_gone(&host, "guest=web1", Duration::from_secs(10)).unwrap();
}

#[test]
fn a_writing_guest_numbers_its_records() {
    if !available("guests") {
        return;
    }
    let lab = Lab::new().unwrap();
    let host = lab.host(HostSpec::named("alpha")).unwrap();
    let spec = MachineSpec::named("db1").disk(DiskSpec::raw("vda", 8 * MIB)).writing();
    let machine = define_machine(&host, spec).unwrap();
    machine.start().unwrap();
    machine.wait_for_console("kvm-clone-guest: wrote 40", Duration::from_secs(60)).unwrap();
    machine.destroy().unwrap();
    let records = kvm_clone_lab::guest::records(&host.path(&machine.disks()[0].path)).unwrap();
    assert!(records.last >= 40, "{records:?}");
}

#[test]
fn equal_seeds_make_equal_disks_with_holes() {
    if !available("guests") {
        return;
    }
    let lab = Lab::new().unwrap();
    let host = lab.host(HostSpec::named("alpha")).unwrap();
    let disk = |target: &str, seed| DiskSpec::raw(target, 40 * MIB + 512).fill(Fill::Random { seed, bytes: 10 * MIB });
    let spec = MachineSpec::named("web1").disk(disk("vda", 1)).disk(disk("vdb", 1)).disk(disk("vdc", 2));
    let machine = define_machine(&host, spec).unwrap();
    let read: Vec<Vec<u8>> = machine.disks().iter().map(|disk| std::fs::read(host.path(&disk.path)).unwrap()).collect();
    assert_eq!(read[0].len(), 40 * 1024 * 1024 + 512);
    assert!(read[0] == read[1] && read[0] != read[2]);
    use std::os::unix::fs::MetadataExt;
    let blocks = std::fs::metadata(host.path(&machine.disks()[0].path)).unwrap().blocks();
    assert!((10 * MIB..15 * MIB).contains(&(blocks * 512)), "{blocks}");
}

/// What the live operations of kvm-clone build on works between two lab hosts.
#[test]
fn a_running_guest_is_backed_up_and_migrates() {
    if !available("guests") {
        return;
    }
    let lab = Lab::new().unwrap();
    let hosts = lab.hosts(vec![HostSpec::named("alpha"), HostSpec::named("beta").qemu_unprivileged()]).unwrap();
    let data = Fill::Random { seed: 7, bytes: 4 * MIB };
    let spec = MachineSpec::named("web1").disk(DiskSpec::qcow2("vda", 64 * MIB).fill(data));
    let machine = define_machine(&hosts[0], spec).unwrap();
    machine.start().unwrap();
    machine.wait_for_console("kvm-clone-guest: up", Duration::from_secs(60)).unwrap();

    let backup = "<domainbackup mode='pull'><server transport='unix' socket='/run/web1.sock'/></domainbackup>";
    std::fs::write(hosts[0].path("/root/backup.xml"), backup).unwrap();
    hosts[0].shell("virsh -c qemu:///system backup-begin web1 /root/backup.xml").unwrap();
    hosts[0].shell("qemu-img convert -O raw nbd+unix:///vda?socket=/run/web1.sock /root/web1.raw").unwrap();
    hosts[0].shell("virsh -c qemu:///system domjobabort web1").unwrap();

    hosts[1].provide_guest().unwrap();
    let path = &machine.disks()[0].path;
    hosts[1].exec(&["qemu-img", "create", "-q", "-f", "qcow2", path, &machine.disks()[0].size.to_string()]).unwrap();
    let target = "qemu+ssh://beta/system";
    let migrate =
        ["virsh", "-c", "qemu:///system", "migrate", "--live", "--persistent", "--copy-storage-all", "--unsafe"];
    hosts[0].exec(&[&migrate[..], &["web1", target]].concat()).unwrap();
    assert_eq!(hosts[1].machine("web1").unwrap().state().unwrap(), "running");
    assert_eq!(machine.state().unwrap(), "shut off");
}
