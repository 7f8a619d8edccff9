//! In which state the source is, and whether it can be copied in that state.
//!
//! A machine that runs is copied at one point in time: libvirt begins a backup job in pull mode (formatbackup,
//! "Backup XML"), qemu keeps what the guest overwrites in scratch files, and the disks are read as they were when the
//! job began.

use std::collections::BTreeMap;

use super::Facts;
use super::check::Checks;
use super::request::{Consistency, Presence};
use crate::domain::escape;
use crate::error::{Code, Error};
use crate::inventory::{LiveMachine, MachineState, SourceMachine};
use crate::name::DiskTarget;
use crate::quote::quoted;
use crate::size::ByteSize;

/// From here on pull-mode backup needs no experimental switch: libvirt's knowledge base, "Efficient live full disk
/// backup"; as libvirt and qemu count versions.
const LIBVIRT_NEEDED: u64 = 7_002_000;
const QEMU_NEEDED: u64 = 4_002_000;
/// With less than this free for scratch files a job would be ended as soon as the guest writes.
const SCRATCH_NEEDED: u64 = 64 << 20;

/// What point in time a copy of this machine is.
pub(super) fn consistency(source: &SourceMachine) -> Consistency {
    if source.live.is_some() || source.managed_save { Consistency::Crash } else { Consistency::Stopped }
}

/// Whether the machine is still what it was when the plan was made, as far as its copy goes: the same process with the
/// same disks, or still no process.
#[must_use]
pub fn is_unchanged(before: &SourceMachine, now: &SourceMachine) -> bool {
    match (&before.live, &now.live) {
        (Some(before), Some(now)) => before.is_same_process(now),
        (None, None) => before.state == now.state,
        _ => false,
    }
}

pub(super) fn check(facts: &Facts<'_>, checks: &mut Checks) {
    let source = facts.source;
    let name = &source.name;
    let refuse = |what: &str, help: String| refuse(source, what, help);
    match (source.state, facts.request.presence) {
        (MachineState::Stopped, Presence::Live) => checks.fail(
            "state",
            refuse("is stopped; --live copies machines that run", "Leave --live out, or start it".to_owned()),
        ),
        (MachineState::Stopped, _) if source.managed_save => check_saved(facts, checks),
        (MachineState::Stopped, _) => checks.ok("state", format!("machine {name} is stopped")),
        (state, Presence::Offline) => checks.fail(
            "state",
            refuse(
                &format!("is {state}; --offline copies machines that are stopped"),
                format!("Shut it down: virsh shutdown {word}; or leave --offline out", word = quoted(name)),
            ),
        ),
        (MachineState::Crashed, _) => checks.fail(
            "state",
            refuse(
                "is crashed; its process is of no use",
                format!("End it: virsh destroy {word}", word = quoted(name)),
            ),
        ),
        (state, _) => check_live(facts, state, checks),
    }
}

/// Saved memory and disks are two halves of one machine: what the guest had not written to its disks is in the memory.
fn check_saved(facts: &Facts<'_>, checks: &mut Checks) {
    let name = &facts.source.name;
    if facts.request.discard_managed_save {
        let message = format!(
            "the saved memory of machine {name} stays with the source; the copy's disks are as a power cut would leave them"
        );
        return checks.warn("state", message, None);
    }
    let error = refuse(
        facts.source,
        "has saved memory, without which its disks are as a power cut would leave them",
        format!("Start it and shut it down: virsh start {word}; virsh shutdown {word}", word = quoted(name)),
    );
    checks.fail("state", error.help("Or say --discard-managed-save: the copy is made without the memory"));
}

fn refuse(source: &SourceMachine, what: &str, help: String) -> Error {
    Error::unsupported(format!("machine {} {what}", source.name))
        .with("vm", &source.name)
        .with("host", &source.host_name)
        .with("state", source.state)
        .help(help)
}

fn check_live(facts: &Facts<'_>, state: MachineState, checks: &mut Checks) {
    let source = facts.source;
    let name = &source.name;
    let Some(live) = &source.live else {
        let error = Error::conflict(format!("machine {name} stopped or started just now")).transient();
        return checks.fail("state", error.with("vm", name).help("Run the command again"));
    };
    let message = format!(
        "machine {name} is {state}: all its disks are copied as of one moment, as a power cut would leave them"
    );
    checks.ok("state", message);
    let failures: Vec<Error> = [
        too_old(source, live),
        no_virsh(source, live),
        other_job(source, live),
        other_disks(facts, live),
        no_scratch(source, live),
        transient_disks(facts),
    ]
    .into_iter()
    .flatten()
    .collect();
    let free = ByteSize(live.scratch_available);
    checks.all("live", failures, format!("libvirt can hold a point of it; {free} free for what the guest overwrites"));
    if !source.persistent {
        checks.warn("live", format!("machine {name} is transient; the copy is a lasting machine"), None);
    }
}

