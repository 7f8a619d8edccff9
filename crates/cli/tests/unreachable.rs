//! Hosts that refuse the connection: what is said, and with which status.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;

use common::{TestEnvironment, json};

/// An address on which nobody listens: a port that was ours a moment ago.
fn closed() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("127.0.0.1:{port}")
}

/// Ports and times differ from run to run.
fn settle(text: &str, host: &str) -> String {
    let port = host.rsplit(':').next().unwrap();
    text.replace(port, "[PORT]").replace('\r', "")
}

#[test]
fn a_clone_says_who_refused_and_what_to_do() {
    let (environment, host) = (TestEnvironment::new(), closed());
    let ended = environment.run(&["clone", &host, &host, "web1"]);
    assert_eq!((ended.status, ended.stdout.as_str()), (69, ""));
    insta::assert_snapshot!("clone", settle(&ended.stderr, &host));
}

#[test]
fn a_clone_says_it_as_json_and_tells_its_phases_beside() {
    let (environment, host) = (TestEnvironment::new(), closed());
    let ended = environment.run(&["clone", &host, &host, "web1", "-o", "json"]);
    assert_eq!(ended.status, 69);
    let document = json(&ended.stdout);
    let mut names: Vec<&String> = document.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(names, ["error", "operation_id", "timestamp"]);
    assert_eq!(document["error"]["code"], 1002);
    assert_eq!(document["error"]["kind"], "connection");
    assert_eq!(document["error"]["transient"], true);
    assert_eq!(document["error"]["context"]["host"], "127.0.0.1");
    let events: Vec<_> = ended.stderr.lines().map(json).collect();
    assert_eq!(events[0], serde_json::json!({"event": "phase", "phase": "connect"}));
    let quiet = environment.run(&["clone", &host, &host, "web1", "-o", "json", "-q"]);
    assert_eq!((quiet.status, quiet.stderr.as_str()), (69, ""));
}

#[test]
fn yaml_has_the_same_names() {
    let (environment, host) = (TestEnvironment::new(), closed());
    let ended = environment.run(&["clone", &host, &host, "web1", "-o", "yaml"]);
    assert!(ended.stdout.starts_with("error:\n  code: 1002\n  kind: connection\n"), "{}", ended.stdout);
}

#[test]
fn several_machines_fail_one_by_one() {
    let (environment, host) = (TestEnvironment::new(), closed());
    let ended = environment.run(&["clone", &host, &host, "web1", "web2", "-o", "json", "-q"]);
    assert_eq!(ended.status, 69);
    let names: Vec<_> =
        json(&ended.stdout).as_array().unwrap().iter().map(|one| one["error"]["context"]["vm"].clone()).collect();
    assert_eq!(names, ["web1", "web2"]);
}

#[test]
fn list_keeps_data_and_errors_apart() {
    let (environment, host) = (TestEnvironment::new(), closed());
    let ended = environment.run(&["list", &host, "-o", "json"]);
    assert_eq!((ended.status, json(&ended.stdout)), (69, serde_json::json!({})));
    assert_eq!(json(&ended.stderr)["error"]["code"], 1002);
    let text = environment.run(&["list", &host]);
    assert_eq!(text.status, 69);
    insta::assert_snapshot!("list", settle(&text.stderr, &host));
}

#[test]
fn doctor_takes_it_as_a_finding() {
    let (environment, host) = (TestEnvironment::new(), closed());
    let ended = environment.run(&["doctor", &host]);
    assert_eq!((ended.status, ended.stderr.as_str()), (69, ""));
    insta::assert_snapshot!("doctor", settle(&ended.stdout, &host));
    let document = json(&environment.run(&["doctor", &host, "-o", "json"]).stdout);
    assert_eq!(document[&host][0]["verdict"], "fail");
}

#[test]
fn recover_says_which_host() {
    let (environment, host) = (TestEnvironment::new(), closed());
    environment.write_config(&format!("[hosts.gamma]\naddress = \"{host}\"\n"));
    let ended = environment.run(&["recover", "gamma", "--dry-run"]);
    assert_eq!(ended.status, 69);
    assert!(ended.stderr.contains("refuses the connection"), "{}", ended.stderr);
}

#[test]
fn a_missing_agent_is_named_before_any_connection() {
    let (environment, host) = (TestEnvironment::new(), closed());
    std::fs::remove_file(environment.path("bin/kvm-clone-agent")).unwrap();
    let ended = environment.run(&["list", &host]);
    if std::path::Path::new("/usr/libexec/kvm-clone-agent").exists() {
        return;
    }
    assert_eq!(ended.status, 78);
    assert!(ended.stderr.contains("kvm-clone-agent is not installed"), "{}", ended.stderr);
}

#[test]
fn what_may_pass_is_tried_again_and_each_try_is_told() {
    let (environment, host) = (TestEnvironment::new(), closed());
    let retries = |arguments: &[&str]| {
        let mut command = environment.command(arguments);
        command.env("KVM_CLONE_RETRY_ATTEMPTS", "2").env("KVM_CLONE_RETRY_BASE_DELAY", "1");
        environment.ended(&command.output().unwrap())
    };
    let ended = retries(&["clone", &host, &host, "web1", "-o", "json"]);
    assert_eq!(ended.status, 69);
    assert_eq!(json(&ended.stdout)["error"]["context"]["attempts"], "2");
    let events: Vec<_> = ended.stderr.lines().map(json).filter(|event| event["event"] == "retry").collect();
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0]["attempt"], &events[0]["code"]), (&2.into(), &1002.into()), "{events:?}");
    let text = retries(&["clone", &host, &host, "web1"]);
    assert!(text.stderr.contains("trying again"), "{}", text.stderr);
    // A name that cannot be is no better the second time.
    let wrong = retries(&["clone", &host, &host, "web1", "--network", "lan"]);
    assert!(!wrong.stderr.contains("trying again"), "{}", wrong.stderr);
}
