//! Whose files are whose: what the machines of a host use. Before anything is removed that one of them might stand on, what
//! cannot be told counts as used.

use std::collections::BTreeSet;

use kvm_clone_core::domain::{DiskElement, DiskKind, Domain, with_true_images};
use kvm_clone_core::inventory::{DiskFile, ExistingMachine, FileId, ImageFormat};
use kvm_clone_core::name::SourceName;
use kvm_clone_core::plan::is_copied_medium;
use kvm_clone_core::wire::facts::PathFacts;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use super::{Site, files_beside, inspect, look};
use crate::host::Listed;

/// Of these those that are files, are there, and that no machine of the host uses: somebody may have built a machine on what an
/// operation left, or on a disk of the machine that it replaced. What is in use is nobody's orphan.
///
/// # Errors
/// A machine has an image of which cannot be told what it stands on: then none of them may go.
pub(crate) async fn not_in_use(site: &Site, files: &[String]) -> Result<Vec<String>> {
    let there = those_there(site, files, PathFacts::removable).await?;
    if there.is_empty() {
        return Ok(Vec::new());
    }
    let mut machines = Vec::new();
    for listed in site.libvirt.existing(String::new()).await? {
        let machine = files_of(site, listed, true).await?;
        if let Some(image) = machine.unseen.first() {
            return Err(may_be_used(&machine, image, &there));
        }
        machines.push(machine);
    }
    let is_free = |path: &String, file: FileId| !machines.iter().any(|its| its.uses_file(path, file));
    Ok(there.into_iter().filter(|(path, file)| is_free(path, *file)).map(|(path, _)| path.clone()).collect())
}

/// A machine other than this one that uses one of these files, and which.
pub(crate) async fn other_user(
    site: &Site,
    files: &[String],
    than: Option<Uuid>,
) -> Result<Option<(SourceName, String)>> {
    let there = those_there(site, files, |facts| facts.file).await?;
    if there.is_empty() {
        return Ok(None);
    }
    let others =
        site.libvirt.existing(String::new()).await?.into_iter().filter(|listed| Some(listed.machine.uuid) != than);
    for listed in others {
        let machine = files_of(site, listed, true).await?;
        if let Some((path, _)) = there.iter().find(|(path, file)| machine.uses_file(path, *file)) {
            return Ok(Some((machine.name, (*path).clone())));
        }
    }
    Ok(None)
}

/// Those of these files that are there and count, and which file each of them is.
async fn those_there<'a>(
    site: &Site,
    files: &'a [String],
    counts: impl Fn(&PathFacts) -> Option<FileId>,
) -> Result<Vec<(&'a String, FileId)>> {
    let found = look(&site.host, files.to_vec()).await?;
    Ok(files.iter().filter_map(|path| Some((path, counts(found.get(path)?)?))).collect())
}

fn may_be_used(machine: &ExistingMachine, image: &str, files: &[(&String, FileId)]) -> Error {
    let files: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    let message = format!(
        "machine {} may stand on {}: what is behind {image} cannot be told, so nothing is removed",
        machine.name,
        files.join(", ")
    );
    Error::conflict(message)
        .with("vm", &machine.name)
        .help("Name the format of the file behind that image: qemu-img rebase -u -b BACKING -F FORMAT IMAGE")
        .help("Or move the files away that no machine stands on; then run the command again")
}

