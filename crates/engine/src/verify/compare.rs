//! Comparing two disks: by digests, of which the controller hears those of groups, and those of blocks where groups differ; or bit
//! for bit, where both disks travel to the controller.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvm_clone_core::blocks::compare::{Differences, GROUP_LEN, GroupPage, blocks_in, differing_groups, groups_of};
use kvm_clone_core::blocks::{BlockSize, Digest};
use kvm_clone_core::wire::control::{Reply, Request};
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::wire::verify::{DigestQuery, Digested, GROUPS_ASKED};
use kvm_clone_core::{Error, Result};
use tokio::task::JoinSet;

use crate::host::control::{Control, unexpected};
use crate::known::KeptDigests;

/// Pieces of both disks that are on their way to the controller: with [`GROUP_LEN`] bytes of each, 16 MiB.
const IN_FLIGHT: usize = 8;

/// What has digests, and who tells them.
#[derive(Clone)]
pub(super) struct Digests {
    pub(super) control: Control,
    pub(super) query: DigestQuery,
}

impl Digests {
    async fn page(self, from: u64) -> Result<GroupPage> {
        match self.control.ask(Request::GroupDigests(self.query, from)).await? {
            Reply::GroupDigests(page) => Ok(page),
            other => Err(unexpected(&other)),
        }
    }

    async fn blocks(&self, groups: &[u64]) -> Result<Vec<Digest>> {
        match self.control.ask(Request::BlockDigests(self.query.clone(), groups.to_vec())).await? {
            Reply::BlockDigests(digests) => Ok(digests),
            other => Err(unexpected(&other)),
        }
    }
}

/// Compares a disk with the digests that were kept of it, on one host. Tells how many bytes are compared.
pub(crate) async fn with_digests(
    control: &Control,
    image: &ImageSpec,
    kept: &KeptDigests,
    compared: &impl Fn(u64),
) -> Result<Differences> {
    let KeptDigests { key, block, size, .. } = kept;
    let query = |of| DigestQuery { of, key: key.clone(), block: *block, size: *size };
    let of = |of| Digests { control: control.clone(), query: query(of) };
    let (disk, manifest) = (of(Digested::Disk(image.clone())), of(Digested::Manifest(kept.manifest.clone())));
    by_digests(&disk, &manifest, kept.size, compared).await
}

/// Compares two disks of `size` bytes by their digests, which are under one key and of blocks of one size. Tells how many bytes are compared.
pub(super) async fn by_digests(
    ours: &Digests,
    theirs: &Digests,
    size: u64,
    compared: &impl Fn(u64),
) -> Result<Differences> {
    let mut found = Differences::default();
    let (mut our_groups, mut their_groups) = (Groups::begin(ours, size), Groups::begin(theirs, size));
    let (mut at, all) = (0, groups_of(size));
    while at < all {
        tokio::try_join!(our_groups.reach(at), their_groups.reach(at))?;
        let end = our_groups.known.min(their_groups.known);
        for groups in differing_groups(&our_groups.take(end), &their_groups.take(end)).chunks(GROUPS_ASKED) {
            let (our_blocks, their_blocks) = tokio::try_join!(ours.blocks(groups), theirs.blocks(groups))?;
            note(&mut found, groups, (size, ours.query.block), &our_blocks, &their_blocks)
                .ok_or_else(|| broken("digests"))?;
        }
        at = end;
        compared(size.min(at * GROUP_LEN));
    }
    Ok(found)
}

/// Notes where the blocks of groups differ.
fn note(
    found: &mut Differences,
    groups: &[u64],
    (size, block): (u64, BlockSize),
    ours: &[Digest],
    theirs: &[Digest],
) -> Option<()> {
    let (mut ours, mut theirs) = (ours, theirs);
    for group in groups {
        let blocks = blocks_in(*group, size, block);
        let (our_here, our_rest) = ours.split_at_checked(blocks)?;
        let (their_here, their_rest) = theirs.split_at_checked(blocks)?;
        found.push_blocks(*group, (size, block), our_here, their_here)?;
        (ours, theirs) = (our_rest, their_rest);
    }
    (ours.is_empty() && theirs.is_empty()).then_some(())
}

/// The digests of one side's groups as they come: what is known, and one page on its way, so that the side reads on meanwhile.
struct Groups {
    side: Digests,
    size: u64,
    groups: VecDeque<(u64, Digest)>,
    /// Nothing is known of this group and those behind it.
    known: u64,
    /// Ends when this is dropped.
    coming: JoinSet<Result<GroupPage>>,
}

