#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::{Command, Output, Stdio};

use kvm_clone_lab::{DiskSpec, HostSpec, Lab, MachineSpec, Sudo, available, define_machine};

fn ssh(lab: &Lab, to: &str, words: &[&str]) -> Output {
    let mut command = Command::new("ssh");
    command.arg("-F").arg(lab.ssh_config()).args(["-oBatchMode=yes", to]).args(words).stdin(Stdio::null());
    command.output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn a_hardened_host_forbids_forwarding_and_its_admin_needs_sudo() {
    if !available("host_kinds") {
        return;
    }
    let lab = Lab::new().unwrap();
    let spec = HostSpec::named("alpha").qemu_unprivileged().disable_forwarding().noexec_homes();
    let spec = spec.user("admin", Sudo::Passwordless).user("carol", Sudo::Password).user("dave", Sudo::None);
    let host = lab.host(spec).unwrap();

    let virsh = ["virsh", "-c", "qemu:///system", "list"];
    assert!(!ssh(&lab, "admin@alpha", &virsh).status.success(), "admin is not in group libvirt");
    let as_root = ssh(&lab, "admin@alpha", &[&["sudo", "-n"][..], &virsh].concat());
    assert!(as_root.status.success(), "{as_root:?}");
    for user in ["carol@alpha", "dave@alpha"] {
        assert_eq!(stdout(&ssh(&lab, user, &["id", "-un"])).trim(), user.trim_end_matches("@alpha"));
        assert!(!ssh(&lab, user, &["sudo", "-n", "true"]).status.success());
    }

    let forwarded = ssh(&lab, "root@alpha", &["-W", "127.0.0.1:22"]);
    assert!(!forwarded.status.success());
    let noexec = ssh(&lab, "admin@alpha", &["cp /bin/true ~/t && ~/t"]);
    assert_eq!(noexec.status.code(), Some(126), "{noexec:?}");

    let machine = define_machine(&host, MachineSpec::named("web1").disk(DiskSpec::qcow2("vda", 1 << 20))).unwrap();
    machine.start().unwrap();
    let owner = host.exec(&["stat", "-c", "%U", &machine.disks()[0].path]).unwrap();
    assert_eq!(owner.trim(), "libvirt-qemu");
}

#[test]
fn a_host_of_another_kind_says_so() {
    if !available("host_kinds") {
        return;
    }
    let lab = Lab::new().unwrap();
    let modular = HostSpec::named("modular").modular().banner("Welcome!").max_startups("1:100:1");
    let poor = HostSpec::named("poor").no_libvirt().without(&["qemu-img", "virsh"]).uname("aarch64");
    let hosts = lab.hosts(vec![modular, poor]).unwrap();
    let (modular, poor) = (&hosts[0], &hosts[1]);

    modular.shell("test ! -e /run/libvirt/libvirt-sock && test -S /run/libvirt/virtqemud-sock").unwrap();
    modular.exec(&["virsh", "-c", "qemu:///system", "net-list"]).unwrap();
    modular.exec(&["virsh", "-c", "qemu:///system", "pool-list"]).unwrap();
    assert_eq!(stdout(&ssh(&lab, "modular", &["hostname"])), "Welcome!\nmodular\n");
    assert!(modular.exec(&["sshd", "-T"]).unwrap().contains("maxstartups 1:100:1"));

    poor.shell("test ! -e /run/libvirt/libvirt-sock && ! command -v qemu-img && ! command -v virsh").unwrap();
    assert_eq!(stdout(&ssh(&lab, "poor", &["uname", "-m"])).trim(), "aarch64");
    assert_eq!(stdout(&ssh(&lab, "poor", &["uname", "-s"])).trim(), "Linux");
}