/// Adds the files that a machine of the target uses; with `chains` also those behind its images, which a machine that is
/// a linked clone needs as much as its own, and which file each of them is.
pub(super) async fn files_of(site: &Site, listed: Listed, chains: bool) -> Result<ExistingMachine> {
    let Listed { mut machine, xml, live } = listed;
    let failed = |error: Error| error.with("vm", &machine.name);
    let domain = Domain::parse(&xml).and_then(|domain| with_true_images(&domain)).map_err(failed)?;
    let live = live.map(|xml| Domain::parse(&xml)).transpose().map_err(failed)?;
    machine.uses = domain.host_paths();
    let tpm = domain.tpm().map(|tpm| tpm.state_files(&site.host.facts.tpm_dir, machine.uuid));
    machine.uses.extend(tpm.into_iter().flatten().map(|(_, path)| path));
    let mut images = Vec::new();
    for disk in domain.disks() {
        let Some(path) = path_of(site, &mut machine, disk).await else { continue };
        machine.uses.insert(path.clone());
        images.push(ImageSpec::new(path.clone(), disk.format()));
        let is_others = disk.readonly || disk.shareable || disk.device.is_removable();
        if is_others && !is_copied_medium(&machine.name, disk) || disk.kind == DiskKind::Block {
            continue;
        }
        machine.disk_files.push(DiskFile { path, file: None });
    }
    // What was plugged into a machine that runs is used, and is not its own to be removed with it.
    for disk in live.iter().flat_map(Domain::disks) {
        let Some(path) = path_of(site, &mut machine, disk).await else { continue };
        if machine.uses.insert(path.clone()) {
            images.push(ImageSpec::new(path, disk.format()));
        }
    }
    for (path, image) in files_beside(&domain, &site.host.facts.nvram_dir) {
        machine.uses.insert(path.clone());
        images.push(image);
        machine.disk_files.push(DiskFile { path, file: None });
    }
    if chains {
        look_behind(site, (&domain, live.as_ref()), &mut machine, images).await?;
    }
    Ok(machine)
}

/// Where an image is. A pool that is stopped cannot say of its volumes; one then counts as in use under its own name.
async fn path_of(site: &Site, machine: &mut ExistingMachine, disk: &DiskElement) -> Option<String> {
    let source = disk.source.as_ref()?;
    match (&disk.kind, &disk.pool) {
        (DiskKind::File | DiskKind::Block, _) => Some(source.clone()),
        (DiskKind::Volume, Some(pool)) => match site.libvirt.volume_path(pool.clone(), source.clone()).await {
            Ok(path) => Some(path),
            Err(_) => {
                machine.unseen.push(format!("volume {source} of pool {pool}"));
                Some(source.clone())
            }
        },
        _ => None,
    }
}

/// Follows every image down to its last file, and finds out which files all of these paths lead to.
async fn look_behind(
    site: &Site,
    (domain, live): (&Domain, Option<&Domain>),
    machine: &mut ExistingMachine,
    images: Vec<ImageSpec>,
) -> Result<()> {
    let mut failed = Vec::new();
    let lineage = domain.lineage();
    let is_kept = |path: &str| {
        let points = lineage.iter().flat_map(|lineage| &lineage.points);
        points.flat_map(|kept| kept.standing()).any(|(_, image)| image.path == path)
    };
    // Behind a raw image there is nothing, whatever its guest wrote into it.
    for image in images.into_iter().filter(|image| image.format != ImageFormat::Raw) {
        let path = image.path.clone();
        match inspect(&site.host, image).await {
            Ok(seen) => {
                for image in seen.images {
                    // A kept point belongs to the machine, as its own images do.
                    if image.path != path && is_kept(&image.path) {
                        machine.disk_files.push(DiskFile { path: image.path.clone(), file: None });
                    }
                    failed.extend(image.unsupported.first().map(|why| (path.clone(), why.clone())));
                    machine.uses.insert(image.path);
                    machine.uses.extend(image.data_file);
                }
            }
            Err(error) => failed.push((path, error.message)),
        }
    }
    let named = [domain].into_iter().chain(live).flat_map(Domain::named_paths);
    let paths: BTreeSet<String> = machine.uses.iter().cloned().chain(named).collect();
    let paths = paths.into_iter().filter(|path| path.starts_with('/')).collect();
    let found = look(&site.host, paths).await?;
    let file = |path: &String| found.get(path).and_then(|facts| facts.file);
    for disk in &mut machine.disk_files {
        disk.file = found.get(&disk.path).and_then(PathFacts::removable);
    }
    // A machine whose image is missing stands on nothing.
    let there = failed.into_iter().filter(|(path, _)| file(path).is_some());
    machine.unseen.extend(there.map(|(path, why)| format!("{path} ({why})")));
    machine.used_files = found.into_values().filter_map(|facts| facts.file).collect();
    Ok(())
}
