#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::{Command, Stdio};

use kvm_clone_lab::{HostSpec, Lab, available};

#[test]
fn libvirt_answers_and_everybody_reaches_everybody() {
    if !available("hosts_are_up") {
        return;
    }
    let lab = Lab::new().unwrap();
    let hosts = lab.hosts(vec![HostSpec::named("alpha"), HostSpec::named("beta")]).unwrap();
    for host in &hosts {
        let version = host.exec(&["virsh", "-c", "qemu:///system", "version"]).unwrap();
        assert!(version.contains("QEMU"), "{version}");
        for (kind, list) in [("net-list", "net-list"), ("pool-list", "pool-list")] {
            let text = host.exec(&["virsh", "-c", "qemu:///system", list, "--autostart"]).unwrap();
            assert!(text.contains(" default   active"), "{kind}: {text}");
        }
        let outside = Command::new("ssh")
            .arg("-F")
            .arg(lab.ssh_config())
            .args(["-oBatchMode=yes", host.name(), "hostname"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&outside.stdout).trim(), host.name(), "{outside:?}");
        for other in &hosts {
            let name = host.exec(&["ssh", "-oBatchMode=yes", other.name(), "hostname"]).unwrap();
            assert_eq!(name.trim(), other.name());
        }
    }
}
