//! Snapshots: those inside images, and what libvirt knows of them.
//!
//! A copy holds the present state alone. With `--keep-snapshots` an image that has snapshots inside is carried as the file
//! that it is; what libvirt knows of them stays with the source, as the names of another machine's past.

use super::check::Checks;
use super::{Facts, WholeFile};
use crate::error::Error;
use crate::inventory::{ImageFacts, ImageFormat, MachineState};
use crate::name::DiskTarget;
use crate::quote::quoted;

pub(super) fn check(facts: &Facts<'_>, checks: &mut Checks) {
    if facts.request.keep_snapshots { check_kept(facts, checks) } else { check_left(facts, checks) }
}

fn check_left(facts: &Facts<'_>, checks: &mut Checks) {
    let named = facts.source.snapshots.join(", ");
    if !named.is_empty() {
        checks.warn("snapshots", format!("snapshots stay with the source: {named}"), None);
        return;
    }
    for (target, inside) in with_snapshots(facts) {
        let help = "--keep-snapshots brings those of a stopped machine along";
        let message = format!("{inside} snapshot(s) inside disk {target} stay with the source");
        checks.warn("snapshots", message, Some(help));
    }
}

fn check_kept(facts: &Facts<'_>, checks: &mut Checks) {
    if facts.source.state != MachineState::Stopped {
        let name = &facts.source.name;
        let error =
            Error::unsupported(format!("machine {name} runs; images keep their snapshots only while it is stopped"))
                .with("vm", name)
                .with("host", &facts.source.host_name);
        let help = format!("Shut it down (virsh shutdown {word}), or leave --keep-snapshots out", word = quoted(name));
        return checks.fail("snapshots", error.help(help));
    }
    let disks = with_snapshots(facts);
    let failures: Vec<Error> = disks
        .iter()
        .filter_map(|(target, _)| refuse(facts.source.images.get(*target)?).map(|error| error.with("disk", target)))
        .collect();
    let list: Vec<String> = disks.iter().map(|(target, inside)| format!("{target} ({inside})")).collect();
    let list =
        if list.is_empty() { "no disk has any inside".to_owned() } else { format!("kept inside {}", list.join(", ")) };
    checks.all("snapshots", failures, list);
    for (target, _) in disks.iter().filter(|(target, _)| has_bitmaps(facts, target)) {
        checks.warnings.push(format!("bitmaps of backup programs inside disk {target} do not come along"));
    }
    let named = facts.source.snapshots.join(", ");
    if !named.is_empty() {
        let message = format!("libvirt's records of snapshots stay with the source: {named}");
        checks.warn("snapshots", message, Some("qemu-img snapshot lists, applies and deletes those inside an image"));
    }
}

/// Disks with snapshots inside an image of theirs, and how many.
fn with_snapshots<'a>(facts: &'a Facts<'_>) -> Vec<(&'a DiskTarget, u32)> {
    let counted = |(target, chain): (&'a DiskTarget, &'a Vec<ImageFacts>)| {
        (target, chain.iter().map(|image| image.snapshots).sum::<u32>())
    };
    facts.source.images.iter().map(counted).filter(|(_, inside)| *inside > 0).collect()
}

fn has_bitmaps(facts: &Facts<'_>, target: &DiskTarget) -> bool {
    facts.source.images.get(target).is_some_and(|chain| chain.iter().any(|image| image.bitmaps))
}

/// Whether the image can be carried as it is: all of it in this one file.
fn refuse(chain: &[ImageFacts]) -> Option<Error> {
    let [image] = chain else {
        let top = chain.first()?;
        let why = format!("image {} stands on others, so it cannot be carried with its snapshots", top.path);
        return Some(Error::unsupported(why).with("path", &top.path).help(LEAVE));
    };
    let why = match () {
        () if image.format != ImageFormat::Qcow2 => format!("of format {}", image.format),
        () if image.data_file.is_some() => "one that keeps its data in another file".to_owned(),
        () if !image.regular_file => "on a device".to_owned(),
        () => return None,
    };
    let message = format!("image {} is {why}, so it cannot be carried with its snapshots", image.path);
    Some(Error::unsupported(message).with("path", &image.path).help(LEAVE))
}

const LEAVE: &str = "Leave --keep-snapshots out to copy the present state alone, or leave out the disk with --exclude";

/// How an image is carried whose snapshots are kept.
pub(super) fn whole(facts: &Facts<'_>, chain: &[ImageFacts]) -> Option<WholeFile> {
    match chain {
        [image] if facts.request.keep_snapshots && image.snapshots > 0 && refuse(chain).is_none() => {
            Some(WholeFile { length: image.file.length, snapshots: image.snapshots })
        }
        _ => None,
    }
}
