//! Whether the new name is free, or what `--force` takes away.

use super::check::Checks;
use super::request::Existing;
use super::{Facts, Replaced, replica};
use crate::error::{Code, Error};
use crate::inventory::{DiskFile, ExistingMachine, FileId, MachineState};
use crate::quote::quoted;

/// Looks for a machine of the new name, or at the replica; says what is replaced where the user asked for that and it can be.
pub(super) fn check(facts: &Facts<'_>, checks: &mut Checks) -> Option<Replaced> {
    if let (Existing::Update(update), Some(replica)) = (facts.request.existing, &facts.target.replica) {
        return replica::check(facts, replica, update, checks);
    }
    let name = facts.new_name;
    if facts.is_same_host() && name.as_str() == facts.source.name.as_str() {
        let error = Error::validation(format!("source and target are the same machine {name} on the same host"));
        checks.fail("name", error.with("vm", name).help("Give the new machine another name with --new-name"));
        return None;
    }
    let Some(existing) = facts.target.machines.iter().find(|machine| machine.name.as_str() == name.as_str()) else {
        checks.ok("name", format!("the name {name} is free"));
        return None;
    };
    if facts.request.existing == Existing::Refuse {
        let error = Error::new(Code::VmExists, format!("machine {name} exists already on {}", facts.target.host_name));
        let error = error.with("vm", name).with("host", &facts.target.host_name);
        checks.fail("name", error.help("Choose another name with --new-name, or replace it with --force"));
        return None;
    }
    let failures: Vec<Error> =
        [refuse_state(existing), refuse_saved(existing), refuse_uuid(facts, existing), refuse_shared(facts, existing)]
            .into_iter()
            .flatten()
            .collect();
    if !failures.is_empty() {
        checks.all("replace", failures, "");
        return None;
    }
    let files = match unseen(facts, existing) {
        None => {
            let files = removable_files(facts, existing);
            let message = format!("machine {name} is replaced, and {} of its files removed", files.len());
            checks.warn("replace", message, None);
            files
        }
        Some((other, image)) => {
            let message = format!(
                "machine {name} is replaced, and all its files stay: what {image} of machine {} stands on cannot be told",
                other.name
            );
            checks.warn("replace", message, Some("Remove them by hand if no machine stands on them"));
            Vec::new()
        }
    };
    Some(Replaced { name: existing.name.clone(), uuid: existing.uuid, files, lost_disks: Vec::new() })
}

/// Whether a path leads to a file of the machine that is replaced, through links or not.
pub(super) fn has(facts: &Facts<'_>, replaces: Option<&Replaced>, path: &str) -> bool {
    let replaced = facts.target.machines.iter().find(|machine| Some(machine.uuid) == replaces.map(|r| r.uuid));
    let seen = facts.target.files.get(path);
    replaced.is_some_and(|machine| {
        machine.uses.contains(path)
            || machine.disk_files.iter().any(|disk| disk.path == path)
            || seen.is_some_and(|seen| machine.uses_file(path, seen.file))
    })
}

/// An image of another machine that may stand on anything, so on a file of the replaced one too.
pub(super) fn unseen<'a>(
    facts: &'a Facts<'_>,
    existing: &ExistingMachine,
) -> Option<(&'a ExistingMachine, &'a String)> {
    let others = facts.target.machines.iter().filter(|machine| machine.uuid != existing.uuid);
    others.flat_map(|other| other.unseen.iter().map(move |image| (other, image))).next()
}

fn refuse_state(existing: &ExistingMachine) -> Option<Error> {
    let message = format!("machine {} is {}; only a stopped machine can be replaced", existing.name, existing.state);
    let error =
        Error::conflict(message).with("vm", &existing.name).help(format!("virsh shutdown {}", quoted(&existing.name)));
    (existing.state != MachineState::Stopped).then_some(error)
}

/// A saved memory image, snapshots and checkpoints would hang on a definition whose disks are gone.
fn refuse_saved(existing: &ExistingMachine) -> Option<Error> {
    let name = &existing.name;
    let (what, command) = match existing {
        ExistingMachine { managed_save: true, .. } => ("a saved memory image", "managedsave-remove"),
        ExistingMachine { snapshots: 1.., .. } => ("snapshots", "snapshot-delete"),
        ExistingMachine { checkpoints: 1.., .. } => ("checkpoints", "checkpoint-delete"),
        _ => return None,
    };
    let error = Error::unsupported(format!("machine {name} has {what} and cannot be replaced"));
    Some(error.with("vm", name).help(format!("Remove them first: virsh {command} {word}", word = quoted(name))))
}

/// The new machine takes over the old one's UUID, so a UUID that must be kept has to be the same.
fn refuse_uuid(facts: &Facts<'_>, existing: &ExistingMachine) -> Option<Error> {
    let clashes = facts.request.keeps_uuid() && existing.uuid != facts.source.uuid;
    let refuse = || {
        let message = format!(
            "machine {} has another UUID ({}) than the one to be kept ({})",
            existing.name, existing.uuid, facts.source.uuid
        );
        Error::new(Code::VmExists, message)
            .with("vm", &existing.name)
            .help(format!(
                "Take it away first, on {}: virsh undefine {}",
                facts.target.host_name,
                quoted(&existing.name)
            ))
            .help("Or clone without --preserve-uuid and --replica")
    };
    clashes.then(refuse)
}

/// A disk of the replaced machine that is an image of the source: removing it would destroy what is copied.
pub(super) fn refuse_shared(facts: &Facts<'_>, existing: &ExistingMachine) -> Option<Error> {
    let is_source = |disk: &&DiskFile| {
        facts.source.images.values().flatten().any(|image| {
            let same_path = facts.is_same_host() && image.path == disk.path;
            same_path || disk.file.is_some_and(|file| is_one_file(image.file, file, facts.is_same_host()))
        })
    };
    let shared = existing.disk_files.iter().find(is_source)?;
    let message = format!("{} of machine {} is an image of the source itself", shared.path, existing.name);
    let error = Error::conflict(message).with("path", &shared.path).with("vm", &existing.name);
    Some(error.help("Both hosts seem to share this storage; choose another name with --new-name"))
}

fn is_one_file(a: FileId, b: FileId, same_host: bool) -> bool {
    if same_host { a.is(&b) } else { a.is_shared_with(&b) }
}

/// Its disks that are used by no other machine, nor by the source. Files are compared, not only their paths: the other
/// machine may reach one through a link.
pub(super) fn removable_files(facts: &Facts<'_>, existing: &ExistingMachine) -> Vec<String> {
    let others = || facts.target.machines.iter().filter(|machine| machine.uuid != existing.uuid);
    let is_used = |path: &str, file: FileId| {
        let by_machine = others().any(|other| {
            other.uses_file(path, file)
                || other.disk_files.iter().any(|disk| disk.path == path || disk.file.is_some_and(|used| used.is(&file)))
        });
        let by_source = facts.is_same_host() && facts.source.images.values().flatten().any(|image| image.path == path);
        by_machine || by_source
    };
    let there = existing.disk_files.iter().filter_map(|disk| Some((&disk.path, disk.file?)));
    let mut files: Vec<String> =
        there.filter(|(path, file)| !is_used(path, *file)).map(|(path, _)| path.clone()).collect();
    files.sort_unstable();
    files.dedup();
    files
}
