//! The command as an administrator types it, on and between real hosts.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kvm_clone_lab::{DiskSpec, Fill, Host, HostSpec, Lab, MachineSpec, available, define_machine};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const IMAGES: &str = "/var/lib/libvirt/images";

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_kvm-clone").into()
}

fn agent() -> PathBuf {
    program().with_file_name("kvm-clone-agent")
}

/// Two hosts with the command installed on both, and a machine on alpha.
fn two_hosts(bytes: u64) -> (Lab, Host, Host) {
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

fn run(host: &Host, arguments: &[&str]) -> Output {
    host.command("kvm-clone").args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}{}", stdout(output), stderr(output)))
}

fn assert_copied(alpha: &Host, beta: &Host, name: &str) {
    let compared = Command::new("qemu-img")
        .args(["compare", "-f", "qcow2", "-F", "qcow2"])
        .arg(alpha.path(&format!("{IMAGES}/web1-vda.qcow2")))
        .arg(beta.path(&format!("{IMAGES}/{name}-vda.qcow2")))
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}", stdout(&compared));
}

fn assert_clean(host: &Host) {
    let left = host.shell(&format!("ls -A {IMAGES} /var/lib/kvm-clone/operations 2>/dev/null || true")).unwrap();
    assert!(!left.contains(".kvm-clone") && !left.contains(".json"), "{left}");
}

#[test]
fn from_local_to_a_host_and_from_a_host_to_local() {
    if !available("from_local_to_a_host_and_from_a_host_to_local") {
        return;
    }
    let (_lab, alpha, beta) = two_hosts(24 * MIB);

    let pushed = run(&alpha, &["clone", "local", "beta", "web1", "-n", "pushed", "-o", "json"]);
    assert!(pushed.status.success(), "{}{}", stdout(&pushed), stderr(&pushed));
    let result = json(&pushed);
    assert_eq!((&result["success"], &result["new_vm_name"]), (&Value::Bool(true), &Value::from("pushed")));
    assert_eq!(result["way"], "full");
    assert_eq!(result["consistency"], "stopped");
    assert_copied(&alpha, &beta, "pushed");

    let pulled = run(&beta, &["clone", "alpha", "local", "web1", "-n", "pulled"]);
    assert!(pulled.status.success(), "{}{}", stdout(&pulled), stderr(&pulled));
    assert!(stdout(&pulled).contains("pulled"), "{}", stdout(&pulled));
    assert_copied(&alpha, &beta, "pulled");
    [&alpha, &beta].into_iter().for_each(assert_clean);
}

#[test]
fn a_dry_run_shows_the_plan_and_touches_nothing() {
    if !available("a_dry_run_shows_the_plan_and_touches_nothing") {
        return;
    }
    let (_lab, alpha, beta) = two_hosts(8 * MIB);
    let before = beta.shell(&format!("ls -la {IMAGES}; virsh list --all")).unwrap();

    let text = run(&alpha, &["clone", "local", "beta", "web1", "--dry-run"]);
    assert!(text.status.success(), "{}", stderr(&text));
    assert!(stdout(&text).contains("web1_clone-vda.qcow2"), "{}", stdout(&text));
    let plan = json(&run(&alpha, &["clone", "local", "beta", "web1", "--dry-run", "-o", "json"]));
    assert!(plan["checks"].as_array().is_some_and(|checks| !checks.is_empty()));
    assert!(plan["target_xml"].as_str().is_some_and(|xml| xml.contains("web1_clone")));
    assert!(plan["bytes_total"].as_u64().is_some_and(|bytes| bytes > 0));

    assert_eq!(beta.shell(&format!("ls -la {IMAGES}; virsh list --all")).unwrap(), before);
    assert_clean(&beta);
}

#[test]
fn a_host_that_cannot_be_reached_does_not_hide_the_others() {
    if !available("a_host_that_cannot_be_reached_does_not_hide_the_others") {
        return;
    }
    let (_lab, alpha, _beta) = two_hosts(MIB);
    let listed = run(&alpha, &["list", "local", "beta", "nowhere.invalid", "-o", "json"]);
    let hosts = json(&listed);
    assert_eq!(hosts["local"][0]["name"], "web1");
    assert_eq!(hosts["local"][0]["state"], "stopped");
    assert_eq!(hosts["local"][0]["disks"][0]["size"], 4 * MIB);
    assert!(hosts["beta"].as_array().is_some_and(Vec::is_empty), "{hosts}");
    assert_eq!(listed.status.code(), Some(69));
    assert!(stderr(&listed).contains("nowhere.invalid"), "{}", stderr(&listed));
}

#[test]
fn an_interrupt_undoes_everything_and_exits_130() {
    if !available("an_interrupt_undoes_everything_and_exits_130") {
        return;
    }
    let (lab, alpha, beta) = two_hosts(200 * MIB);
    lab.shape(&beta, "100mbit").unwrap();
    for signal in ["INT", "TERM"] {
        let child = alpha
            .command("kvm-clone")
            .args(["clone", "local", "beta", "web1", "-o", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until(|| !beta.shell(&format!("ls -A {IMAGES} | grep .staging || true")).unwrap().is_empty());
        alpha.exec(&["pkill", &format!("-{signal}"), "-x", "kvm-clone"]).unwrap();
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(130), "{}", stderr(&ended));
        let said: Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(said["error"]["code"], 1008);
        assert_clean(&beta);
        let names = beta.exec(&["virsh", "list", "--all", "--name"]).unwrap();
        assert_eq!(names.trim(), "");
    }
}

#[test]
fn doctor_finds_a_good_host_good_and_names_what_is_missing() {
    if !available("doctor_finds_a_good_host_good_and_names_what_is_missing") {
        return;
    }
    let lab = Lab::new().unwrap();
    let specs = vec![HostSpec::named("alpha"), HostSpec::named("bare").without(&["qemu-img"])];
    let hosts = lab.hosts(specs).unwrap();
    for host in &hosts {
        host.install_file(&program(), "/usr/local/bin/kvm-clone", 0o755).unwrap();
        host.install_file(&agent(), "/usr/local/libexec/kvm-clone-agent", 0o755).unwrap();
    }
    let good = run(&hosts[0], &["doctor", "local"]);
    assert!(good.status.success(), "{}{}", stdout(&good), stderr(&good));
    let bad = run(&hosts[0], &["doctor", "bare"]);
    assert!(!bad.status.success());
    assert!(stdout(&bad).contains("qemu-img"), "{}", stdout(&bad));
    assert!(stdout(&bad).contains("qemu-utils"), "the mend is named: {}", stdout(&bad));
}

fn wait_until(condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < end, "it did not happen in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_agent_lies_where_the_command_looks() {
    assert!(Path::new(&agent()).exists(), "build it first: cargo build -p kvm-clone-agent");
}
