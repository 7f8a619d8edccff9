//! Taking inventories: what `core::plan` needs to know of source and target, asked of libvirt and the agents.

mod machines;
mod replica;

use std::collections::{BTreeMap, BTreeSet};

use kvm_clone_core::domain::{DiskElement, DiskKind, Domain, Whereabouts};
use kvm_clone_core::inventory::{
    Cpus, DomainCapabilities, ImageChain, ImageFacts, ImageFormat, Pool, SeenFile, SourceMachine, TargetHost,
};
use kvm_clone_core::name::{DiskTarget, SourceName};
use kvm_clone_core::plan::{
    CloneRequest, Existing, FreshIdentity, platform_there, source_domain, tpm_files, unseen_image, unseen_volume,
    wanted_paths,
};
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::facts::{Identity, PathFacts};
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::wire::point::SCRATCH_FOR_DEVICES;
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use crate::host::Host;
use crate::host::control::unexpected;
use crate::host::libvirt::Libvirt;
use machines::files_of;
pub(crate) use machines::{not_in_use, other_user};
pub(crate) use replica::{age, find as find_replica};

/// A host with its libvirt open.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) host: Host,
    pub(crate) libvirt: Libvirt,
}

/// The source machine with what identifies the present contents of its images.
pub(crate) struct Source {
    pub(crate) machine: SourceMachine,
    pub(crate) identities: BTreeMap<DiskTarget, Vec<Identity>>,
    /// The same of the files beside its disks.
    pub(crate) file_identities: BTreeMap<String, Vec<Identity>>,
}

/// Looks at the source machine and every image of it.
pub(crate) async fn source(site: &Site, name: &SourceName, request: &CloneRequest) -> Result<Source> {
    let mut machine = site.libvirt.source(name, site.host.facts.id.clone()).await?;
    let pools = site.libvirt.pools().await?;
    let (domain, _) = source_domain(request, &machine)?;
    machine.live = site.libvirt.live(machine.uuid).await?;
    machine.qemu_nbd = site.host.facts.programs.contains_key("qemu-nbd");
    let mut identities = BTreeMap::new();
    for disk in domain.data_disks() {
        let target = disk.target.clone();
        match first_look(site, disk, &pools).await? {
            Looked::Seen(Inspected { images, identities: found }) => {
                identities.insert(target.clone(), found);
                machine.images.insert(target, images);
            }
            Looked::Unseen(why) => drop(machine.unseen.insert(target, why)),
            Looked::Passed => {}
        }
    }
    let mut file_identities = BTreeMap::new();
    machine.nvram_dir.clone_from(&site.host.facts.nvram_dir);
    machine.tpm_dir.clone_from(&site.host.facts.tpm_dir);
    for (path, image) in files_to_copy(&domain, &machine, request) {
        let found = look(&site.host, vec![path.clone()]).await?;
        if found.get(&path).is_some_and(|facts| facts.exists) {
            let Inspected { images, identities } = inspect(&site.host, image).await?;
            file_identities.insert(path.clone(), identities);
            machine.files.insert(path, images);
        }
    }
    if machine.live.is_some() {
        look_at_scratch(site, &mut machine).await?;
    }
    Ok(Source { machine, identities, file_identities })
}

/// What came of looking at a disk of the source.
enum Looked {
    Seen(Inspected),
    /// It cannot be looked at: the plan says so, beside whatever else it has to say.
    Unseen(Error),
    /// It is of a kind that is not looked at.
    Passed,
}

async fn first_look(site: &Site, disk: &DiskElement, pools: &[Pool]) -> Result<Looked> {
    let path = match disk_path(site, disk).await {
        Ok(Some(path)) => path,
        Ok(None) => return Ok(Looked::Passed),
        Err(error) => return unseen_volume(disk, pools, error).map(Looked::Unseen),
    };
    match inspect(&site.host, ImageSpec::new(path, disk.format())).await {
        Ok(mut seen) => {
            for image in &mut seen.images {
                image.pool = pool_of(pools, &image.path);
            }
            Ok(Looked::Seen(seen))
        }
        Err(error) => unseen_image(error).map(Looked::Unseen),
    }
}

/// The images of a machine's disks; those of kinds that cannot be read are left out.
pub(crate) async fn disk_images(site: &Site, domain: &Domain) -> Result<BTreeMap<DiskTarget, Inspected>> {
    let mut found = BTreeMap::new();
    for disk in domain.data_disks() {
        let path = disk_path(site, disk).await.map_err(|error| error.with("disk", &disk.target))?;
        let Some(path) = path else { continue };
        let seen = inspect(&site.host, ImageSpec::new(path, disk.format())).await;
        found.insert(disk.target.clone(), seen.map_err(|error| error.with("disk", &disk.target))?);
    }
    Ok(found)
}

