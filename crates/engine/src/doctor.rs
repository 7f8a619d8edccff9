//! Every precondition of a clone on a host, as one finding each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kvm_clone_core::inventory::Pool;
use kvm_clone_core::size::ByteSize;
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::facts::HostFacts;
use kvm_clone_core::{Error, Result};
use serde::Serialize;

use crate::client::HostSpec;
use crate::host::control::unexpected;
use crate::host::install::Privilege;
use crate::host::libvirt::Libvirt;
use crate::host::{Access, Host};

/// Clocks that differ by more make logs and points misleading.
const CLOCK_TOLERANCE_SECONDS: u64 = 60;
/// A pool with less than this share free is worth a word.
const TIGHT_PERCENT: u64 = 10;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but somebody should know.
    Warn,
    /// A clone would fail.
    Fail,
}

/// One precondition, looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub message: String,
    /// What mends it.
    pub mend: Vec<String>,
}

fn ok(name: &'static str, message: impl Into<String>) -> Finding {
    Finding { name, verdict: Verdict::Ok, message: message.into(), mend: Vec::new() }
}

fn warn(name: &'static str, message: impl Into<String>, mend: &str) -> Finding {
    Finding { name, verdict: Verdict::Warn, message: message.into(), mend: vec![mend.to_owned()] }
}

fn fail(name: &'static str, error: &Error) -> Finding {
    Finding { name, verdict: Verdict::Fail, message: error.message.clone(), mend: error.help.clone() }
}

/// Looks at everything; what cannot be looked at for a failure before it is left out.
pub(crate) async fn examine(spec: &HostSpec, access: &Arc<Access>) -> Vec<Finding> {
    let started = Instant::now();
    let host = match Host::connect(&spec.addr, spec.privilege, access).await {
        Ok(host) => host,
        Err(error) => return vec![fail("connection", &error)],
    };
    let mut findings =
        vec![ok("connection", format!("reached, agent started in {:.2} s", started.elapsed().as_secs_f64()))];
    findings.extend(facts(&host.facts, spec.privilege));
    match host.libvirt().await {
        Ok(libvirt) => findings.extend(libvirt_findings(&libvirt).await),
        Err(error) => findings.push(fail("libvirt", &error)),
    }
    match markers(&host).await {
        Ok(finding) => findings.push(finding),
        Err(error) => findings.push(fail("leftovers", &error)),
    }
    findings
}

fn facts(facts: &HostFacts, privilege: Privilege) -> Vec<Finding> {
    let rights = match privilege {
        Privilege::Root => ok("rights", "the agent runs as root"),
        Privilege::User => warn(
            "rights",
            "the agent runs as an ordinary user, with that user's own libvirt",
            "Log in as root, or set sudo = true for the host, to reach the system's machines",
        ),
    };
    let kvm = if facts.kvm {
        ok("kvm", "/dev/kvm can be opened")
    } else {
        warn("kvm", "/dev/kvm cannot be opened: guests are emulated", "Load kvm_intel or kvm_amd, enable VT-x/AMD-V")
    };
    let cipher = if facts.aes {
        ok("cipher", "the processors have AES instructions")
    } else {
        warn("cipher", "the processors have no AES instructions: SSH is slower", "Nothing to mend; expect less speed")
    };
    vec![
        rights,
        kvm,
        cipher,
        program(&facts.programs, "qemu-img"),
        program(&facts.programs, "virsh"),
        clock(facts.clock),
    ]
}

/// `qemu-img` checks each image that we make; `virsh` is needed only to end live jobs when the controller dies.
fn program(programs: &BTreeMap<String, String>, name: &'static str) -> Finding {
    match (programs.get(name), name) {
        (Some(path), _) => ok(name, path.clone()),
        (None, "qemu-img") => fail(
            name,
            &Error::insufficient("qemu-img is not installed").help("Install qemu-utils (Debian) or qemu-img (Fedora)"),
        ),
        (None, _) => {
            warn(name, format!("{name} is not installed"), "Install libvirt-clients: running machines need it")
        }
    }
}

fn clock(theirs: i64) -> Finding {
    let apart = jiff::Timestamp::now().as_second().abs_diff(theirs);
    if apart <= CLOCK_TOLERANCE_SECONDS {
        return ok("clock", "agrees with ours");
    }
    warn("clock", format!("differs from ours by {apart} s"), "Run chrony or systemd-timesyncd on both")
}

async fn libvirt_findings(libvirt: &Libvirt) -> Vec<Finding> {
    let mut findings = Vec::new();
    match libvirt.capabilities().await {
        Ok(found) => {
            let version =
                format!("{}.{}.{}", found.version / 1_000_000, found.version / 1000 % 1000, found.version % 1000);
            findings.push(ok("libvirt", format!("version {version}")));
            if found.domains.is_empty() {
                let error =
                    Error::insufficient("libvirt knows no emulator").help("Install qemu-system-x86 or qemu-kvm");
                findings.push(fail("emulator", &error));
            }
        }
        Err(error) => findings.push(fail("libvirt", &error)),
    }
    findings.push(pools(libvirt.pools().await));
    findings.push(match libvirt.networks().await {
        Ok(networks) if networks.iter().any(|network| network.active) => {
            let active: Vec<_> = networks.iter().filter(|network| network.active).map(|n| n.name.as_str()).collect();
            ok("networks", format!("active: {}", active.join(", ")))
        }
        Ok(_) => warn("networks", "no network is active", "virsh net-start default; virsh net-autostart default"),
        Err(error) => fail("networks", &error),
    });
    findings
}

fn pools(pools: Result<Vec<Pool>>) -> Finding {
    let usable: Vec<Pool> = match pools {
        Ok(pools) => pools.into_iter().filter(|pool| pool.active && pool.holds_files()).collect(),
        Err(error) => return fail("pools", &error),
    };
    if usable.is_empty() {
        let error = Error::insufficient("no active pool of files")
            .help("virsh pool-define-as default dir --target /var/lib/libvirt/images; virsh pool-start default");
        return fail("pools", &error);
    }
    let words: Vec<String> =
        usable.iter().map(|pool| format!("{} ({} free)", pool.name, ByteSize(pool.available))).collect();
    let tight = usable.iter().all(|pool| pool.available < pool.capacity / 100 * TIGHT_PERCENT);
    if tight {
        warn("pools", words.join(", "), "Make room: every pool is nearly full")
    } else {
        ok("pools", words.join(", "))
    }
}

async fn markers(host: &Host) -> Result<Finding> {
    match host.control.ask(Request::Markers).await? {
        Reply::Markers(markers) if markers.is_empty() => Ok(ok("leftovers", "none")),
        Reply::Markers(markers) => Ok(warn(
            "leftovers",
            format!("{} operations run or were interrupted here", markers.len()),
            "kvm-clone recover HOST finishes or undoes the interrupted ones",
        )),
        other => Err(unexpected(&other)),
    }
}