impl Groups {
    fn begin(side: &Digests, size: u64) -> Self {
        let mut groups = Self { side: side.clone(), size, groups: VecDeque::new(), known: 0, coming: JoinSet::new() };
        groups.ask_on();
        groups
    }

    fn ask_on(&mut self) {
        if self.known < groups_of(self.size) {
            self.coming.spawn(self.side.clone().page(self.known));
        }
    }

    /// Waits until this group is known.
    async fn reach(&mut self, group: u64) -> Result<()> {
        while self.known <= group {
            let Some(page) = self.coming.join_next().await else { return Ok(()) };
            let page = page.map_err(|error| Error::internal(format!("asking for digests: {error}")))??;
            self.known = page.end(self.known, self.size).ok_or_else(|| broken("digests"))?;
            self.groups.extend(page.groups);
            self.ask_on();
        }
        Ok(())
    }

    /// What is known of the groups before this one, once.
    fn take(&mut self, end: u64) -> Vec<(u64, Digest)> {
        let count = self.groups.partition_point(|(group, _)| *group < end);
        self.groups.drain(..count).collect()
    }
}

/// A disk, and who reads it.
#[derive(Clone)]
pub(super) struct Bytes {
    control: Control,
    image: ImageSpec,
}

impl Bytes {
    pub(super) fn of(control: &Control, image: &ImageSpec) -> Self {
        Self { control: control.clone(), image: image.clone() }
    }

    /// Which groups may hold data, from this one on, and the first one that is not told of.
    async fn data(&self, from: u64, all: u64) -> Result<(BTreeSet<u64>, u64)> {
        let ask = Request::Segments { image: self.image.clone(), segment_len: GROUP_LEN, from };
        match self.control.ask(ask).await? {
            Reply::Segments { segments, next } => {
                let end = next.unwrap_or(all).min(all);
                if end <= from {
                    return Err(broken("segments"));
                }
                Ok((
                    segments.into_iter().map(|(group, _)| group).filter(|group| (from..end).contains(group)).collect(),
                    end,
                ))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        match self.control.ask(Request::Read { image: self.image.clone(), offset, len }).await? {
            Reply::Bytes(bytes) if bytes.len() as u64 == len => Ok(bytes),
            Reply::Bytes(_) => Err(broken("bytes")),
            other => Err(unexpected(&other)),
        }
    }
}

/// Compares the first `size` bytes of two disks bit for bit: what may hold data in either is read from both. Tells how many bytes
/// are compared.
pub(super) async fn by_bytes(ours: &Bytes, theirs: &Bytes, size: u64, compared: &impl Fn(u64)) -> Result<Differences> {
    let mut found = Differences::default();
    let (mut at, all) = (0, groups_of(size));
    while at < all {
        let ((our_data, our_end), (their_data, their_end)) =
            tokio::try_join!(ours.data(at, all), theirs.data(at, all))?;
        let end = our_end.min(their_end);
        let groups: Vec<u64> = our_data.union(&their_data).copied().filter(|group| *group < end).collect();
        for some in groups.chunks(IN_FLIGHT) {
            for (offset, (our_bytes, their_bytes)) in read_both(ours, theirs, some, size).await? {
                found.push_bytes(offset, &our_bytes, &their_bytes).ok_or_else(|| broken("bytes"))?;
                compared(offset + our_bytes.len() as u64);
            }
        }
        at = end;
        compared(size.min(at * GROUP_LEN));
    }
    Ok(found)
}

/// What both disks hold in these groups, by offset.
async fn read_both(
    ours: &Bytes,
    theirs: &Bytes,
    groups: &[u64],
    size: u64,
) -> Result<BTreeMap<u64, (Vec<u8>, Vec<u8>)>> {
    let mut reading = JoinSet::new();
    for group in groups {
        let (ours, theirs) = (ours.clone(), theirs.clone());
        let offset = group * GROUP_LEN;
        let len = GROUP_LEN.min(size - offset);
        reading.spawn(async move {
            let both = tokio::try_join!(ours.read(offset, len), theirs.read(offset, len))?;
            Ok((offset, both))
        });
    }
    let mut read = BTreeMap::new();
    while let Some(both) = reading.join_next().await {
        let (offset, both) = both.map_err(|error| Error::internal(format!("reading both disks: {error}")))??;
        read.insert(offset, both);
    }
    Ok(read)
}

fn broken(what: &str) -> Error {
    Error::transfer(format!("the agent told {what} that were not asked for"))
        .help("Report this: both agents are of one build")
}