/// Where a disk's image is; none for kinds that cannot be copied: the plan refuses these in words, and they are not looked at.
async fn disk_path(site: &Site, disk: &DiskElement) -> Result<Option<String>> {
    match (&disk.kind, &disk.source, &disk.pool) {
        (DiskKind::File | DiskKind::Block, Some(path), _) => Ok(Some(path.clone())),
        (DiskKind::Volume, Some(volume), Some(pool)) => {
            site.libvirt.volume_path(pool.clone(), volume.clone()).await.map(Some)
        }
        _ => Ok(None),
    }
}

/// Where the scratch files of a machine that runs will lie, and what is free there.
async fn look_at_scratch(site: &Site, machine: &mut SourceMachine) -> Result<()> {
    let Some(live) = &mut machine.live else { return Ok(()) };
    live.virsh = site.host.facts.programs.contains_key("virsh");
    let images = machine.images.values().filter_map(|chain| chain.first());
    let dir = |image: &ImageFacts| match image.path.rsplit_once('/') {
        Some((dir, _)) if image.regular_file => dir.to_owned(),
        _ => SCRATCH_FOR_DEVICES.to_owned(),
    };
    let dirs: BTreeSet<String> = images.map(dir).collect();
    let found = look(&site.host, dirs.into_iter().collect()).await?;
    live.scratch_available = found.values().map(|facts| facts.available).min().unwrap_or(0);
    Ok(())
}

/// The files beside the disks that this copy may get, by the paths that the source has for them.
fn files_to_copy(domain: &Domain, machine: &SourceMachine, request: &CloneRequest) -> Vec<(String, ImageSpec)> {
    let mut files = files_beside(domain, &machine.nvram_dir);
    // The emulator of a machine that runs writes to its state; the plan refuses it.
    if machine.live.is_none() {
        let states = tpm_files(request, domain, &machine.tpm_dir, machine.uuid).into_iter();
        files.extend(states.map(|path| (path.clone(), ImageSpec::new(path, ImageFormat::Raw).without_link())));
    }
    if request.copy_media {
        // What the target has is not known yet.
        let drives = domain.media_to_copy(&BTreeSet::new(), Whereabouts::OtherHost).into_iter();
        files.extend(drives.filter_map(|drive| {
            let path = drive.source.clone()?;
            Some((path.clone(), ImageSpec::new(path, drive.format())))
        }));
    }
    files
}

/// The files beside its disks that every machine has for itself, by their paths.
fn files_beside(domain: &Domain, nvram_dir: &str) -> Vec<(String, ImageSpec)> {
    let nvram = domain.nvram_file(nvram_dir);
    nvram.map(|(path, format)| (path.clone(), ImageSpec::new(path, format).without_link())).into_iter().collect()
}

/// The target host, seen with the eyes of this request. Also says as whom qemu runs there.
pub(crate) async fn target(
    site: &Site,
    request: &CloneRequest,
    source: &SourceMachine,
    fresh: &FreshIdentity,
) -> Result<(TargetHost, Option<(u32, u32)>)> {
    let new_name = request.new_name(&source.name)?;
    let (domain, _) = source_domain(request, source)?;
    let (facts, libvirt) = (&site.host.facts, &site.libvirt);
    let (capabilities, pools, networks, existing) = tokio::try_join!(
        libvirt.capabilities(),
        libvirt.pools(),
        libvirt.networks(),
        libvirt.existing(new_name.to_string()),
    )?;
    let mut machines = existing.iter().map(|listed| &listed.machine);
    let named = machines.find(|machine| machine.name.as_str() == new_name.as_str());
    let mut target = TargetHost {
        host: facts.id.clone(),
        host_name: site.host.name.clone(),
        libvirt_version: capabilities.version,
        cpus: facts.cpus,
        memory_total: facts.memory_total,
        memory_available: facts.memory_available,
        pools,
        networks,
        bridges: facts.bridges.iter().cloned().collect(),
        links: facts.links.iter().cloned().collect(),
        makes_devices: facts.uid == 0,
        network_filters: network_filters(site, &domain).await?,
        addresses: facts.addresses.clone(),
        topology: facts.topology.clone(),
        guest_cpus: guest_cpus(site, request, source, &capabilities.domains).await?,
        capabilities: capabilities.domains.clone(),
        nvram_dir: facts.nvram_dir.clone(),
        tpm_dir: facts.tpm_dir.clone(),
        secrets: secrets(site, &domain).await?,
        machines: Vec::new(),
        paths_present: BTreeSet::new(),
        files: BTreeMap::new(),
        replica: replica::look_at(site, request, named, &fresh.now).await?,
    };
    // Whose files are whose matters only where some will be removed.
    let replacing = request.existing != Existing::Refuse && named.is_some();
    for listed in existing {
        target.machines.push(files_of(site, listed, replacing).await?);
    }
    let mut paths = wanted_paths(request, source, &target, fresh)?;
    paths.extend(target.pools.iter().filter_map(|pool| pool.path.clone()));
    let found = look(&site.host, paths.into_iter().collect()).await?;
    see_free_space(&mut target.pools, &found);
    target.files = found.iter().filter_map(|(path, facts)| Some((path.clone(), seen_file(facts)?))).collect();
    target.paths_present = found.into_iter().filter(|(_, facts)| facts.exists).map(|(path, _)| path).collect();
    Ok((target, capabilities.qemu_owner))
}

