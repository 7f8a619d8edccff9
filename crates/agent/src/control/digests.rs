//! Disks that are compared as a whole: their digests, or what manifests have as such; and their bytes, where digests are not to decide.
//!
//! Answers come in pages, so that none grows with the disk, and nothing is kept between them.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use kvm_clone_core::blocks::compare::{GROUP_LEN, GroupPage, blocks_in, groups_of};
use kvm_clone_core::blocks::groups::told;
use kvm_clone_core::blocks::{BlockIndex, Digest, ListKey};
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::wire::verify::{BYTES_ASKED, DigestQuery, Digested, GROUPS_ASKED};
use kvm_clone_core::{Error, Result};

use super::progress::Progress;
use crate::device::ReadDevice;
use crate::lane::{Readers, give_way, open_reader};
use crate::manifest::Manifest;

/// Bytes of a disk that are digested at a time; whole groups.
const STRETCH: u64 = 16 * GROUP_LEN;
/// Stretches in flight.
const AHEAD: usize = 2;
/// Bytes read for one answer: so much work that the way to the controller and back does not count, so little that it tells how
/// far it is.
const PAGE: u64 = 1 << 30;
/// Groups of a manifest in one answer.
const PAGE_GROUPS: usize = 4096;
/// What is stopped where the request is.
const WORK: &str = "the comparing";
/// Groups whose blocks are digested at a time.
const AT_ONCE: usize = 16;

/// The digests of groups from this one on.
pub(super) fn groups(query: &DigestQuery, from: u64, progress: &Progress) -> Result<GroupPage> {
    if from > groups_of(query.size) {
        return Err(Error::internal(format!("there is no group {from}")));
    }
    give_way();
    match &query.of {
        Digested::Disk(image) => disk_groups(&disk(image, query.size)?, query, from, progress),
        Digested::Manifest(path) => manifest_groups(&manifest(path, query)?, from, progress),
    }
}

/// The digests of all blocks of these groups.
pub(super) fn blocks(query: &DigestQuery, groups: &[u64], progress: &Progress) -> Result<Vec<Digest>> {
    let all = groups_of(query.size);
    if groups.len() > GROUPS_ASKED || groups.iter().any(|group| *group >= all) {
        return Err(Error::internal("blocks of groups that cannot be asked for"));
    }
    give_way();
    match &query.of {
        Digested::Disk(image) => disk_blocks(&disk(image, query.size)?, query, groups, progress),
        Digested::Manifest(path) => {
            let manifest = manifest(path, query)?;
            let in_group = |group| blocks_in(group, query.size, query.block);
            let blocks = groups.iter().map(|group| manifest.read(group * GROUP_LEN, in_group(*group)));
            Ok(blocks.collect::<Result<Vec<_>>>()?.concat())
        }
    }
}

/// What a disk holds there.
pub(super) fn read(image: &ImageSpec, offset: u64, len: u64) -> Result<Vec<u8>> {
    let wanted = usize::try_from(len).ok().filter(|_| len <= BYTES_ASKED);
    let mut bytes = vec![0; wanted.ok_or_else(|| Error::internal(format!("{len} bytes are too many")))?];
    give_way();
    let device = open_reader(image)?;
    device.read_at(&mut bytes, offset)?;
    device.drop_cache(offset, len);
    Ok(bytes)
}

/// An open disk that has as many bytes as count.
fn disk(image: &ImageSpec, size: u64) -> Result<Arc<dyn ReadDevice>> {
    let device: Arc<dyn ReadDevice> = Arc::from(open_reader(image)?);
    if device.size() >= size {
        return Ok(device);
    }
    let message = format!("{} has {} bytes and not {size} any more", image.path, device.size());
    Err(Error::conflict(message).with("path", &image.path).help("Run the command again when nobody works on the disk"))
}

/// A manifest that was found to be whole, opened again.
fn manifest(path: &str, query: &DigestQuery) -> Result<Manifest> {
    let another = |why: String| {
        Error::conflict(format!("the manifest {path} is not what it was any more: {why}"))
            .with("path", path)
            .help("Run the command again")
    };
    let manifest = Manifest::open(Path::new(path))?.map_err(another)?;
    let is_same =
        (&manifest.header().key, manifest.disk_size(), manifest.block()) == (&query.key, query.size, query.block);
    if is_same {
        return Ok(manifest);
    }
    Err(another("it is of another disk".to_owned()))
}

fn disk_groups(device: &Arc<dyn ReadDevice>, query: &DigestQuery, from: u64, progress: &Progress) -> Result<GroupPage> {
    let (readers, lists) = (Readers::start(&query.key, query.block), ListKey::of(&query.key));
    let mut groups = Vec::new();
    let mut waiting = VecDeque::new();
    let (mut at, mut read) = (from * GROUP_LEN, 0);
    loop {
        while at < query.size && read < PAGE && waiting.len() < AHEAD {
            progress.go_on(WORK)?;
            let len = STRETCH.min(query.size - at);
            let digesting = readers.digest(device, at, len)?;
            read += digesting.bytes();
            if digesting.bytes() == 0 {
                progress.add(1);
            } else {
                waiting.push_back((at, len, digesting));
            }
            at += len;
        }
        let Some((offset, len, digesting)) = waiting.pop_front() else { break };
        let (digests, read) = digesting.finish()?;
        device.drop_cache(offset, len);
        progress.add(read);
        let first = offset / GROUP_LEN;
        groups.extend(
            told(&lists.groups(&digests, query.block))
                .iter()
                .map(|(group, digest)| (first + u64::from(*group), *digest)),
        );
    }
    Ok(GroupPage { groups, next: (at < query.size).then_some(at / GROUP_LEN) })
}

fn disk_blocks(
    device: &Arc<dyn ReadDevice>,
    query: &DigestQuery,
    groups: &[u64],
    progress: &Progress,
) -> Result<Vec<Digest>> {
    let readers = Readers::start(&query.key, query.block);
    let mut digests = Vec::new();
    for some in groups.chunks(AT_ONCE) {
        progress.go_on(WORK)?;
        let place = |group: &u64| (group * GROUP_LEN, GROUP_LEN.min(query.size - group * GROUP_LEN));
        let places: Vec<(u64, u64)> = some.iter().map(place).collect();
        let digesting = places.iter().map(|(offset, len)| readers.digest(device, *offset, *len));
        for ((offset, len), digesting) in places.iter().zip(digesting.collect::<Result<Vec<_>>>()?) {
            digests.extend(digesting.finish()?.0);
            device.drop_cache(*offset, *len);
            progress.add(*len);
        }
    }
    Ok(digests)
}

fn manifest_groups(manifest: &Manifest, from: u64, progress: &Progress) -> Result<GroupPage> {
    let lists = ListKey::of(&manifest.header().key);
    let mut page = GroupPage { groups: Vec::new(), next: None };
    let block = manifest.block();
    let in_group = block.in_group() as u64;
    manifest.for_each_run(BlockIndex(from * in_group), |first, digests| {
        progress.go_on(WORK)?;
        progress.add(digests.len() as u64);
        let first = first.0 / in_group;
        let found = lists.groups(digests, block);
        page.groups.extend(told(&found).iter().map(|(group, digest)| (first + u64::from(*group), *digest)));
        if page.groups.len() < PAGE_GROUPS {
            return Ok(ControlFlow::Continue(()));
        }
        page.next = Some(first + found.len() as u64).filter(|next| *next < groups_of(manifest.disk_size()));
        Ok(ControlFlow::Break(()))
    })?;
    Ok(page)
}

#[cfg(test)]
mod tests;
