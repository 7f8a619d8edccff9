//! What the tests of hosts of several kinds share.

use kvm_clone_core::{Code, Error};
use kvm_clone_engine::{AgentProgram, Client, HostSpec as Reach};
use kvm_clone_lab::{Host, HostSpec};

use crate::common::{MIB, agent, assert_same_contents, clone, make_machine, spec};

pub fn named(name: &str) -> HostSpec {
    HostSpec::named(name)
}

pub async fn refusal(client: &Client, host: &Reach) -> Error {
    client.list(host).await.unwrap_err()
}

/// The error has this code, says these words and the host's name, and some help holds `help`.
pub fn assert_says(error: &Error, code: Code, host: &str, words: &str, help: &str) {
    assert_eq!(error.code, code, "{error:?}");
    assert!(error.message.contains(words) && error.message.contains(host), "{error:?}");
    assert!(error.context["host"].contains(host), "{error:?}");
    assert!(error.help.iter().any(|line| line.contains(help)), "{error:?}");
}

/// A small machine goes from one host to the other and arrives whole.
pub async fn assert_clones(client: &Client, [from, to]: [(&Host, &str); 2]) {
    let source = make_machine(from.0, "web1", 2 * MIB);
    to.0.provide_guest().unwrap();
    let listed = client.list(&spec(from.1)).await.unwrap();
    assert_eq!(listed.iter().map(|machine| machine.name.as_str()).collect::<Vec<_>>(), ["web1"]);
    assert!(listed[0].disks.iter().all(|disk| disk.size.is_some()), "{listed:?}");
    clone(client, from.1, to.1, "web1").await.unwrap();
    let disk = &source.disks()[0];
    let copy = "/var/lib/libvirt/images/web1_clone-vda.qcow2";
    assert_same_contents(&from.0.path(&disk.path), "qcow2", &to.0.path(copy), "qcow2");
}

/// Where the agent belongs on a host.
pub async fn installed() -> String {
    let digest = AgentProgram::load(&agent()).await.unwrap().digest().to_owned();
    format!("/var/lib/kvm-clone/agents/{digest}/kvm-clone-agent")
}
