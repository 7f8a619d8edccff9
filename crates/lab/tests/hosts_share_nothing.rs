#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::HashSet;
use std::path::Path;

use kvm_clone_lab::{HostSpec, Lab, available};

#[test]
fn what_one_host_writes_no_other_sees() {
    if !available("hosts_share_nothing") {
        return;
    }
    let lab = Lab::new().unwrap();
    let hosts = lab.hosts(vec![HostSpec::named("alpha"), HostSpec::named("beta")]).unwrap();
    let (alpha, beta) = (&hosts[0], &hosts[1]);
    let places =
        ["/", "/dev/shm", "/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/usr/local/bin", "/usr/bin"];
    for place in places.into_iter().chain(["/var/lib", "/var/lib/libvirt/images", "/var/tmp", "/var/cache"]) {
        let file = format!("{place}/lab-mark");
        alpha.exec(&["touch", &file]).unwrap();
        assert!(alpha.path(&file).exists(), "{file}");
        assert!(!beta.path(&file).exists(), "{file} is in beta too");
        assert!(!Path::new(&file).exists(), "{file} is on the machine too");
    }

    for identity in
        ["cat /etc/machine-id", "cat /proc/sys/kernel/random/boot_id", "cat /etc/ssh/ssh_host_ed25519_key.pub"]
            .into_iter()
            .chain([
                "virsh -c qemu:///system capabilities | sed -n '/<uuid>/p'",
                "hostname",
                "cat /sys/class/net/eth0/address",
            ])
    {
        let seen: HashSet<String> = hosts.iter().map(|host| host.shell(identity).unwrap()).collect();
        assert_eq!(seen.len(), hosts.len(), "{identity}");
    }
}

#[test]
fn the_machine_is_invisible() {
    if !available("hosts_share_nothing") {
        return;
    }
    let lab = Lab::new().unwrap();
    let host = lab.host(HostSpec::named("alpha")).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(!host.path(&source.to_string_lossy()).exists());
    assert!(!host.path(&lab.dir().to_string_lossy()).exists());
    assert_eq!(host.exec(&["ls", "-A", "/root"]).unwrap().trim(), ".ssh");
    assert!(!host.path("/var/lib/kvm-clone").exists());
    // Processes, too: ours is not among them.
    let commands = host.exec(&["cat", "/proc/1/cmdline"]).unwrap();
    assert!(commands.starts_with("/bin/bash"), "{commands}");
    let ours = format!("{}", std::process::id());
    let test = std::env::args().next().unwrap();
    let found = host.processes().unwrap().into_iter().find(|process| process.command.contains(&test));
    assert!(found.is_none(), "{ours} is {found:?}");
}
