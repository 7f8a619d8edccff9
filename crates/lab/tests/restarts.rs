#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use kvm_clone_lab::{DiskSpec, FsKind, HostSpec, Lab, MachineSpec, available, define_machine};

#[test]
fn a_reboot_keeps_definitions_and_forgets_run() {
    if !available("restarts") {
        return;
    }
    let lab = Lab::new().unwrap();
    let host = lab.host(HostSpec::named("alpha")).unwrap();
    host.small_filesystem("/srv/small", FsKind::Ext4, 64 << 20).unwrap();
    let machine = define_machine(&host, MachineSpec::named("web1").disk(DiskSpec::raw("vda", 1 << 20))).unwrap();
    machine.start().unwrap();
    host.shell("mkdir -p /var/lib/kvm-clone; touch /run/gone /tmp/gone /dev/shm/gone /var/lib/kvm-clone/stays /srv/small/stays")
        .unwrap();
    let look =
        "cat /sys/class/net/eth0/address /etc/machine-id; virsh -c qemu:///system capabilities | sed -n '/<uuid>/p'";
    let before = host.shell(look).unwrap();
    let boot = host.exec(&["cat", "/proc/sys/kernel/random/boot_id"]).unwrap();

    host.reboot().unwrap();

    assert_eq!(machine.state().unwrap(), "shut off");
    assert_eq!(host.shell(look).unwrap(), before);
    assert_ne!(host.exec(&["cat", "/proc/sys/kernel/random/boot_id"]).unwrap(), boot);
    host.shell("test -e /var/lib/kvm-clone/stays && test -e /srv/small/stays").unwrap();
    host.shell("test ! -e /run/gone && test ! -e /tmp/gone && test ! -e /dev/shm/gone").unwrap();
    host.exec(&["ssh", "-oBatchMode=yes", "alpha", "true"]).unwrap();
    machine.start().unwrap();
}

#[test]
fn a_halted_host_runs_nothing_and_starts_again() {
    if !available("restarts") {
        return;
    }
    let lab = Lab::new().unwrap();
    let host = lab.host(HostSpec::named("alpha")).unwrap();
    assert!(!host.processes().unwrap().is_empty());
    host.halt().unwrap();
    assert!(host.processes().unwrap().is_empty());
    assert!(host.exec(&["true"]).is_err());
    host.start().unwrap();
    host.exec(&["true"]).unwrap();
}
