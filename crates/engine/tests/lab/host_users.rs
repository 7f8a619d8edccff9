//! Users who are not root: sudo does for root, and without it there is the user's own libvirt.

use crate::common::*;
use crate::reach::*;
use kvm_clone_core::Code;
use kvm_clone_engine::{HostSpec as Reach, Privilege};
use kvm_clone_lab::{Lab, Sudo, available};

/// The host as the user who logs in, without root.
fn unprivileged(name: &str) -> Reach {
    Reach { privilege: Privilege::User, ..spec(name) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sudo_user_need_not_be_in_group_libvirt() {
    if !available("a_sudo_user_need_not_be_in_group_libvirt") {
        return;
    }
    let lab = Lab::new().unwrap();
    // Homes without programs: root must not run anything from there anyway.
    let spec = |name| named(name).user("admin", Sudo::Passwordless).noexec_homes();
    let hosts = lab.hosts(vec![spec("alpha"), spec("beta")]).unwrap();
    assert_clones(&client(&lab).await, [(&hosts[0], "admin@alpha"), (&hosts[1], "admin@beta")]).await;

    let agent = installed().await;
    let facts = hosts[0].exec(&["stat", "-c", "%U %G %a", &agent]).unwrap();
    assert_eq!(facts.trim(), "root root 755", "what root runs nobody else can change");
    let left = hosts[0].shell("ls -A /home/admin/.cache").unwrap();
    assert_eq!(left.trim(), "", "nothing is left of the upload");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sudo_that_wants_a_password_says_so() {
    if !available("a_sudo_that_wants_a_password_says_so") {
        return;
    }
    let lab = Lab::new().unwrap();
    let host = named("alpha").user("carol", Sudo::Password).user("dave", Sudo::None);
    lab.hosts(vec![host, named("beta").user("carol", Sudo::None).without(&["sudo"])]).unwrap();
    let client = client(&lab).await;

    for user in ["carol", "dave"] {
        let error = refusal(&client, &spec(&format!("{user}@alpha"))).await;
        let words = format!("sudo wants a password from {user}");
        assert_says(&error, Code::Connection, "alpha", &words, "NOPASSWD");
        assert!(error.help.iter().any(|line| line.contains("sudo = false")), "{error:?}");
    }
    let error = refusal(&client, &spec("carol@beta")).await;
    assert_says(&error, Code::Connection, "beta", "sudo is not installed", "Log in as root");
}

/// dave's own runtime directory, as a login with systemd makes it.
const RUNTIME: &str = "install -d -m 0700 -o dave -g dave /run/user/4201";

#[tokio::test(flavor = "multi_thread")]
async fn a_user_alone_has_a_libvirt_of_his_own_or_is_told() {
    if !available("a_user_alone_has_a_libvirt_of_his_own_or_is_told") {
        return;
    }
    let lab = Lab::new().unwrap();
    let alpha = lab.host(named("alpha").user("dave", Sudo::None)).unwrap();
    alpha.shell(RUNTIME).unwrap();
    let (client, dave) = (client(&lab).await, unprivileged("dave@alpha"));

    let none = refusal(&client, &dave).await;
    assert_says(&none, Code::Connection, "alpha", "own libvirt does not run", "virsh -c qemu:///session");

    alpha
        .shell("install -d -o dave /run/user/4201/libvirt; ln -s /run/libvirt/libvirt-sock /run/user/4201/libvirt/")
        .unwrap();
    let forbidden = refusal(&client, &dave).await;
    assert_says(&forbidden, Code::Connection, "alpha", "no permission", "root");
    assert_eq!(forbidden.context["path"], "/run/user/4201/libvirt/libvirt-sock");

    alpha.shell("rm /run/user/4201/libvirt/libvirt-sock").unwrap();
    alpha.shell("runuser -u dave -- env HOME=/home/dave XDG_RUNTIME_DIR=/run/user/4201 libvirtd -d -t 60").unwrap();
    assert!(client.list(&dave).await.unwrap().is_empty(), "the system's machines are not his");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_alone_with_a_noexec_home_runs_from_the_runtime_directory() {
    if !available("a_user_alone_with_a_noexec_home_runs_from_the_runtime_directory") {
        return;
    }
    let lab = Lab::new().unwrap();
    let alpha = lab.host(named("alpha").user("dave", Sudo::None).noexec_homes()).unwrap();
    let (client, dave) = (client(&lab).await, unprivileged("dave@alpha"));

    let nowhere = refusal(&client, &dave).await;
    assert_says(&nowhere, Code::Connection, "alpha", "does not run there", "noexec");

    alpha.shell(RUNTIME).unwrap();
    let arrived = refusal(&client, &dave).await;
    assert!(arrived.message.contains("own libvirt does not run"), "the agent itself ran: {arrived:?}");
    alpha.shell("test -x /run/user/4201/kvm-clone-agents/*/kvm-clone-agent").unwrap();
}
