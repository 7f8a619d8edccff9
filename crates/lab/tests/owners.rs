#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvm_clone_lab::{FsKind, HostSpec, Lab, available};

/// What there is of a lab, anywhere on the machine.
fn traces(id: &str) -> Vec<String> {
    let prefix = format!("kclab{id}");
    let dir = format!("/var/lib/kvm-clone-lab/{id}");
    let mut found = Vec::new();
    let belongs =
        |name: &str| name.strip_prefix(&prefix).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    for place in ["/run/netns", "/sys/class/net"] {
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        found.extend(names.filter(|name| belongs(name)));
    }
    if Path::new(&dir).exists() {
        found.push(dir.clone());
    }
    for (program, words) in [("losetup", &["--list"][..]), ("cat", &["/proc/self/mountinfo"]), ("ps", &["axww"])] {
        let output = Command::new(program).args(words).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        found.extend(text.lines().filter(|line| line.contains(&format!("{dir}/"))).map(str::to_owned));
    }
    found
}

fn wait_for_no_trace(id: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let left = traces(id);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_killed_owner_leaves_no_trace() {
    if !available("owners") {
        return;
    }
    let mut owner = Command::new(env!("CARGO_BIN_EXE_kvm-clone-lab"))
        .args(["up", "--wait", "--hosts", "alpha,beta"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let id = first.strip_prefix("lab ").unwrap().split(':').next().unwrap().to_owned();
    assert!(traces(&id).len() > 4);
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_for_no_trace(&id);
}

#[test]
fn a_dropped_lab_leaves_no_trace() {
    if !available("owners") {
        return;
    }
    let lab = Lab::new().unwrap();
    let id = lab.id();
    let host = lab.host(HostSpec::named("alpha")).unwrap();
    host.small_filesystem("/srv/small", FsKind::Ext4, 16 << 20).unwrap();
    host.block_device("disk", 1 << 20).unwrap();
    assert!(traces(&id).len() > 4);
    drop(lab);
    assert!(traces(&id).is_empty(), "{:#?}", traces(&id));
}

#[test]
fn a_panic_leaves_no_trace() {
    if !available("owners") {
        return;
    }
    let (send, receive) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let lab = Lab::new().unwrap();
        lab.host(HostSpec::named("alpha")).unwrap();
        send.send(lab.id()).unwrap();
        panic!("as a failing test does");
    });
    assert!(panicked.join().is_err());
    assert!(traces(&receive.recv().unwrap()).is_empty());
}

/// Takes a kept lab down also where the test fails half-way.
struct Down(String);

impl Drop for Down {
    fn drop(&mut self) {
        if let Ok(lab) = Lab::attach(Some(&self.0)) {
            let _ = lab.down();
        }
    }
}

#[test]
fn a_kept_lab_outlives_its_maker_until_it_is_taken_down() {
    if !available("owners") {
        return;
    }
    let run = |words: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_kvm-clone-lab")).args(words).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let told = run(&["up", "--hosts", "gamma"]);
    let id = told.strip_prefix("lab ").unwrap().split(':').next().unwrap();
    let _guard = Down(id.to_owned());
    // A new lab sweeps what is dead, and this one is not.
    drop(Lab::new().unwrap());
    assert_eq!(run(&["--lab", id, "exec", "gamma", "--", "hostname"]).trim(), "gamma");
    run(&["--lab", id, "reboot", "gamma"]);
    run(&["--lab", id, "cut", "gamma"]);
    run(&["--lab", id, "heal", "gamma"]);
    run(&["--lab", id, "shape", "gamma", "100mbit"]);
    assert!(run(&["list"]).contains(&format!("lab {id}:")));
    run(&["--lab", id, "down"]);
    assert!(traces(id).is_empty(), "{:#?}", traces(id));
}

#[test]
fn two_labs_stand_side_by_side() {
    if !available("owners") {
        return;
    }
    let labs = [Lab::new().unwrap(), Lab::new().unwrap()];
    let hosts: Vec<_> = labs.iter().map(|lab| lab.host(HostSpec::named("alpha")).unwrap()).collect();
    assert_ne!(hosts[0].address(), hosts[1].address());
    drop(labs);
}
