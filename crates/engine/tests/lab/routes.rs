//! The ways that data can take between hosts, and the library's example.

use std::process::Command;

use crate::common::*;
use kvm_clone_core::plan::{CloneRequest, DiskFormat as Wanted};
use kvm_clone_core::wire::direct::Route;
use kvm_clone_engine::{Client, CloneSettings, RoutePolicy};
use kvm_clone_lab::{DiskSpec, Fill, HostSpec, Lab, MachineSpec, Sudo, available, define_machine};

const IMAGES: &str = "/var/lib/libvirt/images";

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_cloned_on_its_own_host_under_a_new_name() {
    if !available("a_machine_is_cloned_on_its_own_host_under_a_new_name") {
        return;
    }
    let lab = Lab::new().unwrap();
    let alpha = lab.host(HostSpec::named("alpha")).unwrap();
    let source = make_machine(&alpha, "web1", 16 * MIB);
    let client = client(&lab).await;

    let result = clone(&client, "alpha", "alpha", "web1").await.unwrap();

    assert_eq!(result.new_vm_name.as_str(), "web1_clone");
    let copy = alpha.path(&format!("{IMAGES}/web1_clone-vda.qcow2"));
    assert_same_contents(&alpha.path(&source.disks()[0].path), "qcow2", &copy, "qcow2");
    assert_eq!(machines(&alpha).len(), 2);
    drop(client);
    assert_nothing_left(&alpha);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_lanes_write_one_image_together() {
    let Some((lab, hosts)) = two_hosts("several_lanes_write_one_image_together") else { return };
    let [alpha, beta] = &hosts;
    let bytes = 600 * MIB;
    let disk = DiskSpec::raw("vda", 2048 * MIB).fill(Fill::Random { seed: 7, bytes });
    let machine = define_machine(alpha, MachineSpec::named("big").disk(disk)).unwrap();
    beta.provide_guest().unwrap();
    let client = client(&lab).await;

    let request = CloneRequest { disk_format: Wanted::Qcow2, ..CloneRequest::default() };
    let result = clone_with(&client, "alpha", "beta", "big", request, &Default::default()).await.unwrap();

    assert!(result.bytes_written >= bytes / 2, "{result:?}");
    let copy = beta.path(&format!("{IMAGES}/big_clone-vda.qcow2"));
    assert_same_contents(&alpha.path(&machine.disks()[0].path), "raw", &copy, "qcow2");
    let checked = Command::new("qemu-img").arg("check").arg(&copy).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

fn through(route: RoutePolicy) -> CloneSettings {
    CloneSettings { route, ..CloneSettings::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_go_from_host_to_host() {
    if !available("blocks_go_from_host_to_host") {
        return;
    }
    let lab = Lab::new().unwrap();
    let sudoer = HostSpec::named("beta").user("admin", Sudo::Passwordless);
    let hosts = lab.hosts(vec![HostSpec::named("alpha"), sudoer]).unwrap();
    let [alpha, beta] = hosts.as_slice() else { panic!("two hosts") };
    let source = make_machine(alpha, "web1", 24 * MIB);
    beta.provide_guest().unwrap();
    let client = client(&lab).await;
    // The controller is on a third machine: what its own interface carries tells the ways apart.
    for (index, (target, policy, expected)) in [
        ("beta", RoutePolicy::Auto, Route::Direct),
        ("beta", RoutePolicy::Direct, Route::Direct),
        ("beta", RoutePolicy::Relay, Route::Relay),
        // `sudo` gives the agent another environment than sshd did.
        ("admin@beta", RoutePolicy::Direct, Route::Direct),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("copy{index}");
        let request = CloneRequest { new_name: Some(name.parse().unwrap()), ..CloneRequest::default() };
        let result = clone_with(&client, "alpha", target, "web1", request, &through(policy)).await.unwrap();
        assert_eq!(result.route, expected, "{policy:?} to {target}");
        let copy = beta.path(&format!("{IMAGES}/{name}-vda.qcow2"));
        assert_same_contents(&alpha.path(&source.disks()[0].path), "qcow2", &copy, "qcow2");
    }
    // No lane agent listens any more.
    assert!(!beta.shell("ss -ltnp").unwrap().contains("kvm-clone-agent"));
    drop(client);
    assert_nothing_left(alpha);
    assert_nothing_left(beta);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_hosts_do_not_reach_each_other_the_copy_goes_over_ssh() {
    let Some((lab, hosts)) = two_hosts("where_the_hosts_do_not_reach_each_other_the_copy_goes_over_ssh") else {
        return;
    };
    let [alpha, beta] = &hosts;
    let source = make_machine(alpha, "web1", 24 * MIB);
    beta.provide_guest().unwrap();
    // beta as seen through a jump host: sshd was reached on its loopback address, where alpha reaches only itself.
    let config = lab.dir().join("jump");
    let known = lab.ssh_config().with_file_name("known_hosts");
    let key = lab.ssh_config().with_file_name("id_ed25519");
    let entry = format!(
        "Include {}\nHost gamma\n  HostName 127.0.0.1\n  ProxyJump beta\n  HostKeyAlias beta\n  User root\n  IdentityFile {}\n  \
         UserKnownHostsFile {}\n",
        lab.ssh_config().display(),
        key.display(),
        known.display()
    );
    std::fs::write(&config, entry).unwrap();
    let mut options = options(&lab);
    options.ssh.configs = vec![config];
    let client = Client::new(options).await.unwrap();

    let direct = through(RoutePolicy::Direct);
    let error = clone_with(&client, "alpha", "gamma", "web1", CloneRequest::default(), &direct).await.unwrap_err();
    assert_eq!(number(&error), 1002, "{error:?}");
    assert!(error.message.contains("directly"), "{error:?}");
    assert!(machines(beta).is_empty());
    let auto = through(RoutePolicy::Auto);
    let result = clone_with(&client, "alpha", "gamma", "web1", CloneRequest::default(), &auto).await.unwrap();

    assert_eq!(result.route, Route::Relay);
    let copy = beta.path(&format!("{IMAGES}/web1_clone-vda.qcow2"));
    assert_same_contents(&alpha.path(&source.disks()[0].path), "qcow2", &copy, "qcow2");
    drop(client);
    assert_nothing_left(beta);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_the_library_clones_a_machine() {
    let Some((lab, hosts)) = two_hosts("the_example_of_the_library_clones_a_machine") else { return };
    let [alpha, beta] = &hosts;
    make_machine(alpha, "web1", 8 * MIB);
    beta.provide_guest().unwrap();
    let test = std::env::current_exe().unwrap();
    let example = test.parent().unwrap().parent().unwrap().join("examples/clone");

    let ran = Command::new(example)
        .arg(agent())
        .arg(lab.dir().join("journal.db"))
        .args(["alpha", "beta", "web1"])
        .arg(lab.ssh_config())
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    assert!(said.contains("web1_clone is on beta"), "{said}");
    assert_eq!(machines(beta), vec!["web1_clone"]);
}