fn offline_way(name: &crate::name::SourceName) -> String {
    format!("Or shut it down and clone it stopped: virsh shutdown {word}", word = quoted(name))
}

fn too_old(source: &SourceMachine, live: &LiveMachine) -> Option<Error> {
    let old = live.libvirt_version < LIBVIRT_NEEDED || live.qemu_version < QEMU_NEEDED;
    (old || !live.backup).then(|| {
        let what = format!(
            "cannot be copied while it runs: libvirt {} and qemu {} on {} {}",
            dotted(live.libvirt_version),
            dotted(live.qemu_version),
            source.host_name,
            if old { "are too old" } else { "say that they cannot back it up" },
        );
        let needed = format!("libvirt {} and qemu {} can", dotted(LIBVIRT_NEEDED), dotted(QEMU_NEEDED));
        refuse(source, &what, format!("{needed}. {}", offline_way(&source.name)))
    })
}

/// libvirt counts 9.1.2 as 9001002.
fn dotted(version: u64) -> String {
    format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000)
}

fn no_virsh(source: &SourceMachine, live: &LiveMachine) -> Option<Error> {
    (!live.virsh).then(|| {
        let what =
            "cannot be copied while it runs: its host has no virsh, by which a job is ended whatever happens to us";
        refuse(source, what, format!("Install libvirt-clients on the host. {}", offline_way(&source.name)))
    })
}

fn other_job(source: &SourceMachine, live: &LiveMachine) -> Option<Error> {
    let job = live.job.as_ref()?;
    let name = &source.name;
    Some(
        Error::new(Code::Locked, format!("machine {name} is busy with somebody else's job: {job}"))
            .with("vm", name)
            .with("host", &source.host_name)
            .with("job", job)
            .help(format!(
                "Wait for its end (virsh domjobinfo {word}), or end it (virsh domjobabort {word})",
                word = quoted(name)
            ))
            .transient(),
    )
}

/// The definition that the copy gets must name the disks that the process has.
fn other_disks(facts: &Facts<'_>, live: &LiveMachine) -> Option<Error> {
    let name = &facts.source.name;
    let defined: BTreeMap<&DiskTarget, &str> =
        facts.domain.data_disks().map(|disk| (&disk.target, disk.source.as_deref().unwrap_or_default())).collect();
    let copied = |target: &&DiskTarget| !facts.request.reduction.disks.contains(*target);
    let running: BTreeMap<&DiskTarget, &str> =
        live.disks.iter().map(|(target, path)| (target, path.as_str())).filter(|(target, _)| copied(target)).collect();
    let differing: Vec<String> = defined
        .keys()
        .chain(running.keys())
        .filter(|target| defined.get(*target) != running.get(*target))
        .map(ToString::to_string)
        .collect();
    let differing: std::collections::BTreeSet<String> = differing.into_iter().collect();
    (!differing.is_empty()).then(|| {
        let list = differing.into_iter().collect::<Vec<_>>().join(", ");
        refuse(
            facts.source,
            &format!("runs with other disks than its definition has: {list}"),
            format!(
                "Bring both together (virsh attach-disk/detach-disk {word} … --config), or restart it",
                word = quoted(name)
            ),
        )
    })
}

/// The process of a transient disk writes to an image that libvirt throws away: neither the disk nor a point of it.
fn transient_disks(facts: &Facts<'_>) -> Option<Error> {
    let disk = facts.domain.data_disks().find(|disk| disk.transient)?;
    let what = format!("runs with the transient disk {}, which is copied only while it is stopped", disk.target);
    Some(refuse(facts.source, &what, offline_way(&facts.source.name)).with("disk", &disk.target))
}

fn no_scratch(source: &SourceMachine, live: &LiveMachine) -> Option<Error> {
    (live.scratch_available < SCRATCH_NEEDED).then(|| {
        let (free, needed) = (ByteSize(live.scratch_available), ByteSize(SCRATCH_NEEDED));
        Error::insufficient(format!(
            "{free} free on {} for what the guest overwrites while it is copied",
            source.host_name
        ))
        .with("host", &source.host_name)
        .with("free", live.scratch_available)
        .help(format!("Free at least {needed} where its disks lie. {}", offline_way(&source.name)))
    })
}

/// The job that holds a point of these disks: formatbackup, "Backup XML". Only the disks named are in it.
#[must_use]
pub fn backup_xml(socket: &str, scratch: &[(DiskTarget, String)]) -> String {
    let disks: String = scratch
        .iter()
        .map(|(target, file)| {
            let (target, file) = (escape(target.as_str()), escape(file));
            format!(
                "<disk name='{target}' backup='yes' type='file' exportname='{target}'><driver type='qcow2'/><scratch \
                 file='{file}'/></disk>"
            )
        })
        .collect();
    let socket = escape(socket);
    format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>{disks}</disks></domainbackup>"
    )
}
