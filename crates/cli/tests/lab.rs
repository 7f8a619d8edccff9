//! The command as an administrator types it, on and between real hosts.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod hosts;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use hosts::{
    IMAGES, MIB, agent, assert_clean, assert_copied, json, program, run, stderr, stdout, two_hosts, wait_until,
};
use kvm_clone_lab::{Host, HostSpec, Lab, available};
use serde_json::Value;

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

/// A clone that has staged some mebibytes, over a slow network.
fn clone_midway(lab: &Lab, alpha: &Host, beta: &Host) -> std::process::Child {
    lab.shape(beta, "100mbit").unwrap();
    let child = alpha
        .command("kvm-clone")
        .env("KVM_CLONE_RETRY_BASE_DELAY", "1")
        .args(["clone", "local", "beta", "web1", "--route", "relay", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let staged = || {
        beta.shell(&format!("(du -ck {IMAGES}/.kvm-clone-*.staging 2>/dev/null || true) | tail -1 | cut -f1")).unwrap()
    };
    wait_until(|| staged().trim().parse().unwrap_or(0) > 8 << 10);
    child
}

#[test]
fn an_interrupted_clone_is_resumed_by_its_id() {
    if !available("an_interrupted_clone_is_resumed_by_its_id") {
        return;
    }
    let (lab, alpha, beta) = two_hosts(60 * MIB);
    let child = clone_midway(&lab, &alpha, &beta);
    alpha.exec(&["pkill", "-KILL", "-x", "kvm-clone"]).unwrap();
    drop(child.wait_with_output().unwrap());
    lab.unshape(&beta).unwrap();
    let marker = beta.shell("ls /var/lib/kvm-clone/operations").unwrap();
    let operation = marker.trim().trim_end_matches(".json");
    kvm_clone_lab::fault::wait_gone(&beta, "kvm-clone-agent", Duration::from_secs(60)).unwrap();
    kvm_clone_lab::fault::wait_gone(&alpha, "kvm-clone-agent", Duration::from_secs(60)).unwrap();

    let resumed = run(&alpha, &["resume", operation, "-o", "json"]);
    assert!(resumed.status.success(), "{}{}", stdout(&resumed), stderr(&resumed));
    let result = json(&resumed);
    assert_eq!((&result["operation_id"], &result["resumed"]), (&Value::from(operation), &Value::Bool(true)));
    let (kept, sent) = (result["bytes_kept"].as_u64().unwrap(), result["bytes_transferred"].as_u64().unwrap());
    assert!(kept > 6 * MIB && kept + sent < 64 * MIB, "{result}");
    assert_copied(&alpha, &beta, "web1_clone");
    [&alpha, &beta].into_iter().for_each(assert_clean);
    let again = run(&alpha, &["resume", operation]);
    assert_eq!(again.status.code(), Some(64), "{}", stderr(&again));
    assert!(stderr(&again).contains("is complete"), "{}", stderr(&again));
}

#[test]
fn a_clone_that_fails_in_passing_goes_on_by_itself() {
    if !available("a_clone_that_fails_in_passing_goes_on_by_itself") {
        return;
    }
    let (lab, alpha, beta) = two_hosts(60 * MIB);
    let child = clone_midway(&lab, &alpha, &beta);
    kvm_clone_lab::fault::kill(&beta, "kvm-clone-agent").unwrap();
    lab.unshape(&beta).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}{}", stdout(&ended), stderr(&ended));
    let result = json(&ended);
    assert_eq!(result["resumed"], true, "{result}");
    assert!(result["bytes_kept"].as_u64().unwrap() > 6 * MIB, "{result}");
    assert_copied(&alpha, &beta, "web1_clone");
    [&alpha, &beta].into_iter().for_each(assert_clean);
}

#[test]
fn what_differs_is_listed_and_the_exit_status_is_65() {
    if !available("what_differs_is_listed_and_the_exit_status_is_65") {
        return;
    }
    let (_lab, alpha, beta) = two_hosts(8 * MIB);
    assert!(run(&alpha, &["clone", "local", "beta", "web1"]).status.success());
    let good = run(&alpha, &["verify", "beta", "web1_clone", "--checksum", "md5"]);
    assert!(good.status.success(), "{}{}", stdout(&good), stderr(&good));
    assert!(stdout(&good).contains("vda: identical") && stdout(&good).contains("md5"), "{}", stdout(&good));

    let image = format!("{IMAGES}/web1_clone-vda.qcow2");
    beta.exec(&["qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 1", "-c", "write -P 9 17M 128k", &image]).unwrap();
    for against in [&[][..], &["--against", "local", "web1"], &["--against", "local", "web1", "--full"]] {
        let arguments = [&["verify", "beta", "web1_clone"], against].concat();
        let text = run(&alpha, &arguments);
        assert_eq!(text.status.code(), Some(65), "{}", stderr(&text));
        assert!(stdout(&text).contains("  offset 1048576  length 65536\n"), "{}", stdout(&text));
        assert!(stdout(&text).contains("  offset 17825792  length 131072\n"), "{}", stdout(&text));
        assert!(stderr(&text).contains("1012 verification"), "{}", stderr(&text));
        let told = run(&alpha, &[&arguments[..], &["-o", "json"]].concat());
        assert_eq!(told.status.code(), Some(65), "{}", stderr(&told));
        let found = json(&told);
        let ranges = serde_json::json!([
            {"offset": 1_048_576, "length": 65_536}, {"offset": 17_825_792, "length": 131_072}
        ]);
        assert_eq!((&found["success"], &found["disks"][0]["differences"]), (&Value::Bool(false), &ranges));
        assert_eq!((&found["error"]["code"], &found["host"]), (&Value::from(1012), &Value::from("beta")));
    }
    let same_name = json(&run(&alpha, &["verify", "local", "web1", "--against", "beta", "-o", "json"]));
    assert_eq!(same_name["error"]["code"], 1003, "{same_name}");
}

#[test]
fn an_interrupt_ends_a_verification_at_once() {
    if !available("an_interrupt_ends_a_verification_at_once") {
        return;
    }
    let (_lab, alpha, beta) = two_hosts(8 * MIB);
    assert!(run(&alpha, &["clone", "local", "beta", "web1", "--disk-format", "raw"]).status.success());
    let slow = beta.serve_file(&format!("{IMAGES}/web1_clone-vda.img"), 2 * MIB).unwrap();
    let mut child = alpha
        .command("kvm-clone")
        .args(["verify", "beta", "web1_clone", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut event = String::new();
    while !event.contains("\"compare\"") {
        event.clear();
        assert!(std::io::BufRead::read_line(&mut events, &mut event).unwrap() > 0, "it ended");
    }
    alpha.exec(&["pkill", "-INT", "-x", "kvm-clone"]).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", stdout(&ended));
    assert_eq!(json(&ended)["error"]["code"], 1008);
    kvm_clone_lab::fault::wait_gone(&beta, "kvm-clone-agent", Duration::from_secs(30)).unwrap();
    slow.end().unwrap();
    let good = run(&alpha, &["verify", "beta", "web1_clone"]);
    assert!(good.status.success(), "{}{}", stdout(&good), stderr(&good));
}

#[test]
fn a_sync_in_place_is_confirmed_and_says_what_is_at_stake() {
    if !kvm_clone_lab::available("a_sync_in_place_is_confirmed") {
        return;
    }
    let (_lab, alpha, _beta) = two_hosts(MIB);
    let cloned = run(&alpha, &["clone", "local", "beta", "web1", "-n", "standby", "--disk-format", "raw"]);
    assert_eq!(cloned.status.code(), Some(0), "{}", stderr(&cloned));
    alpha.exec(&["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", &format!("{IMAGES}/web1-vda.qcow2")]).unwrap();
    let sync = ["sync", "local", "beta", "web1", "--in-place"];
    let planned = run(&alpha, &[&sync[..], &["--dry-run"]].concat());
    assert!(stdout(&planned).contains("its old point is lost"), "{}", stdout(&planned));
    let unasked = run(&alpha, &sync);
    assert_eq!(unasked.status.code(), Some(64), "{}", stderr(&unasked));
    assert!(stderr(&unasked).contains("must be confirmed"), "{}", stderr(&unasked));
    for other in ["--full", "--safety-snapshot"] {
        assert_eq!(run(&alpha, &[&sync[..], &[other]].concat()).status.code(), Some(64), "{other}");
    }
    let done = run(&alpha, &[&sync[..], &["-y", "-o", "json"]].concat());
    assert_eq!(json(&done)["success"], true, "{}", stderr(&done));
    let listed = json(&run(&alpha, &["list", "beta", "-o", "json"]));
    assert_eq!(listed["beta"][0]["replica_of"]["incomplete"], false, "{listed}");
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

#[test]
fn the_agent_lies_where_the_command_looks() {
    assert!(Path::new(&agent()).exists(), "build it first: cargo build -p kvm-clone-agent");
}
