//! The state of an emulated TPM. libvirt finds it by the machine's UUID, so the copy's can lie in one place only: that of a new
//! machine is free, in that of a replica the new state takes the place of the old one.

use uuid::Uuid;

use super::{DirectoryPlan, FileKind, FilePlan, Files, carried, taken};
use crate::domain::{Domain, EmulatedTpm, Identity, TpmState};
use crate::error::{Code, Error};
use crate::plan::check::Checks;
use crate::plan::{CloneRequest, Facts};
use crate::quote::quoted;

/// Where the state to be copied is at the source; nothing where none is asked for.
#[must_use]
pub fn tpm_files(request: &CloneRequest, domain: &Domain, all: &str, machine: Uuid) -> Vec<String> {
    let wanted = domain.tpm().filter(|_| request.tpm == TpmState::Copied);
    wanted.map_or_else(Vec::new, |tpm| tpm.state_files(all, machine).map(|(_, path)| path).to_vec())
}

/// Adds what becomes of the state to the files.
pub(super) fn place(facts: &Facts<'_>, uuid: Uuid, files: &mut Files, checks: &mut Checks) {
    let wants = facts.request.tpm == TpmState::Copied;
    let Some(tpm) = facts.domain.tpm() else {
        if wants {
            checks.ok("tpm", "the machine has no emulated TPM whose state could be copied");
        }
        return;
    };
    if let Some(secret) = unknown_secret(facts, &tpm) {
        checks.fail("tpm", secret);
    }
    let is_sync = facts.target.replica.is_some();
    if !wants {
        return match refuse_other_keys(facts, uuid) {
            _ if is_sync => checks.ok("tpm", "the replica's TPM keeps the state that it has"),
            Some(error) => checks.fail("tpm", error),
            None => warn_of_new_keys(checks),
        };
    }
    let taken = if is_sync { None } else { refuse_taken(facts, uuid) };
    let failures: Vec<Error> = [refuse_live(facts), taken].into_iter().flatten().collect();
    if failures.is_empty() {
        return carry(facts, &tpm, uuid, files, checks);
    }
    failures.into_iter().for_each(|error| checks.fail("tpm", error));
}

fn carry(facts: &Facts<'_>, tpm: &EmulatedTpm, uuid: Uuid, files: &mut Files, checks: &mut Checks) {
    let from = tpm.state_files(&facts.source.tpm_dir, facts.source.uuid);
    let to = tpm.state_files(&facts.target.tpm_dir, uuid);
    let is_sync = facts.target.replica.is_some();
    let (mut state, mut dropped) = (Vec::new(), Vec::new());
    for ((name, from), (_, to)) in from.into_iter().zip(to) {
        match facts.source.files.get(&from).map(Vec::as_slice) {
            None | Some([]) if is_sync && facts.target.paths_present.contains(&to) => dropped.push(to),
            None | Some([]) => {}
            Some([file, ..]) if file.regular_file => {
                state.push(FilePlan { renews: is_sync, ..carried(FileKind::Tpm, name, file, to) });
            }
            Some(_) => {
                let error = Error::unsupported(format!("{from}, state of the machine's TPM, is no plain file"));
                checks.fail("tpm", error.with("path", &from).help("Look at it, or say --tpm new"));
            }
        }
    }
    if state.is_empty() {
        let kept = if is_sync { "the replica's keeps what it has" } else { "libvirt makes it at the first start" };
        return checks.ok("tpm", format!("the TPM has no state yet; {kept}"));
    }
    let dir = tpm.state_dir(&facts.target.tpm_dir, uuid);
    let how = if is_sync { "becomes that of the replica, right after the definition, in" } else { "is copied to" };
    checks.ok("tpm", format!("the TPM's state {how} {dir}"));
    if facts.request.identity == Identity::New && !is_sync {
        let message =
            "the copy's TPM holds the keys of the source's: whoever trusts one of the two machines trusts both";
        checks.warn("tpm", message, None);
    }
    files.carried.extend(state);
    files.dropped_state = dropped;
    files.directories = directories(facts, &dir);
}

/// Those of the state's directory and the two above it that are missing.
fn directories(facts: &Facts<'_>, state: &str) -> Vec<DirectoryPlan> {
    let own = state.rsplit_once('/').map_or("", |(own, _)| own);
    let all = [(facts.target.tpm_dir.as_str(), false), (own, false), (state, true)];
    let missing = all.into_iter().filter(|(path, _)| !facts.target.paths_present.contains(*path));
    missing.map(|(path, private)| DirectoryPlan { path: path.to_owned(), private }).collect()
}

