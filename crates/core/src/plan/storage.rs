//! Which pool and file each disk becomes, and whether there is space.
//!
//! The pool is the one asked for with `--pool`; else the target's pool with the name of the pool that holds the
//! source's image; else `default`. Only pools whose volumes are files in a directory come into question. The file is
//! `{new name}-{disk}.qcow2` or `.img`; where the replaced machine has that very file, which must stay until the new
//! machine is there, the end of the operation's id tells the two apart.

use std::collections::{BTreeMap, BTreeSet};

use super::check::Checks;
use super::request::{DiskFormat, Existing, Update};
use super::{Base, ChainLink, DiskPlan, Facts, FilePlan, PointsPlan, Replaced, chain, points, replace, snapshots};
use crate::error::{Code, Error};
use crate::inventory::{ImageFacts, ImageFormat, Pool};
use crate::name::DiskTarget;
use crate::quote::quoted;
use crate::size::ByteSize;

/// The disks that have a place.
pub(super) fn place(facts: &Facts<'_>, replaces: Option<&Replaced>, checks: &mut Checks) -> Vec<DiskPlan> {
    let mut disks = Vec::new();
    let mut pool_failures: Vec<Error> = Vec::new();
    let mut name_failures = Vec::new();
    for (target, chain) in images(facts) {
        if let Some(base) = facts.base(target) {
            match of_replica(facts, target, chain, base) {
                Ok(disk) => disks.push(disk),
                Err(error) => name_failures.push(error),
            }
            continue;
        }
        // A definition that stays as it is has no place for another disk.
        if matches!(facts.request.existing, Existing::Update(Update { disks_only: true, .. })) {
            checks.warn("disks", format!("disk {target} is not the replica's; it is left out"), None);
            continue;
        }
        let pool = match choose_pool(facts, chain) {
            Ok(pool) => pool,
            Err(error) if pool_failures.contains(&error) => continue,
            Err(error) => {
                pool_failures.push(error);
                continue;
            }
        };
        match file_path(facts, pool, target, chain, replaces) {
            Ok(path) => disks.push(disk_plan(facts, target, chain, Some(pool), path)),
            Err(error) => name_failures.push(error),
        }
    }
    let pools: BTreeSet<&str> = disks.iter().filter_map(|disk| disk.pool.as_deref()).collect();
    let pools = pools.into_iter().collect::<Vec<_>>().join(", ");
    let based = |in_place: bool| {
        disks.iter().filter(|disk| disk.base.as_ref().is_some_and(|base| base.in_place == in_place)).count()
    };
    let (overlays, written) = (based(false), based(true));
    let new = disks.len() - overlays - written;
    let counted = [(written, "image(s) in place"), (overlays, "overlay(s)"), (new, "new image(s)")];
    let counted: Vec<String> =
        counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let what = if counted.is_empty() { "0 new image(s)".to_owned() } else { counted.join(" and ") };
    checks.all("pools", pool_failures, format!("{what} in pool {pools}"));
    checks.all("files", name_failures, "no file is in the way");
    disks
}

/// Every path that [`place`] may choose, so that the target can be asked which of them are there.
pub(super) fn candidates(facts: &Facts<'_>) -> Vec<String> {
    let mut paths = Vec::new();
    for (target, chain) in images(facts) {
        let overlay = facts.base(target).filter(|base| !base.in_place);
        paths.extend(overlay.map(|base| overlay_path(facts, target, &base)));
        let Ok(directory) = choose_pool(facts, chain).and_then(directory) else { continue };
        paths.extend(names(facts, directory, target, extension(&new_format(facts, chain))));
    }
    paths
}

/// The disks whose images are known; one whose are not has failed its check already.
pub(super) fn images<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = (&'a DiskTarget, &'a [ImageFacts])> {
    let known = |target| facts.source.images.get(target).filter(|chain| !chain.is_empty());
    facts.domain.data_disks().filter_map(move |disk| Some((&disk.target, known(&disk.target)?.as_slice())))
}

pub(super) fn choose_pool<'a>(facts: &Facts<'a>, chain: &[ImageFacts]) -> Result<&'a Pool, Error> {
    let find = |name: &str| facts.target.pools.iter().find(|pool| pool.name == name);
    let suitable = |pool: &&Pool| pool.holds_files();
    let source_pool = chain.first().and_then(|image| image.pool.as_deref());
    let pool = match &facts.request.pool {
        Some(name) => find(name.as_str()).ok_or_else(|| no_pool(facts, name.as_str()))?,
        None => {
            let same = source_pool.and_then(find).filter(suitable);
            same.or_else(|| find("default")).ok_or_else(|| no_pool(facts, "default"))?
        }
    };
    let refuse = |why: &str| {
        Error::insufficient(format!("pool {} {why}", pool.name))
            .with("pool", &pool.name)
            .with("host", &facts.target.host_name)
    };
    if !pool.active {
        return Err(refuse("is not active").help(format!("virsh pool-start {}", quoted(&pool.name))).help(CHOOSE_POOL));
    }
    if !pool.holds_files() {
        return Err(refuse(&format!("is of type {:?}, which does not hold files", pool.kind)).help(CHOOSE_POOL));
    }
    Ok(pool)
}

