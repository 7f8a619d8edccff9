//! Images in CD-ROM and floppy drives that the target lacks, copied by word into the pool of the disks.

use super::{FileKind, FilePlan, carried};
use crate::domain::{DiskDevice, DiskElement};
use crate::error::Error;
use crate::inventory::{ImageFacts, Pool};
use crate::name::SourceName;
use crate::plan::check::Checks;
use crate::plan::{Facts, Replaced, storage};
use crate::quote::quoted;

pub(super) fn place(facts: &Facts<'_>, replaces: Option<&Replaced>, checks: &mut Checks) -> Vec<FilePlan> {
    let mut files = Vec::new();
    for drive in wanted(facts) {
        match place_one(facts, drive, replaces) {
            Ok(file) => {
                checks.ok("media", format!("the medium in {} becomes {}", drive.target, file.path));
                files.push(file);
            }
            Err(error) => checks.fail("media", error.with("disk", &drive.target)),
        }
    }
    files
}

/// Every path that [`place`] may choose. What the target has is not known yet, so every drive counts.
pub(super) fn candidates(facts: &Facts<'_>) -> Vec<String> {
    let names = |drive| pool(facts, drive).and_then(|pool| names(facts, pool, drive)).map(Vec::from);
    wanted(facts).into_iter().flat_map(|drive| names(drive).unwrap_or_default()).collect()
}

/// Whether this is a name that [`place`] gives: such a file is its machine's own, and goes with it.
#[must_use]
pub fn is_copied_medium(machine: &SourceName, drive: &DiskElement) -> bool {
    let file = drive.source.as_deref().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    let own = format!("{machine}-{}", drive.target);
    let rest = file.strip_prefix(&own).and_then(|rest| rest.strip_suffix(&format!(".{}", extension(drive))));
    let is_tail = |tail: &str| tail.len() == 8 && tail.bytes().all(|byte| byte.is_ascii_hexdigit());
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(is_tail))
}

fn wanted<'a>(facts: &Facts<'a>) -> Vec<&'a DiskElement> {
    let missing = facts.domain.media_to_copy(&facts.target.paths_present, facts.whereabouts);
    missing.into_iter().filter(|drive| facts.request.copy_media && !is_empty_at_start(facts, drive)).collect()
}

/// formatdomain, `startupPolicy`: the source itself would start with the drive empty, so there is nothing to bring.
fn is_empty_at_start(facts: &Facts<'_>, drive: &DiskElement) -> bool {
    drive.optional && drive.source.as_ref().is_some_and(|path| !facts.source.files.contains_key(path))
}

fn place_one(facts: &Facts<'_>, drive: &DiskElement, replaces: Option<&Replaced>) -> Result<FilePlan, Error> {
    let image = image(facts, drive)?;
    let pool = pool(facts, drive)?;
    let path = storage::free_path(facts, &drive.target, names(facts, pool, drive)?, replaces)?;
    let file = carried(FileKind::Medium, drive.target.as_str(), image, path);
    Ok(FilePlan { pool: Some(pool.name.clone()), allocated: image.allocated.min(image.file.length), ..file })
}

fn image<'a>(facts: &Facts<'a>, drive: &DiskElement) -> Result<&'a ImageFacts, Error> {
    let (name, path) = (&facts.source.name, drive.source.as_deref().unwrap_or_default());
    let eject = format!(
        "Eject it: virsh change-media {} {} --eject --config; or leave --copy-media out",
        quoted(name),
        drive.target
    );
    match facts.source.files.get(path).map(Vec::as_slice) {
        Some([image]) if image.regular_file && image.data_file.is_none() => Ok(image),
        None | Some([]) => {
            let error = Error::insufficient(format!("the medium {path} in {} cannot be found or read", drive.target));
            Err(error.with("path", path).help(eject))
        }
        Some(_) => {
            let error = Error::unsupported(format!("the medium {path} in {} is no plain file by itself", drive.target));
            Err(error.with("path", path).help(eject))
        }
    }
}

/// That of the disks; of a machine without any, the one that a disk would get.
fn pool<'a>(facts: &Facts<'a>, drive: &DiskElement) -> Result<&'a Pool, Error> {
    let medium = drive.source.as_ref().and_then(|path| facts.source.files.get(path));
    let disk = storage::images(facts).next().map(|(_, chain)| chain);
    storage::choose_pool(facts, disk.or(medium.map(Vec::as_slice)).unwrap_or_default())
}

fn names(facts: &Facts<'_>, pool: &Pool, drive: &DiskElement) -> Result<[String; 2], Error> {
    Ok(storage::names(facts, storage::directory(pool)?, &drive.target, extension(drive)))
}

fn extension(drive: &DiskElement) -> &'static str {
    if drive.device == DiskDevice::Cdrom { "iso" } else { "img" }
}
