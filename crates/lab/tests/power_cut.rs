#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use kvm_clone_lab::{FsKind, HostSpec, Lab, available};

#[test]
fn a_power_cut_loses_what_was_not_synced_and_nothing_else() {
    if !available("power_cut") {
        return;
    }
    let lab = Lab::new().unwrap();
    let host = lab.host(HostSpec::named("alpha")).unwrap();
    for (kind, bytes) in [(FsKind::Ext4, 64 << 20), (FsKind::Xfs, 300 << 20)] {
        let place = format!("/srv/{kind:?}");
        host.small_filesystem(&place, kind, bytes).unwrap();
        let write = |name: &str, sync: &str| {
            let path = format!("{place}/{name}");
            host.exec(&["dd", "if=/dev/urandom", &format!("of={path}"), "bs=4096", "count=4", sync]).unwrap();
        };
        write("synced", "conv=fsync");
        host.exec(&["sync", "-f", &place]).unwrap();
        write("lost", "status=none");

        host.power_cut(&place).unwrap();

        assert_eq!(host.exec(&["stat", "-c", "%s", &format!("{place}/synced")]).unwrap().trim(), "16384");
        assert!(!host.path(&format!("{place}/lost")).exists(), "{kind:?} kept what was never synced");

        write("lost", "status=none");
        host.crash().unwrap();
        assert!(host.path(&format!("{place}/synced")).exists());
        assert!(!host.path(&format!("{place}/lost")).exists(), "{kind:?} kept what was never synced");
    }
}

#[test]
fn small_file_systems_fill_up_and_block_devices_stay() {
    if !available("power_cut") {
        return;
    }
    let lab = Lab::new().unwrap();
    let host = lab.host(HostSpec::named("alpha")).unwrap();
    host.small_filesystem("/srv/memory", FsKind::Tmpfs, 1 << 20).unwrap();
    assert!(host.exec(&["dd", "if=/dev/zero", "of=/srv/memory/x", "bs=1M", "count=2"]).is_err());

    let device = host.block_device("vg0-web1", 8 << 20).unwrap();
    assert_eq!(host.exec(&["blockdev", "--getsize64", &device]).unwrap().trim(), "8388608");
    host.exec(&["dd", "if=/etc/hostname", &format!("of={device}"), "conv=fsync"]).unwrap();
    host.reboot().unwrap();
    assert_eq!(host.exec(&["head", "-c", "5", &device]).unwrap(), "alpha");
}