/// The CPUs that the target can show this machine.
async fn guest_cpus(
    site: &Site,
    request: &CloneRequest,
    source: &SourceMachine,
    all: &[DomainCapabilities],
) -> Result<Option<Cpus>> {
    match platform_there(request, source, all)? {
        Some(platform) => site.libvirt.cpus(platform).await.map(Some),
        None => Ok(None),
    }
}

/// libvirt's number is as old as the pool's last refresh.
fn see_free_space(pools: &mut [Pool], found: &BTreeMap<String, PathFacts>) {
    for pool in pools.iter_mut().filter(|pool| pool.active && pool.holds_files()) {
        if let Some(path) = pool.path.as_ref().and_then(|path| found.get(path)) {
            pool.available = path.available;
        }
    }
}

/// The target's secrets, where the machine needs one; libvirt's driver for them may be missing where nobody has any.
async fn secrets(site: &Site, domain: &Domain) -> Result<BTreeSet<Uuid>> {
    let is_needed = domain.tpm().is_some_and(|tpm| tpm.secret.is_some());
    if is_needed { site.libvirt.secrets().await } else { Ok(BTreeSet::new()) }
}

/// The target's network filters, where the machine needs one; that driver may be missing as well.
async fn network_filters(site: &Site, domain: &Domain) -> Result<BTreeSet<String>> {
    let is_needed = domain.interfaces().iter().any(|nic| nic.filter.is_some());
    if is_needed { site.libvirt.network_filters().await } else { Ok(BTreeSet::new()) }
}

/// An image with the files behind it, and what identifies the present contents of all of them.
#[derive(Default)]
pub(crate) struct Inspected {
    pub(crate) images: ImageChain,
    pub(crate) identities: Vec<Identity>,
}

/// Looks at an image, the files behind it, and those that hold their data.
pub(crate) async fn inspect(host: &Host, image: ImageSpec) -> Result<Inspected> {
    let mut seen = Inspected::default();
    let (images, identities) = chain(host, image).await?.into_iter().unzip();
    (seen.images, seen.identities) = (images, identities);
    for data in seen.images.iter().filter_map(|image| image.data_file.clone()) {
        let found = chain(host, ImageSpec::new(data, ImageFormat::Raw)).await?;
        seen.identities.extend(found.iter().map(|(_, identity)| *identity));
    }
    Ok(seen)
}

async fn chain(host: &Host, image: ImageSpec) -> Result<Vec<(ImageFacts, Identity)>> {
    match host.control.ask(Request::Inspect(image)).await? {
        Reply::Chain(chain) if !chain.is_empty() => Ok(chain),
        other => Err(unexpected(&other)),
    }
}

/// Has the images of a source that is stopped checked; those of one that runs are its process's to know.
pub(crate) async fn check_images(site: &Site, source: &mut Source) -> Result<()> {
    if source.machine.live.is_some() {
        return Ok(());
    }
    for (disk, chain) in &mut source.machine.images {
        for image in chain.iter_mut().filter(|image| image.unsupported.is_empty()) {
            let spec = spec(std::slice::from_ref(image))?;
            let checked = site.host.control.ask(Request::CheckImage(spec)).await;
            match checked.map_err(|error| error.with("disk", disk))? {
                Reply::Checked(broken) => image.broken = broken,
                other => return Err(unexpected(&other)),
            }
        }
    }
    Ok(())
}

async fn look(host: &Host, paths: Vec<String>) -> Result<BTreeMap<String, PathFacts>> {
    match host.control.ask(Request::Paths(paths)).await? {
        Reply::Paths(found) => Ok(found),
        other => Err(unexpected(&other)),
    }
}

/// Which of these paths are there.
pub(crate) async fn present(host: &Host, paths: Vec<String>) -> Result<BTreeSet<String>> {
    let found = look(host, paths).await?;
    Ok(found.into_iter().filter(|(_, facts)| facts.exists).map(|(path, _)| path).collect())
}

/// An image as an agent opens it, with every file behind it named.
pub(crate) fn spec(chain: &[ImageFacts]) -> Result<ImageSpec> {
    let (top, behind) = chain.split_first().ok_or_else(|| Error::internal("an image chain is empty"))?;
    let data_file = |image: &ImageFacts| Some((image.path.clone(), image.data_file.clone()?));
    Ok(ImageSpec {
        backing: behind.iter().map(|image| (image.path.clone(), image.format.clone())).collect(),
        data_files: chain.iter().filter_map(data_file).collect(),
        ..ImageSpec::new(&top.path, top.format.clone())
    })
}

fn seen_file(facts: &PathFacts) -> Option<SeenFile> {
    Some(SeenFile { file: facts.file?, device_id: facts.device_id.clone() })
}

fn pool_of(pools: &[Pool], path: &str) -> Option<String> {
    let dir = path.rsplit_once('/')?.0;
    pools.iter().find(|pool| pool.path.as_deref() == Some(dir)).map(|pool| pool.name.clone())
}