const CHOOSE_POOL: &str = "Choose another one with --pool";

fn no_pool(facts: &Facts<'_>, name: &str) -> Error {
    let there: Vec<&str> = facts.target.pools.iter().map(|pool| pool.name.as_str()).collect();
    let there = if there.is_empty() { "no pools".to_owned() } else { there.join(", ") };
    Error::insufficient(format!("the target has no pool {name:?}"))
        .with("pool", name)
        .with("host", &facts.target.host_name)
        .help(format!("{CHOOSE_POOL}; the target has {there}"))
}

pub(super) fn directory(pool: &Pool) -> Result<&str, Error> {
    let path = pool.path.as_deref().map(|path| path.trim_end_matches('/'));
    path.ok_or_else(|| Error::internal(format!("pool {} has no path", pool.name)))
}

/// A disk that the replica has: an overlay beside the replica's image, or the image itself.
fn of_replica(facts: &Facts<'_>, target: &DiskTarget, chain: &[ImageFacts], base: Base) -> Result<DiskPlan, Error> {
    if !base.in_place {
        return overlay(facts, target, chain, base);
    }
    let plan = disk_plan(facts, target, chain, home(facts, &base), base.path.clone());
    Ok(DiskPlan { format: base.format.clone(), base: Some(base), whole: None, ..plan })
}

/// The pool that holds the replica's image.
fn home<'a>(facts: &Facts<'a>, base: &Base) -> Option<&'a Pool> {
    let directory = base.path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let is_home = |pool: &&Pool| pool.path.as_deref().is_some_and(|path| path.trim_end_matches('/') == directory);
    facts.target.pools.iter().find(is_home)
}

fn overlay(facts: &Facts<'_>, target: &DiskTarget, chain: &[ImageFacts], base: Base) -> Result<DiskPlan, Error> {
    let path = overlay_path(facts, target, &base);
    if facts.target.paths_present.contains(&path) {
        return Err(Error::new(Code::VmExists, format!("the file {path} is there already; it is never overwritten"))
            .with("path", &path)
            .with("host", &facts.target.host_name)
            .with("disk", target)
            .help("Move the file away"));
    }
    let plan = disk_plan(facts, target, chain, home(facts, &base), path);
    Ok(DiskPlan { format: ImageFormat::Qcow2, base: Some(base), ..plan })
}

fn overlay_path(facts: &Facts<'_>, target: &DiskTarget, base: &Base) -> String {
    let directory = base.path.rsplit_once('/').map_or("", |(directory, _)| directory);
    // An overlay that stays has its lasting name at once.
    let extension = if facts.request.safety.keep { "qcow2" } else { "overlay" };
    let [_, with_tail] = names(facts, directory, target, extension);
    with_tail
}

/// Says of each overlay what is merged once it counts.
pub(super) fn merge(disks: &mut [DiskPlan], plan: &PointsPlan) {
    for disk in disks {
        let links = disk.links();
        let held = points::held(&plan.at_commit, &disk.target);
        disk.base.iter_mut().for_each(|base| base.merges = chain::merges(&links, &held));
    }
}

/// Bytes that an image may grow by before what is merged into it goes. What this sync brings is counted by itself.
fn merged_bytes(disk: &DiskPlan) -> u64 {
    let older = disk.base.iter().flat_map(|base| &base.merges).filter(|merge| merge.overlay != disk.path);
    older.fold(0u64, |sum, merge| sum.saturating_add(merge.allocated))
}

/// A path that nothing has; files that are there are never overwritten, whosever they are.
fn file_path(
    facts: &Facts<'_>,
    pool: &Pool,
    target: &DiskTarget,
    chain: &[ImageFacts],
    replaces: Option<&Replaced>,
) -> Result<String, Error> {
    let names = names(facts, directory(pool)?, target, extension(&new_format(facts, chain)));
    free_path(facts, target, names, replaces)
}

/// The first of two names, unless the machine that is replaced has it.
pub(super) fn free_path(
    facts: &Facts<'_>,
    target: &DiskTarget,
    [mut path, other]: [String; 2],
    replaces: Option<&Replaced>,
) -> Result<String, Error> {
    if replace::has(facts, replaces, &path) {
        path = other;
    }
    let is_named = facts.target.machines.iter().find(|machine| machine.uses.contains(&path));
    if !facts.target.paths_present.contains(&path) && is_named.is_none() {
        return Ok(path);
    }
    let owner = is_named.map(|machine| format!(" and belongs to machine {}", machine.name)).unwrap_or_default();
    Err(Error::new(Code::VmExists, format!("the file {path} is there already{owner}; it is never overwritten"))
        .with("path", &path)
        .with("host", &facts.target.host_name)
        .with("disk", target)
        .help("Move the file away, or choose another name with --new-name or another pool with --pool"))
}