/// Every path whose being there matters, whatever UUID the copy will have.
pub(super) fn candidates(facts: &Facts<'_>) -> Vec<String> {
    let Some(tpm) = facts.domain.tpm() else { return Vec::new() };
    let replaced = facts.target.machines.iter().filter(|machine| machine.name.as_str() == facts.new_name.as_str());
    let uuids = replaced.map(|machine| machine.uuid).chain([facts.source.uuid, facts.fresh.uuid]);
    let own = uuids.map(|uuid| own_dir(facts, uuid));
    let replica = facts.target.replica.as_ref().map(|replica| replica.uuid);
    let state = replica.into_iter().flat_map(|uuid| {
        let files = tpm.state_files(&facts.target.tpm_dir, uuid).map(|(_, path)| path);
        files.into_iter().chain([tpm.state_dir(&facts.target.tpm_dir, uuid)])
    });
    own.chain([facts.target.tpm_dir.clone()]).chain(state).collect()
}

/// The directory that belongs to one machine.
fn own_dir(facts: &Facts<'_>, uuid: Uuid) -> String {
    format!("{}/{uuid}", facts.target.tpm_dir)
}

/// The emulator writes its state whenever the guest uses the TPM, and keeps part of it in memory.
fn refuse_live(facts: &Facts<'_>) -> Option<Error> {
    let name = &facts.source.name;
    let otherwise = match facts.target.replica {
        Some(_) => "sync its disks alone with --disks-only, and leave the replica's definition and TPM as they are",
        None => "say --tpm new for an empty one",
    };
    facts.source.live.as_ref().map(|_| {
        Error::unsupported(format!("machine {name} runs; the state of its TPM can be copied only while it is stopped"))
            .with("vm", name)
            .with("device", "tpm")
            .help(format!("Shut it down: virsh shutdown {word}; or {otherwise}", word = quoted(name)))
    })
}

fn refuse_taken(facts: &Facts<'_>, uuid: Uuid) -> Option<Error> {
    let dir = own_dir(facts, uuid);
    let owner = facts.target.machines.iter().find(|machine| machine.uuid == uuid);
    let help = match owner {
        Some(machine) => format!("Delete machine {} with its TPM first: virsh undefine --tpm", machine.name),
        None => format!("It belongs to no machine that is there; move it away: {dir}"),
    };
    let owner = owner.map(|machine| format!(" and belongs to machine {}", machine.name)).unwrap_or_default();
    facts.target.paths_present.contains(&dir).then(|| taken(facts, &dir, &owner).help(help))
}

/// What lies where the copy's TPM will look would be its state: libvirt takes it without a word. It may be that of the
/// machine that is replaced, whose UUID the copy takes over.
fn refuse_other_keys(facts: &Facts<'_>, uuid: Uuid) -> Option<Error> {
    let dir = own_dir(facts, uuid);
    let owner = facts.target.machines.iter().find(|machine| machine.uuid == uuid);
    let (whose, help) = match owner {
        Some(machine) => (
            format!("machine {} has a TPM with a state, {dir}", machine.name),
            format!("Delete that machine with its TPM first: virsh undefine --tpm --nvram {}", quoted(&machine.name)),
        ),
        None => (format!("the target has a state of a TPM for its UUID, {dir}"), format!("Move {dir} away")),
    };
    let refuse = || {
        Error::new(Code::VmExists, format!("{whose}: the copy, which is to get an empty TPM, would take it over"))
            .with("path", &dir)
            .with("host", &facts.target.host_name)
            .help(help)
            .help("Or choose another name with --new-name")
    };
    facts.target.paths_present.contains(&dir).then(refuse)
}

fn warn_of_new_keys(checks: &mut Checks) {
    let message = "the copy gets a new, empty TPM: keys that the source sealed with its own (BitLocker, LUKS with TPM, \
                   SSH and VPN keys) do not open there";
    checks.warn("tpm", message, Some("Have recovery keys at hand, or copy the TPM's state with --tpm copy"));
}

/// libvirt cannot start the machine without the secret, whatever its TPM holds; its value is nobody else's to know.
fn unknown_secret(facts: &Facts<'_>, tpm: &EmulatedTpm) -> Option<Error> {
    let secret = tpm.secret.as_ref()?;
    let is_known = secret.parse().is_ok_and(|uuid: Uuid| facts.target.secrets.contains(&uuid));
    let refuse = || {
        Error::unsupported(format!("the machine's TPM is encrypted with the secret {secret}, which the target lacks"))
            .with("secret", secret)
            .with("host", &facts.target.host_name)
            .help("Define it there with the same UUID and value: virsh secret-define, virsh secret-set-value")
    };
    (!is_known).then(refuse)
}
