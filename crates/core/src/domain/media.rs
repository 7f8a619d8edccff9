//! Exchangeable media: CD-ROMs and floppies stay in where the target has the same path, and are copied by word only.

use std::collections::BTreeSet;

use super::disks::{self, DiskDevice, DiskElement, DiskKind};
use super::edit::Edits;
use super::refuse::Whereabouts;
use super::tree::Element;
use super::{Domain, Transform};

/// Drives whose images the target lacks, or must not share with the source.
pub(super) fn to_copy<'a>(
    domain: &'a Domain,
    paths_present: &BTreeSet<String>,
    whereabouts: Whereabouts,
) -> Vec<&'a DiskElement> {
    let filled = domain.disk_elements().filter(|(disk, _)| disk.device.is_removable() && disk.kind == DiskKind::File);
    let lacking = filled.filter(|(disk, element)| {
        disk.source.is_some() && reason_to_eject(disk, element, paths_present, whereabouts).is_some()
    });
    lacking.map(|(disk, _)| disk).collect()
}

/// Puts in what was copied, and ejects what the target does not have; an empty drive stays, so the guest finds its
/// hardware unchanged.
pub(super) fn edit(domain: &Domain, wanted: &Transform, edits: &mut Edits<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for (disk, element) in domain.disk_elements().filter(|(disk, _)| disk.device.is_removable()) {
        if let (Some(new), Some(source)) = (wanted.media.get(&disk.target), element.child("source")) {
            disks::repoint(element, source, new, edits);
            continue;
        }
        let Some(why) = reason_to_eject(disk, element, &wanted.paths_present, wanted.whereabouts) else { continue };
        eject(element, edits);
        let medium = disk.source.as_deref().unwrap_or("its medium");
        notes.push(format!("{medium} is ejected from {}: {why}", disk.target));
    }
    notes
}

fn reason_to_eject(
    disk: &DiskElement,
    element: &Element,
    paths_present: &BTreeSet<String>,
    whereabouts: Whereabouts,
) -> Option<&'static str> {
    element.child("source")?;
    let Some(path) = &disk.source else { return Some("its source is not one that can be carried") };
    match disk.kind {
        DiskKind::File | DiskKind::Block => {}
        _ => return Some("its source is not a file"),
    }
    if !paths_present.contains(path) {
        return Some("the target does not have it");
    }
    let is_shared = whereabouts == Whereabouts::SameHost;
    let is_writable = disk.device == DiskDevice::Floppy && !disk.readonly;
    (is_shared && is_writable).then_some("two machines would write to it")
}

/// formatdomain: an empty drive is one of type `file` without `<source>`.
fn eject(element: &Element, edits: &mut Edits<'_>) {
    edits.set_attribute(element, "type", "file");
    for name in ["source", "backingStore"] {
        element.all(name).for_each(|child| edits.remove(child));
    }
}