/// The name of a disk's file, and one for where a machine that is replaced has that.
pub(super) fn names(facts: &Facts<'_>, directory: &str, target: &DiskTarget, extension: &str) -> [String; 2] {
    // The first bytes of a UUIDv7 are the time; only its end is random.
    let [.., a, b, c, d] = facts.fresh.operation.into_bytes();
    let tail = format!("{a:02x}{b:02x}{c:02x}{d:02x}");
    let name = facts.new_name;
    [format!("{directory}/{name}-{target}.{extension}"), format!("{directory}/{name}-{target}-{tail}.{extension}")]
}

fn extension(format: &ImageFormat) -> &'static str {
    if *format == ImageFormat::Qcow2 { "qcow2" } else { "img" }
}

fn new_format(facts: &Facts<'_>, chain: &[ImageFacts]) -> ImageFormat {
    match facts.request.disk_format {
        DiskFormat::Qcow2 => ImageFormat::Qcow2,
        DiskFormat::Raw => ImageFormat::Raw,
        DiskFormat::Keep => match chain.first().map(|image| &image.format) {
            None | Some(ImageFormat::Raw) => ImageFormat::Raw,
            // Formats that only qemu reads are not written: no reader of the copy needs them.
            Some(ImageFormat::Qcow2 | ImageFormat::Other(_)) => ImageFormat::Qcow2,
        },
    }
}

fn disk_plan(
    facts: &Facts<'_>,
    target: &DiskTarget,
    chain: &[ImageFacts],
    pool: Option<&Pool>,
    path: String,
) -> DiskPlan {
    let size = chain.first().map_or(0, |image| image.virtual_size);
    let whole = snapshots::whole(facts, chain);
    // The images of a chain may hide parts of each other, so their sum is the most that the copy can hold; snapshots lie
    // beside what the guest sees.
    let allocated = chain.iter().fold(0u64, |sum, image| sum.saturating_add(image.allocated));
    let allocated = if whole.is_some() { allocated } else { allocated.min(size) };
    DiskPlan {
        target: target.clone(),
        source_path: chain.first().map(|image| image.path.clone()).unwrap_or_default(),
        source_format: chain.first().map_or(ImageFormat::Raw, |image| image.format.clone()),
        chain: chain.iter().map(ChainLink::from).collect(),
        size,
        allocated,
        path,
        format: new_format(facts, chain),
        pool: pool.map(|pool| pool.name.clone()),
        whole,
        base: None,
    }
}

/// Compares what goes into each pool with what it has, and returns what is needed in all.
pub(super) fn check_space(facts: &Facts<'_>, disks: &[DiskPlan], files: &[FilePlan], checks: &mut Checks) -> u64 {
    let mut by_pool: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    // How much of a replica differs is known only when it was compared; less than the margin is no room to begin with.
    let margin = u64::from(facts.request.space_margin_percent);
    let room = |disk: &DiskPlan| match disk.base {
        Some(_) => (disk.allocated / 100).saturating_mul(margin).saturating_add(merged_bytes(disk)),
        None => disk.allocated,
    };
    // What is written in place needs no room beside it.
    let disks = disks.iter().filter(|disk| disk.base.as_ref().is_none_or(|base| !base.in_place));
    let disks = disks.filter_map(|disk| Some((disk.pool.as_deref()?, room(disk), disk.size)));
    let files = files.iter().filter_map(|file| Some((file.pool.as_deref()?, file.allocated, file.size)));
    for (pool, data, len) in disks.chain(files) {
        let (allocated, size) = by_pool.entry(pool).or_default();
        *allocated = allocated.saturating_add(data);
        *size = size.saturating_add(len);
    }
    let mut total: u64 = 0;
    for (name, (allocated, size)) in by_pool {
        let needed = with_margin(allocated, facts.request.space_margin_percent);
        total = total.saturating_add(needed);
        let available = facts.target.pools.iter().find(|pool| pool.name == name).map_or(0, |pool| pool.available);
        let (shown_needed, shown_available) = (ByteSize(needed), ByteSize(available));
        if needed > available {
            let message =
                format!("pool {name} has {shown_available} free, the copy needs {shown_needed} with its margin");
            let error = Error::insufficient(message).with("pool", name).with("needed", needed).with("free", available);
            let margin = facts.request.space_margin_percent;
            checks.fail(
                "space",
                error.help(format!("Free space, or choose another pool with --pool; the margin is {margin} %")),
            );
        } else {
            checks.ok("space", format!("{shown_needed} of {shown_available} free in pool {name}"));
            warn_overcommit(name, size, available, checks);
        }
    }
    total
}

fn with_margin(bytes: u64, percent: u8) -> u64 {
    let margin = u128::from(bytes) * u128::from(percent) / 100;
    bytes.saturating_add(u64::try_from(margin).unwrap_or(u64::MAX))
}

fn warn_overcommit(pool: &str, size: u64, available: u64, checks: &mut Checks) {
    if size > available {
        let (size, available) = (ByteSize(size), ByteSize(available));
        let message = format!("the disks can grow to {size}, pool {pool} has {available} free");
        checks.warn("space", message, Some("Watch the pool, or give it more space"));
    }
}
