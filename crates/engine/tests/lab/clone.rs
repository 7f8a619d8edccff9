//! Clones between real hosts, looked at from outside: by virsh, qemu-img and the guest itself.

use std::path::Path;
use std::time::Duration;

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_machine_arrives_whole_and_boots() {
    let Some((lab, hosts)) = two_hosts("a_stopped_machine_arrives_whole_and_boots") else { return };
    let [alpha, beta] = &hosts;
    let source = make_machine(alpha, "web1", 40 * MIB);
    beta.provide_guest().unwrap();
    let client = client(&lab).await;

    let result = clone(&client, "alpha", "beta", "web1").await.unwrap();

    assert_eq!(result.new_vm_name.as_str(), "web1_clone");
    assert!(result.verified && result.bytes_written > 0);
    for (disk, format) in source.disks().iter().zip(["qcow2", "raw"]) {
        let ending = if format == "raw" { "img" } else { format };
        let copy = format!("/var/lib/libvirt/images/web1_clone-{}.{ending}", disk.target);
        assert_same_contents(&alpha.path(&disk.path), format, &beta.path(&copy), format);
        assert!(allocated(&beta.path(&copy)) < 60 * MIB, "what was sparse is sparse");
        let volumes = beta.exec(&["virsh", "vol-list", "default"]).unwrap();
        assert!(volumes.contains(Path::new(&copy).file_name().unwrap().to_str().unwrap()), "{volumes}");
    }
    let copy = beta.machine("web1_clone").unwrap();
    copy.start().unwrap();
    copy.wait_for_console("kvm-clone-guest: up", Duration::from_secs(60)).unwrap();
    drop(client);
    assert_nothing_left(alpha);
    assert_nothing_left(beta);
}
