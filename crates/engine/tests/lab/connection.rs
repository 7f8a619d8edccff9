//! Connections that cannot be made: each says what is wrong with which host, and the way out.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::common::*;
use kvm_clone_core::{Code, Error};
use kvm_clone_engine::{Client, ClientOptions};
use kvm_clone_lab::{Host, HostSpec, Lab, available, fault};

/// A lab with one plain host.
fn lab() -> (Lab, Host) {
    let lab = Lab::new().unwrap();
    let host = lab.host(HostSpec::named("alpha")).unwrap();
    (lab, host)
}

/// As the lab's options, but a silent host is given up soon.
fn impatient(lab: &Lab) -> ClientOptions {
    let mut options = options(lab);
    options.ssh.connect_timeout = Duration::from_secs(1);
    options
}

async fn refusal(options: ClientOptions, host: &str) -> Error {
    Client::new(options).await.unwrap().list(&spec(host)).await.unwrap_err()
}

/// The error is one of connecting, says these words and the host's name, and some help holds `help`.
fn assert_says(error: &Error, host: &str, words: &str, help: &str) {
    assert_eq!(error.code, Code::Connection, "{error:?}");
    assert!(error.message.contains(words) && error.message.contains(host), "{error:?}");
    assert_eq!(error.context["host"], host);
    assert!(error.help.iter().any(|line| line.contains(help)), "{error:?}");
}

/// The lab's options, with this `ssh_config` text before the lab's own: the first value wins.
fn with_config(lab: &Lab, text: &str) -> ClientOptions {
    let path = lab.dir().join("config-before");
    std::fs::write(&path, text).unwrap();
    let mut options = options(lab);
    options.ssh.configs.insert(0, path);
    options
}

/// A `known_hosts` file with this text, and options that use it alone.
fn knowing(lab: &Lab, text: &str) -> (PathBuf, ClientOptions) {
    let path = lab.dir().join("known_hosts");
    std::fs::write(&path, text).unwrap();
    let options = with_config(lab, &format!("UserKnownHostsFile {}\n", path.display()));
    (path, options)
}

fn fresh_key(dir: &Path) -> String {
    let path = dir.join("another_key");
    let status = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status().unwrap();
    assert!(status.success());
    std::fs::read_to_string(path.with_extension("pub")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_name_says_so() {
    let dir = tempfile::tempdir().unwrap();
    // A name that is kept for never being anybody's: RFC 6761.
    let options = ClientOptions::new(agent(), dir.path().join("journal.db"));
    let error = refusal(options, "nowhere.invalid").await;
    assert_says(&error, "nowhere.invalid", "cannot be resolved", "Check the spelling");
    assert!(!error.transient, "trying again would not help");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_says_so() {
    if !available("a_refused_connection_says_so") {
        return;
    }
    let (lab, _alpha) = lab();
    let error = refusal(options(&lab), "alpha:2").await;
    assert!(error.message.contains("alpha refuses the connection"), "{error:?}");
    assert_eq!((error.code, error.context["host"].as_str()), (Code::Connection, "alpha"));
    assert!(error.help[0].contains("--ssh-port") && error.transient, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_host_is_given_up_after_the_connect_timeout() {
    if !available("a_silent_host_is_given_up_after_the_connect_timeout") {
        return;
    }
    let (lab, alpha) = lab();
    lab.cut(&alpha).unwrap();
    let started = Instant::now();
    let cut = refusal(impatient(&lab), "alpha").await;
    assert_says(&cut, "alpha", "does not answer", "ssh.connect_timeout");
    assert!(cut.transient && started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());

    lab.heal(&alpha).unwrap();
    fault::freeze(&alpha, "sshd").unwrap();
    let started = Instant::now();
    let hung = refusal(impatient(&lab), "alpha").await;
    assert_says(&hung, "alpha", "does not answer", "ssh.connect_timeout");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_key_is_refused_unless_new_ones_are_accepted() {
    if !available("an_unknown_host_key_is_refused_unless_new_ones_are_accepted") {
        return;
    }
    let (lab, alpha) = lab();
    let (known, mut options) = knowing(&lab, "");
    let error = refusal(options.clone(), "alpha").await;
    assert_says(&error, "alpha", "host key of alpha is not known", "ssh alpha true");
    assert!(error.help.iter().any(|line| line.contains("ssh.host_key_policy")));

    options.ssh.accept_new_hosts = true;
    Client::new(options).await.unwrap().list(&spec("alpha")).await.unwrap();
    let written = std::fs::read_to_string(&known).unwrap();
    let key = alpha.host_key_public().unwrap();
    assert!(written.contains(key.split(' ').nth(1).unwrap()), "the accepted key is kept: {written:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_host_key_is_refused_even_where_new_ones_are_accepted() {
    if !available("a_changed_host_key_is_refused_even_where_new_ones_are_accepted") {
        return;
    }
    let (lab, alpha) = lab();
    let (_, mut options) = knowing(&lab, &format!("alpha,{} {}", alpha.address(), fresh_key(lab.dir())));
    for accept_new_hosts in [false, true] {
        options.ssh.accept_new_hosts = accept_new_hosts;
        let error = refusal(options.clone(), "alpha").await;
        assert_says(&error, "alpha", "host key of alpha has changed", "ssh-keygen -R alpha");
        assert!(!error.transient);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_says_so() {
    if !available("a_refused_key_says_so") {
        return;
    }
    let (lab, alpha) = lab();
    alpha.shell("rm /root/.ssh/authorized_keys").unwrap();
    let error = refusal(options(&lab), "alpha").await;
    assert_says(&error, "alpha", "refuses this user or key", "--ssh-key");
    assert!(error.context["ssh"].contains("publickey") && !error.transient, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_dropped_in_a_burst_are_tried_again() {
    if !available("connections_dropped_in_a_burst_are_tried_again") {
        return;
    }
    let lab = Lab::new().unwrap();
    lab.host(HostSpec::named("alpha").max_startups("1:100:1")).unwrap();
    let client = client(&lab).await;
    let alpha = spec("alpha");
    client.list(&alpha).await.unwrap();
    // As many as ever are opened to one host at once.
    let (a, b, c, d) = tokio::join!(client.list(&alpha), client.list(&alpha), client.list(&alpha), client.list(&alpha));
    for listed in [a, b, c, d] {
        listed.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drops_every_connection_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let taken = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            drop(connection);
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let options = ClientOptions::new(agent(), dir.path().join("journal.db"));
    let error = refusal(options, &format!("127.0.0.1:{port}")).await;
    assert_says(&error, "127.0.0.1", "closed the connection", "MaxStartups");
    assert!(error.transient, "{error:?}");
    assert_eq!(taken.load(Ordering::Relaxed), 5, "tries");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_last_use() {
    if !available("a_connection_ends_with_its_last_use") {
        return;
    }
    let (lab, alpha) = lab();
    client(&lab).await.list(&spec("alpha")).await.unwrap();
    fault::wait_gone(&alpha, "sshd: root@notty", Duration::from_secs(5)).unwrap();
}
