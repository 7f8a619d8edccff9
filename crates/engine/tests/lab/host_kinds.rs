//! The kinds of host that real life has: each works, or says what it lacks and the way out.

use std::time::Duration;

use crate::common::*;
use crate::reach::*;
use kvm_clone_core::Code;
use kvm_clone_core::domain::Identity;
use kvm_clone_core::plan::CloneRequest;
use kvm_clone_engine::{Client, CloneSettings, RoutePolicy, Verdict};
use kvm_clone_lab::{DiskSpec, Host, Lab, MachineSpec, Sudo, available, define_machine, fault};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn sshd_may_forbid_forwarding() {
    if !available("sshd_may_forbid_forwarding") {
        return;
    }
    let lab = Lab::new().unwrap();
    let hosts = lab.hosts(["alpha", "beta"].map(|name| named(name).disable_forwarding()).to_vec()).unwrap();
    assert_clones(&client(&lab).await, [(&hosts[0], "alpha"), (&hosts[1], "beta")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtqemud_socket_serves_for_everything() {
    if !available("a_virtqemud_socket_serves_for_everything") {
        return;
    }
    let lab = Lab::new().unwrap();
    let hosts = lab.hosts(vec![named("alpha").modular(), named("beta").modular()]).unwrap();
    // What a libvirtd that runs no more left behind does not hide it.
    hosts[0].shell("mkfifo /run/libvirt/libvirt-sock").unwrap();
    assert_clones(&client(&lab).await, [(&hosts[0], "alpha"), (&hosts[1], "beta")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_libvirt_says_so() {
    if !available("a_host_without_libvirt_says_so") {
        return;
    }
    let lab = Lab::new().unwrap();
    lab.host(named("alpha").no_libvirt()).unwrap();
    let client = client(&lab).await;
    let error = refusal(&client, &spec("alpha")).await;
    assert_says(&error, Code::Connection, "alpha", "there is no libvirt socket", "libvirt-daemon-system");
    let findings = client.doctor(&spec("alpha")).await;
    let libvirt = findings.iter().find(|finding| finding.name == "libvirt").unwrap();
    assert_eq!(libvirt.verdict, Verdict::Fail);
    assert_eq!(libvirt.mend, error.help);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_libvirt_says_so() {
    if !available("a_stopped_libvirt_says_so") {
        return;
    }
    let lab = Lab::new().unwrap();
    let alpha = lab.host(named("alpha")).unwrap();
    fault::kill(&alpha, "/usr/sbin/libvirtd").unwrap();
    let error = refusal(&client(&lab).await, &spec("alpha")).await;
    assert_says(&error, Code::Connection, "alpha", "/run/libvirt/libvirt-sock", "systemctl start libvirtd");
    assert!(error.transient);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_qemu_img_is_told_before_any_byte_moves() {
    if !available("a_missing_qemu_img_is_told_before_any_byte_moves") {
        return;
    }
    let lab = Lab::new().unwrap();
    let hosts = lab.hosts(vec![named("alpha"), named("beta").without(&["qemu-img"])]).unwrap();
    make_machine(&hosts[0], "web1", MIB);
    hosts[1].provide_guest().unwrap();
    let client = client(&lab).await;

    let findings = client.doctor(&spec("beta")).await;
    let finding = findings.iter().find(|finding| finding.name == "qemu-img").unwrap();
    assert_eq!(finding.verdict, Verdict::Fail);
    assert!(finding.mend[0].contains("qemu-utils"));

    let error = clone(&client, "alpha", "beta", "web1").await.unwrap_err();
    assert_says(&error, Code::InsufficientResources, "beta", "qemu-img is not installed", "qemu-utils");
    assert_nothing_left(&hosts[1]);
    assert!(machines(&hosts[1]).is_empty());

    // Raw disks alone need no qemu-img.
    define_machine(&hosts[0], MachineSpec::named("raw1").disk(DiskSpec::raw("vda", MIB))).unwrap();
    clone(&client, "alpha", "beta", "raw1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_architecture_is_refused() {
    if !available("another_architecture_is_refused") {
        return;
    }
    let lab = Lab::new().unwrap();
    let alpha = lab.host(named("alpha").uname("aarch64")).unwrap();
    let error = refusal(&client(&lab).await, &spec("alpha")).await;
    assert_says(&error, Code::Unsupported, "alpha", "aarch64", "works between");
    alpha.shell("test ! -e /var/lib/kvm-clone").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_not_ours_is_mended() {
    if !available("an_agent_that_is_not_ours_is_mended") {
        return;
    }
    let lab = Lab::new().unwrap();
    let alpha = lab.host(named("alpha")).unwrap();
    let (client, path) = (client(&lab).await, installed().await);
    let put = |text: &[u8], mode| {
        let file = lab.dir().join("agent");
        std::fs::write(&file, text).unwrap();
        alpha.install_file(&file, &path, mode).unwrap();
    };
    let ours = std::fs::read(agent()).unwrap();
    let other_build = [&ours[..], b"x"].concat();
    let garbage: [(&str, &[u8], u32); 6] = [
        ("another build", &other_build, 0o755),
        ("not executable", &ours, 0o644),
        ("cut off", &ours[..ours.len() / 3], 0o755),
        ("empty", b"", 0o755),
        ("a script that says something else", b"#!/bin/sh\nyes hello | head -c 200000\n", 0o755),
        ("no program", &[0x7f, 0, 1, 2, 0xff], 0o755),
    ];
    for (what, text, mode) in garbage {
        put(text, mode);
        client.list(&spec("alpha")).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(std::fs::read(alpha.path(&path)).unwrap() == ours, "{what} is replaced");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_may_print_a_banner() {
    if !available("a_shell_may_print_a_banner") {
        return;
    }
    let lab = Lab::new().unwrap();
    let text = "Welcome!\nkvm-clone:end=no\nAuthorised use only";
    let admin = |name| named(name).banner(text).user("admin", Sudo::Passwordless);
    let hosts = lab.hosts(vec![admin("alpha"), admin("beta")]).unwrap();
    assert_clones(&client(&lab).await, [(&hosts[0], "admin@alpha"), (&hosts[1], "beta")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_get_through_a_low_max_startups() {
    if !available("lanes_get_through_a_low_max_startups") {
        return;
    }
    let lab = Lab::new().unwrap();
    let alpha = lab.host(named("alpha").max_startups("1:100:1")).unwrap();
    // Enough for three lanes; quick to make. Within one host both ends of a lane connect to it at the same time.
    let image = "/var/lib/libvirt/images/big.img";
    alpha.shell(&format!("(yes kvm-clone || true) | head -c 640M > {image}")).unwrap();
    let disk = DiskSpec::raw("vda", 640 * MIB).at(image).existing();
    define_machine(&alpha, MachineSpec::named("big").disk(disk)).unwrap();
    let lanes = std::thread::available_parallelism().unwrap().get().min(3);
    let client = client(&lab).await;

    let (host, counting) = (alpha.clone(), CancellationToken::new());
    let stop = counting.clone();
    let counter = std::thread::spawn(move || connections_of_lanes(&host, 2 * lanes, &stop));
    let over_ssh = CloneSettings { route: RoutePolicy::Relay, ..CloneSettings::default() };
    let cloned = clone_with(&client, "alpha", "alpha", "big", CloneRequest::default(), &over_ssh).await;
    counting.cancel();
    cloned.unwrap();
    let wanted = 1 + 2 * (lanes - 1);
    assert_eq!(counter.join().unwrap(), Some(wanted), "each end of a lane beyond the first has its own connection");
}

/// How many connections a host has at least while this many lane agents run; sshd's children look like more for a moment.
fn connections_of_lanes(host: &Host, agents: usize, stop: &CancellationToken) -> Option<usize> {
    let mut fewest = None;
    while !stop.is_cancelled() {
        let all = host.processes().unwrap();
        let count = |what: &str| all.iter().filter(|process| process.command.contains(what)).count();
        if count("kvm-clone-agent lane") == agents {
            let connections = count("sshd: root@notty");
            fewest = Some(fewest.map_or(connections, |fewest: usize| fewest.min(connections)));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    fewest
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_under_two_names_is_one_host() {
    if !available("one_host_under_two_names_is_one_host") {
        return;
    }
    let lab = Lab::new().unwrap();
    let alpha = lab.host(named("alpha")).unwrap();
    let source = make_machine(&alpha, "web1", 2 * MIB);
    let mut options = options(&lab);
    options.ssh.configs.push(aliases(&lab, &alpha, "other"));
    let client = Client::new(options).await.unwrap();
    let address = alpha.address().to_string();

    for to in ["other", address.as_str()] {
        let same = CloneRequest { new_name: Some("web1".parse().unwrap()), ..CloneRequest::default() };
        let replica = CloneRequest { identity: Identity::Kept, ..CloneRequest::default() };
        for request in [same, replica] {
            let refused = clone_with(&client, "alpha", to, "web1", request, &CloneSettings::default()).await;
            let error = refused.unwrap_err();
            assert_eq!(error.code, Code::Validation, "{error:?}");
            assert!(error.message.contains("the same machine web1 on the same host"), "{error:?}");
            assert!(error.help[0].contains("--new-name"), "{error:?}");
        }
    }
    clone(&client, "alpha", "other", "web1").await.unwrap();
    let copy = "/var/lib/libvirt/images/web1_clone-vda.qcow2";
    assert_same_contents(&alpha.path(&source.disks()[0].path), "qcow2", &alpha.path(copy), "qcow2");
    assert_eq!(machines(&alpha), ["web1", "web1_clone"]);
    drop(client);
    assert_nothing_left(&alpha);
}

/// An `ssh_config` in which the host has one more name, and its address works too.
fn aliases(lab: &Lab, host: &Host, alias: &str) -> std::path::PathBuf {
    let own = std::fs::read_to_string(lab.ssh_config()).unwrap();
    let path = lab.dir().join("aliases");
    let names = format!("Host {alias} {}", host.address());
    std::fs::write(&path, own.replace(&format!("Host {}", host.name()), &names)).unwrap();
    path
}
