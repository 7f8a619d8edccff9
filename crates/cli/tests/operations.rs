//! Operations seen and stopped from another terminal, between real hosts.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod hosts;

use std::process::{Child, Output, Stdio};

use hosts::{MIB, assert_clean, json, run, stderr, stdout, two_hosts, wait_until};
use kvm_clone_lab::{Host, Lab, available};
use serde_json::Value;

/// A clone that takes a while, in a terminal of its own, and what a second one is told of it.
struct Running {
    _lab: Lab,
    alpha: Host,
    beta: Host,
    child: Child,
    id: String,
}

impl Running {
    fn begin(bytes: u64) -> Self {
        Self::begin_with(bytes, &[])
    }

    fn begin_with(bytes: u64, environment: &[(&str, &str)]) -> Self {
        let (lab, alpha, beta) = two_hosts(bytes);
        lab.shape(&beta, "100mbit").unwrap();
        let child = alpha
            .command("kvm-clone")
            .envs(environment.iter().copied())
            .args(["clone", "local", "beta", "web1", "-o", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let copying = || {
            let all = json(&run(&alpha, &["status", "--active", "-o", "json"]));
            all.as_array().unwrap().iter().find(|one| one["progress"]["bytes_transferred"] != 0).cloned()
        };
        wait_until(|| copying().is_some());
        let id = copying().expect("it ended too soon")["operation_id"].as_str().unwrap().to_owned();
        Self { _lab: lab, alpha, beta, child, id }
    }

    /// The one operation, as `status` tells it.
    fn status(&self) -> Value {
        json(&run(&self.alpha, &["status", &self.id, "-o", "json"]))
    }

    fn ended(self) -> (Output, Host, Host, Lab) {
        (self.child.wait_with_output().unwrap(), self.alpha, self.beta, self._lab)
    }

    /// What is left beside the journal.
    fn beside_the_journal(alpha: &Host) -> String {
        alpha.shell("ls -A /var/lib/kvm-clone/journal.db.running").unwrap()
    }
}

#[test]
fn a_clone_is_seen_and_cancelled_from_another_terminal() {
    if !available("a_clone_is_seen_and_cancelled_from_another_terminal") {
        return;
    }
    let running = Running::begin(200 * MIB);
    let seen = running.status();
    assert_eq!((&seen["status"], &seen["operation_type"]), (&"running".into(), &"clone".into()), "{seen}");
    assert_eq!(seen["progress"]["phase"], "copy", "{seen}");
    assert!(seen["progress"]["total_bytes"].as_u64().is_some_and(|total| total > 100 * MIB), "{seen}");
    let percent = seen["progress"]["progress_percent"].as_f64().unwrap();
    assert!(percent > 0.0 && percent < 100.0, "{seen}");
    assert!(seen["started"].is_string() && seen["completed"].is_null() && seen["result"].is_null(), "{seen}");
    let table = stdout(&run(&running.alpha, &["status"]));
    assert!(table.contains("web1 on") && table.contains("running"), "{table}");

    let end_of_id = &running.id[24..];
    let cancelled = run(&running.alpha, &["cancel", end_of_id, "-o", "json"]);
    assert!(cancelled.status.success(), "{}{}", stdout(&cancelled), stderr(&cancelled));
    assert_eq!(json(&cancelled)["status"], "cancelled");
    let now = running.status();
    assert_eq!((&now["status"], &now["result"]["error"]["code"]), (&"cancelled".into(), &1008.into()), "{now}");
    assert!(now["completed"].is_string(), "{now}");

    let again = run(&running.alpha, &["cancel", &running.id, "-o", "json"]);
    assert_eq!((again.status.code(), &json(&again)["error"]["code"]), (Some(77), &1014.into()));
    let (ended, alpha, beta, _lab) = running.ended();
    assert_eq!((ended.status.code(), &json(&ended)["error"]["code"]), (Some(130), &1008.into()));
    [&alpha, &beta].into_iter().for_each(assert_clean);
    assert_eq!(Running::beside_the_journal(&alpha), "");
    assert_eq!(beta.exec(&["virsh", "list", "--all", "--name"]).unwrap().trim(), "");
}

#[test]
fn a_clone_that_waits_for_its_next_try_is_still_seen_left_alone_and_stopped() {
    if !available("a_clone_that_waits_for_its_next_try") {
        return;
    }
    let long = [("KVM_CLONE_RETRY_BASE_DELAY", "600"), ("KVM_CLONE_RETRY_MAX_DELAY", "600")];
    let running = Running::begin_with(200 * MIB, &long);
    kvm_clone_lab::fault::kill(&running.beta, "kvm-clone-agent").unwrap();
    // What was told of the try is gone when it has ended.
    wait_until(|| running.status()["progress"]["bytes_transferred"] == 0);
    let waiting = running.status();
    assert_eq!((&waiting["status"], &waiting["result"]), (&"running".into(), &Value::Null), "{waiting}");
    let left_alone = json(&run(&running.alpha, &["recover", "beta", "-o", "json"]));
    assert_eq!(left_alone["beta"][0]["action"], "in_progress", "{left_alone}");

    let cancelled = run(&running.alpha, &["cancel", &running.id, "-o", "json"]);
    let (ended, alpha, beta, _lab) = running.ended();
    assert_eq!((ended.status.code(), &json(&ended)["error"]["code"]), (Some(130), &1008.into()), "{}", stderr(&ended));
    assert!(cancelled.status.success(), "{}{}", stdout(&cancelled), stderr(&cancelled));
    assert_eq!(json(&cancelled)["status"], "cancelled");
    [&alpha, &beta].into_iter().for_each(assert_clean);
    assert_eq!(Running::beside_the_journal(&alpha), "");
}

#[test]
fn an_operation_whose_controller_was_killed_is_interrupted_until_it_is_recovered() {
    if !available("an_operation_whose_controller_was_killed_is_interrupted_until_it_is_recovered") {
        return;
    }
    let running = Running::begin(200 * MIB);
    let follower = follow(&running);
    running.alpha.exec(&["pkill", "-KILL", "-x", "kvm-clone", "--oldest"]).unwrap();
    let followed = follower.wait_with_output().unwrap();
    assert_eq!(followed.status.code(), Some(20), "{}{}", stdout(&followed), stderr(&followed));
    let dead = running.status();
    assert_eq!(dead["status"], "interrupted", "{dead}");
    assert!(dead["progress"]["bytes_transferred"].as_u64().is_some_and(|bytes| bytes > 0), "{dead}");
    let active = json(&run(&running.alpha, &["status", "--active", "-o", "json"]));
    assert_eq!(active, Value::Array(vec![]));
    let refused = run(&running.alpha, &["cancel", &running.id, "-o", "json"]);
    assert_eq!((refused.status.code(), &json(&refused)["error"]["code"]), (Some(20), &1015.into()));
    assert!(stdout(&refused).contains("kvm-clone recover beta"), "{}", stdout(&refused));

    // The agents of the dead controller hold the locks until they have noticed.
    let recover = || json(&run(&running.alpha, &["recover", "beta", "-o", "json"]))["beta"][0]["action"].clone();
    wait_until(|| recover() != "in_progress");
    let now = running.status();
    assert_eq!((&now["status"], &now["result"]["recovered"]), (&"failed".into(), &true.into()), "{now}");
    assert_eq!(Running::beside_the_journal(&running.alpha), "");
    assert_clean(&running.beta);
    assert_eq!(run(&running.alpha, &["status", &running.id, "--follow"]).status.code(), Some(74));
}

#[test]
fn following_a_clone_tells_each_change_and_ends_with_it() {
    if !available("following_a_clone_tells_each_change_and_ends_with_it") {
        return;
    }
    let running = Running::begin(48 * MIB);
    let followed = follow(&running).wait_with_output().unwrap();
    assert!(followed.status.success(), "{}{}", stdout(&followed), stderr(&followed));
    let told: Vec<Value> = stdout(&followed).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "{told:?}");
    let (last, before) = told.split_last().unwrap();
    assert!(!before.is_empty() && before.iter().all(|one| one["status"] == "running"), "{told:?}");
    assert_eq!((&last["status"], &last["result"]["way"]), (&"completed".into(), &"full".into()), "{last}");
    assert_eq!(last["progress"]["progress_percent"], 100.0);

    let too_late = run(&running.alpha, &["cancel", &running.id, "-o", "json"]);
    assert_eq!(
        (too_late.status.code(), &json(&too_late)["error"]["context"]["status"]),
        (Some(77), &"completed".into())
    );
    let text = stdout(&run(&running.alpha, &["status", &running.id]));
    assert!(text.contains("completed") && text.contains("the machine is new"), "{text}");
    let none = run(&running.alpha, &["status", "--active", "-f"]);
    assert_eq!((none.status.code(), stdout(&none)), (Some(0), String::new()));
    let (ended, alpha, _beta, _lab) = running.ended();
    assert!(ended.status.success(), "{}", stderr(&ended));
    assert_eq!(Running::beside_the_journal(&alpha), "");
}

/// `status ID --follow` that has told of the operation at least once.
fn follow(running: &Running) -> Child {
    let told = "/tmp/followed";
    let script = format!("kvm-clone status {} -f -o json | tee {told}; exit ${{PIPESTATUS[0]}}", running.id);
    let child = running
        .alpha
        .command("bash")
        .args(["-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until(|| running.alpha.shell(&format!("test -s {told} && echo told || true")).unwrap().contains("told"));
    child
}
