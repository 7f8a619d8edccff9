#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvm_clone_lab::{HostSpec, Lab, available};

fn reachable(lab: &Lab) -> bool {
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(lab.ssh_config()).args(["-oBatchMode=yes", "-oConnectTimeout=2", "alpha", "true"]);
    ssh.stdin(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

#[test]
fn a_cut_link_is_dead_and_heals() {
    if !available("network") {
        return;
    }
    let lab = Lab::new().unwrap();
    let host = lab.host(HostSpec::named("alpha")).unwrap();
    assert!(reachable(&lab));
    lab.cut(&host).unwrap();
    assert!(!reachable(&lab));
    lab.heal(&host).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !reachable(&lab) {
        assert!(Instant::now() < deadline, "the link did not heal");
    }
}

#[test]
fn a_shaped_link_is_slow_in_both_directions() {
    if !available("network") {
        return;
    }
    let lab = Lab::new().unwrap();
    let hosts = lab.hosts(vec![HostSpec::named("alpha"), HostSpec::named("beta")]).unwrap();
    lab.shape(&hosts[0], "16mbit").unwrap();
    for words in ["head -c 3M /dev/zero | ssh beta 'cat >/dev/null'", "ssh beta head -c 3M /dev/zero >/dev/null"] {
        let started = Instant::now();
        hosts[0].shell(words).unwrap();
        // 2 MB a second, after a burst of one.
        let took = started.elapsed();
        assert!(took > Duration::from_millis(700) && took < Duration::from_secs(5), "{words}: {took:?}");
    }
    lab.unshape(&hosts[0]).unwrap();
}
