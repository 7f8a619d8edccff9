//! Two hosts with the command installed, as an administrator finds them, and what is looked at afterwards.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use kvm_clone_lab::{DiskSpec, Fill, Host, HostSpec, Lab, MachineSpec, define_machine};
use serde_json::Value;

pub const MIB: u64 = 1 << 20;
pub const IMAGES: &str = "/var/lib/libvirt/images";

pub fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_kvm-clone").into()
}

pub fn agent() -> PathBuf {
    program().with_file_name("kvm-clone-agent")
}

/// Two hosts with the command installed on both, and a machine on alpha.
pub fn two_hosts(bytes: u64) -> (Lab, Host, Host) {
    let lab = Lab::new().unwrap();
    let hosts = lab.hosts(vec![HostSpec::named("alpha"), HostSpec::named("beta")]).unwrap();
    let [alpha, beta] = <[Host; 2]>::try_from(hosts).unwrap_or_else(|_| panic!("two hosts"));
    for host in [&alpha, &beta] {
        host.install_file(&program(), "/usr/local/bin/kvm-clone", 0o755).unwrap();
        host.install_file(&agent(), "/usr/local/libexec/kvm-clone-agent", 0o755).unwrap();
        host.provide_guest().unwrap();
    }
    let disk = DiskSpec::qcow2("vda", 4 * bytes).fill(Fill::Random { seed: 3, bytes });
    define_machine(&alpha, MachineSpec::named("web1").disk(disk)).unwrap();
    (lab, alpha, beta)
}

pub fn run(host: &Host, arguments: &[&str]) -> Output {
    host.command("kvm-clone").args(arguments).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}{}", stdout(output), stderr(output)))
}

pub fn assert_copied(alpha: &Host, beta: &Host, name: &str) {
    let compared = Command::new("qemu-img")
        .args(["compare", "-f", "qcow2", "-F", "qcow2"])
        .arg(alpha.path(&format!("{IMAGES}/web1-vda.qcow2")))
        .arg(beta.path(&format!("{IMAGES}/{name}-vda.qcow2")))
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}", stdout(&compared));
}

pub fn assert_clean(host: &Host) {
    let left = host.shell(&format!("ls -A {IMAGES} /var/lib/kvm-clone/operations 2>/dev/null || true")).unwrap();
    assert!(!left.contains(".kvm-clone") && !left.contains(".json"), "{left}");
}

pub fn wait_until(condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < end, "it did not happen in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}
