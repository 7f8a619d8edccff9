//! Whether the source can be copied.

use super::check::Checks;
use super::{Facts, live, snapshots, storage, unseen};
use crate::domain::{self, DiskElement, DiskKind};
use crate::error::Error;
use crate::inventory::ImageFacts;
use crate::quote::quoted;

pub(super) fn check(facts: &Facts<'_>, checks: &mut Checks) {
    live::check(facts, checks);
    let context = facts.carry_context();
    let refusals = domain::refusals(facts.domain, &context);
    checks.all("definition", refusals, "everything in the definition can be carried");
    let warnings = domain::warnings(facts.domain, &context);
    warnings.into_iter().for_each(|warning| checks.warn("definition", warning, None));
    check_images(facts, checks);
    snapshots::check(facts, checks);
    warn_of_chains(facts, checks);
}

/// The images of each disk, as far as our readers understand them.
fn check_images(facts: &Facts<'_>, checks: &mut Checks) {
    let mut failures = Vec::new();
    let host = &facts.source.host_name;
    for disk in facts.domain.data_disks() {
        let target = &disk.target;
        match facts.source.images.get(target).map(Vec::as_slice) {
            None | Some([]) => failures.extend(unseen::refusal(facts, disk)),
            Some(chain @ [top, ..]) => {
                // What runs is read through its own process, which knows its images.
                let read = if facts.source.live.is_some() { &[][..] } else { chain };
                let errors = read.iter().filter_map(|image| refuse_to_read(disk, image, host, facts.source.qemu_nbd));
                let errors = errors.chain(refuse_format(disk, top));
                failures.extend(errors.map(|error| unseen::or_leave_out(error, target).with("disk", target)));
            }
        }
    }
    checks.all("images", failures, format!("{} disk(s) can be read", storage::images(facts).count()));
}

/// Why the disk of a stopped machine cannot be read, if it cannot; `qemu_nbd` says whether its host has that program, which reads
/// what our own readers do not.
#[must_use]
pub fn refuse_disk(disk: &DiskElement, chain: &[ImageFacts], host: &str, qemu_nbd: bool) -> Option<Error> {
    let Some(top) = chain.first() else {
        let error = Error::unsupported(format!("disk {} is of a kind that cannot be read", disk.target));
        return Some(
            error.with("disk", &disk.target).help("Disks in files, on block devices and in volumes can be read"),
        );
    };
    let mut refusals = chain.iter().filter_map(|image| refuse_to_read(disk, image, host, qemu_nbd));
    refusals.next().or_else(|| refuse_format(disk, top)).map(|error| error.with("disk", &disk.target))
}

fn refuse_to_read(disk: &DiskElement, image: &ImageFacts, host: &str, qemu_nbd: bool) -> Option<Error> {
    refuse_image(disk, image).or_else(|| if qemu_nbd { None } else { refuse_without_qemu_nbd(image, host) })
}

fn refuse_image(disk: &DiskElement, image: &ImageFacts) -> Option<Error> {
    let refuse = |why: &str, help: &str| {
        Error::unsupported(format!("image {} {why}", image.path)).with("path", &image.path).help(help)
    };
    if !image.regular_file && disk.kind != DiskKind::Block {
        let help = "If it is the disk's own block device, make it <disk type='block'> with <source dev='…'/>; what lies on \
                    another one is read once it is in a file (qemu-img convert)";
        return Some(refuse("is not a plain file, as the definition says", help));
    }
    if let Some(feature) = image.unsupported.first() {
        return Some(refuse(&format!("uses {feature}"), instead_of(feature)));
    }
    image.broken.as_ref().map(|fault| {
        Error::verification(format!("image {} is broken: {fault}", image.path))
            .with("path", &image.path)
            .help(format!("Look at it: qemu-img check {}; restore it, or repair it with -r all", quoted(&image.path)))
    })
}

/// What to do about something that no reader has.
fn instead_of(feature: &str) -> &'static str {
    let feature = feature.to_lowercase();
    match () {
        () if feature.contains("encryption") || feature.contains("luks") => {
            "Keys are not carried: decrypt it first, with qemu-img convert and its key in --object secret"
        }
        () if feature.contains("corrupt") => "Repair it with qemu-img check -r all, on a copy of it",
        () if feature.contains("no qemu-img") => "Install qemu-utils (Debian) or qemu-img (Fedora) there",
        () => "Convert it with qemu-img convert",
    }
}

/// What only qemu reads needs `qemu-nbd` on its host.
fn refuse_without_qemu_nbd(image: &ImageFacts, host: &str) -> Option<Error> {
    let feature = image.by_qemu.first()?;
    let error =
        Error::insufficient(format!("image {} uses {feature}; qemu-nbd, which reads it, is missing", image.path));
    let error = error.with("path", &image.path).with("host", host).with("program", "qemu-nbd");
    Some(error.help(format!("Install qemu-utils (Debian) or qemu-img (Fedora) on {host}")))
}

/// The format is what the definition says, never what the content looks like: a guest can write the header of a qcow2
/// image, with any file of the host as its backing file, into its raw disk.
fn refuse_format(disk: &DiskElement, top: &ImageFacts) -> Option<Error> {
    // formatdomain: a missing format is raw; that of a volume is known to its pool.
    let said = match (&disk.format, &disk.kind) {
        (Some(format), _) => format.as_str(),
        (None, DiskKind::Volume) => return None,
        (None, _) => "raw",
    };
    let refuse = || {
        let message = format!("image {} is taken for {}, but the definition says {said}", top.path, top.format);
        Error::unsupported(message).with("path", &top.path).help("Name the image's true format in the definition")
    };
    (said != top.format.to_string()).then(refuse)
}

/// What becomes of chains.
fn warn_of_chains(facts: &Facts<'_>, checks: &mut Checks) {
    for (target, chain) in facts.source.images.iter().filter(|(_, chain)| chain.len() > 1) {
        let message = format!("disk {target} is a chain of {} images; the copy is one image", chain.len());
        checks.warn("images", message, None);
    }
}
