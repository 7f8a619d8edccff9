//! What is wrong on the command line is refused before any connection: 1007, exit status 64.
#![allow(clippy::unwrap_used)]

mod common;

use common::{TestEnvironment, json};

const BAD: &[&[&str]] = &[
    &[],
    &["frobnicate"],
    &["clone"],
    &["clone", "alpha", "beta"],
    &["clone", "al pha", "beta", "web1"],
    &["clone", "alpha", "beta:0", "web1"],
    &["clone", "-oProxyCommand=x", "beta", "web1"],
    &["clone", "alpha", "beta", "web1", "--new-name", ".hidden"],
    &["clone", "alpha", "beta", "web1", "--new-name", "all"],
    &["clone", "alpha", "beta", "web1", "-n", ""],
    &["clone", "alpha", "beta", "web 1"],
    &["clone", "alpha", "beta", "web1", "web2", "-n", "web3"],
    &["clone", "alpha", "beta", "web1", "--parallel", "0"],
    &["clone", "alpha", "beta", "web1", "-p", "17"],
    &["clone", "alpha", "beta", "web1", "--timeout", "0"],
    &["clone", "alpha", "beta", "web1", "--timeout", "86401"],
    &["clone", "alpha", "beta", "web1", "--stall-timeout", "5m"],
    &["clone", "alpha", "beta", "web1", "--ssh-port", "65536"],
    &["clone", "alpha", "beta", "web1", "--network", "lan"],
    &["clone", "alpha", "beta", "web1", "--network", "lan=a/b"],
    &["clone", "alpha", "beta", "web1", "--network", "lan=a", "--network", "lan=b"],
    &["clone", "alpha", "beta", "web1", "--pool", "a/b"],
    &["clone", "alpha", "beta", "web1", "--disk-format", "vmdk"],
    &["clone", "alpha", "beta", "web1", "--keep-snapshots", "--disk-format", "qcow2"],
    &["clone", "alpha", "beta", "web1", "--keep-snapshots", "--disk-format", "raw"],
    &["clone", "alpha", "beta", "web1", "--verify=maybe"],
    &["clone", "alpha", "beta", "web1", "--verify", "--no-verify"],
    &["clone", "alpha", "beta", "web1", "--compress", "9"],
    &["sync", "alpha", "beta", "web1", "--block-size", "3K"],
    &["sync", "alpha", "beta", "web1", "--block-size", "5000"],
    &["sync", "alpha", "beta", "web1", "--block-size", "2K"],
    &["sync", "alpha", "beta", "web1", "--block-size", "2M"],
    &["verify", "beta"],
    &["verify", "beta", "web1", "--full"],
    &["verify", "beta", "web1", "--against"],
    &["verify", "beta", "web1", "--against", "al pha"],
    &["verify", "beta", "web1", "--against", "alpha", ""],
    &["verify", "beta", "web1", "--against", "alpha", "web1", "web2"],
    &["verify", "beta", "web1", "--checksum", "crc32"],
    &["list", "--status", "asleep"],
    &["list", "a;b"],
    &["list", "--format", "xml"],
    &["doctor"],
    &["config"],
    &["config", "frob"],
    &["completions", "tcl"],
    &["list", "--output", "xml"],
    &["list", "--log-level", "loud"],
    &["list", "-v", "-q"],
];

#[test]
fn bad_input_is_refused_with_1007_and_64() {
    let environment = TestEnvironment::new();
    for arguments in BAD {
        let text = environment.run(arguments);
        assert_eq!(text.status, 64, "{arguments:?}: {}", text.stderr);
        assert_eq!(text.stdout, "", "{arguments:?}");
        assert!(text.stderr.starts_with("error: "), "{arguments:?}: {}", text.stderr);
        assert!(text.stderr.contains("(1007 validation)"), "{arguments:?}: {}", text.stderr);
        assert!(text.stderr.contains("help: "), "{arguments:?}: {}", text.stderr);
        assert!(!environment.path("state").exists(), "{arguments:?} began a journal");
    }
}

#[test]
fn bad_input_is_refused_as_json() {
    let environment = TestEnvironment::new();
    for arguments in BAD.iter().filter(|arguments| !arguments.contains(&"--output")) {
        let ended = environment.run(&[&["-o", "json"], *arguments].concat());
        assert_eq!(ended.status, 64, "{arguments:?}");
        let document = json(&ended.stdout);
        assert_eq!(document["error"]["code"], 1007, "{arguments:?}");
        assert_eq!(document["error"]["kind"], "validation", "{arguments:?}");
        assert!(document["error"]["help"].as_array().is_some_and(|help| !help.is_empty()), "{arguments:?}");
        assert_eq!(ended.stderr, "", "{arguments:?}");
    }
}

#[test]
fn how_some_of_it_reads() {
    let environment = TestEnvironment::new();
    let shown: Vec<String> = [
        &["clone", "al pha", "beta", "web1"][..],
        &["clone", "alpha", "beta"],
        &["clone", "alpha", "beta", "web1", "-n", ".hidden"],
        &["clone", "alpha", "beta", "web1", "-p", "17"],
        &["sync", "alpha", "beta", "web1", "--block-size", "3K"],
        &["clone", "alpha", "beta", "web1", "--fast"],
        &["clone", "alpha", "beta", "web1", "web2", "-n", "web3"],
        &["clown"],
    ]
    .iter()
    .map(|arguments| format!("$ kvm-clone {}\n{}", arguments.join(" "), environment.run(arguments).stderr))
    .collect();
    insta::assert_snapshot!(shown.join("\n"));
}
