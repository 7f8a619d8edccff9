//! What a target has of a disk already: its digests, from its manifest or from reading it.
//!
//! A staging image that an interrupted try has begun counts as far as it goes: a new image is its own base, an overlay lies
//! over the base and is read where it holds something. Neither is believed.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use kvm_clone_core::blocks::{BlockSize, Digest, DigestKey, Root};
use kvm_clone_core::wire::lane::{Base, BaseDigests, ImageSpec, OnDivergence, Segment, Trust};
use kvm_clone_core::{Error, Result};

use super::super::images::open_reader;
use super::super::readers::{Digesting, Readers};
use super::super::verify;
use super::grown::Grown;
use crate::buffer::Buffer;
use crate::device::ReadDevice;
use crate::device::new_qcow2::Written;
use crate::manifest::Manifest;

/// An open base, as large as the disk is now.
pub(super) struct OpenBase {
    path: String,
    key: DigestKey,
    /// The length of the lane's blocks; the manifest's may be others.
    block: BlockSize,
    device: Arc<dyn ReadDevice>,
    known: Known,
    begun: Begun,
}

/// What an interrupted try has left of the image that is written.
enum Begun {
    Nothing,
    /// The base is that image, new and begun.
    Itself,
    /// An overlay over the base.
    Over(Written, Arc<dyn ReadDevice>),
}

/// What is known of it without reading it.
enum Known {
    Nothing,
    /// All: it is not read.
    Sealed(Manifest),
    /// What it should be.
    Checked(Manifest, OnDivergence),
}

/// The digests of a segment of a base.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) digests: Vec<Digest>,
    /// Bytes read for them.
    pub(super) read: u64,
    /// Blocks that are not what the manifest says.
    pub(super) diverged: u64,
    /// What an interrupted try has left, by the numbers of its blocks.
    pub(super) begun: Vec<Range<usize>>,
}

impl OpenBase {
    /// Opens a base of a disk that has `size` bytes now, and that is written to `staging`; also says why its manifest is not
    /// believed, if it is not.
    pub(super) fn open(
        base: &Base,
        staging: &ImageSpec,
        key: &DigestKey,
        (block, size): (BlockSize, u64),
    ) -> Result<(Self, Option<String>)> {
        let device: Arc<dyn ReadDevice> = Arc::from(open_reader(&base.image)?);
        let (mut open, why) = Self::over(device, base, key, (block, size))?;
        if base.begun && base.image.path == staging.path {
            open.begun = Begun::Itself;
        } else if base.begun {
            open.begun = Begun::Over(Written::open(Path::new(&staging.path))?, Arc::from(open_reader(staging)?));
        }
        Ok((open, why))
    }

    pub(super) fn over(
        device: Arc<dyn ReadDevice>,
        base: &Base,
        key: &DigestKey,
        (block, size): (BlockSize, u64),
    ) -> Result<(Self, Option<String>)> {
        let path = base.image.path.clone();
        if device.size() > size {
            return Err(Error::internal(format!("{path} is larger than the disk that it becomes")).with("path", path));
        }
        let (known, why) = match base.digests.as_ref().map(|digests| know(digests, key, block, device.size())) {
            None => (Known::Nothing, None),
            Some(Ok(known)) => (known, None),
            Some(Err(why)) => (Known::Nothing, Some(why)),
        };
        let device = Arc::new(Grown::to(device, size));
        Ok((Self { path, key: key.clone(), block, device, known, begun: Begun::Nothing }, why))
    }

    /// Begins to look at a segment.
    pub(super) fn look(self: &Arc<Self>, readers: &Readers, segment: Segment) -> Result<Looking> {
        let read = || readers.digest(&self.device, segment.offset, segment.len);
        let known = match &self.known {
            Known::Nothing => Coming::Read(read()?),
            Known::Sealed(manifest) => Coming::Told(told(manifest, segment)?),
            Known::Checked(manifest, _) if manifest.block() == self.block => {
                Coming::Checked { read: read()?, as_then: None, told: told(manifest, segment)? }
            }
            Known::Checked(manifest, _) => {
                let told = told(manifest, segment)?;
                let read = read()?;
                // From the page cache, where there is one.
                let as_then = readers.digest_by(manifest.block(), &self.device, segment.offset, segment.len)?;
                Coming::Checked { read, as_then: Some(as_then), told }
            }
        };
        let begun = self.look_at_begun(readers, segment)?;
        Ok(Looking { base: Arc::clone(self), segment, known, begun })
    }

    /// What an interrupted try has left of a segment: its blocks and, where they are not the base's, their digests.
    fn look_at_begun(&self, readers: &Readers, segment: Segment) -> Result<Vec<(Range<usize>, Option<Digesting>)>> {
        match &self.begun {
            Begun::Nothing => Ok(Vec::new()),
            Begun::Itself => Ok(vec![(0..self.block.count(segment.len), None)]),
            Begun::Over(written, device) => {
                let mut found = Vec::new();
                for blocks in self.whole_blocks(segment, &written.runs(segment.offset, segment.len)?) {
                    let (offset, len) = verify::bytes(segment, &blocks, self.block);
                    found.push((blocks, Some(readers.digest(device, offset, len)?)));
                }
                Ok(found)
            }
        }
    }

    /// The blocks of a segment that runs of it lie in: a block may be longer than what was written of it.
    fn whole_blocks(&self, segment: Segment, runs: &[Range<u64>]) -> Vec<Range<usize>> {
        let block = |at: u64| self.block.count(at - segment.offset);
        // Back to where the block begins that the run begins in.
        verify::joined(runs.iter().map(|run| block(run.start - run.start % self.block.bytes())..block(run.end)))
    }

    /// The block of the manifest that had another length when the manifest was made, if it lies in this segment: its number
    /// there, where it lies, its length then, and its length now. A disk that ended inside a block and has grown has one.
    fn cut_block(&self, segment: Segment) -> Option<(usize, u64, usize, usize)> {
        let (Known::Sealed(manifest) | Known::Checked(manifest, _)) = &self.known else { return None };
        let block = manifest.block();
        let then = manifest.disk_size() % block.bytes();
        let offset = manifest.disk_size() - then;
        let end = segment.offset + segment.len;
        let now = block.bytes().min(end.saturating_sub(offset));
        let found = then > 0 && then != now && (segment.offset..end).contains(&offset);
        let len = |len: u64| usize::try_from(len).unwrap_or(block.in_memory());
        found.then(|| (block.count(offset - segment.offset), offset, len(then), len(now)))
    }

    fn block(&self, offset: u64, len: usize) -> Result<Digest> {
        let mut data = Buffer::zeroed(len);
        self.device.read_at(&mut data, offset)?;
        Ok(self.key.block(&data))
    }

    /// The digests of what the manifest tells, as long as it is now, and how many bytes were read for that.
    fn told_now(&self, segment: Segment, mut digests: Vec<Digest>) -> Result<(Vec<Digest>, u64)> {
        let cut = self.cut_block(segment).filter(|(index, ..)| !digests[*index].is_zero());
        let Some((index, offset, _, now)) = cut else { return Ok((digests, 0)) };
        digests[index] = self.block(offset, now)?;
        Ok((digests, now as u64))
    }

    /// How many blocks of the manifest, of which these are the digests now, differ from what they should be.
    fn check(&self, segment: Segment, found: &[Digest], mut told: Vec<Digest>) -> Result<u64> {
        if let Some((index, offset, then, _)) = self.cut_block(segment) {
            // Compared as it was; then it counts as it is.
            let as_it_was = self.block(offset, then)? == told[index];
            told[index] = if as_it_was { found[index] } else { changed(found[index]) };
        }
        self.compare(segment, found, &told)
    }

    /// How many blocks of the manifest differ from what they should be.
    fn compare(&self, segment: Segment, found: &[Digest], told: &[Digest]) -> Result<u64> {
        let Known::Checked(manifest, then) = &self.known else { return Ok(0) };
        let mut differing = found.iter().zip(told).enumerate().filter(|(_, (found, told))| found != told);
        let Some((first, _)) = differing.next() else { return Ok(0) };
        match then {
            OnDivergence::Refuse => Err(self.diverged(segment.offset + first as u64 * manifest.block().bytes())),
            OnDivergence::Discard => Ok(1 + differing.count() as u64),
        }
    }

    fn diverged(&self, offset: u64) -> Error {
        Error::conflict(format!(
            "{} was changed since it was last brought to its source's state: the block at offset {offset} is another one",
            self.path
        ))
        .with("path", &self.path)
        .with("offset", offset)
        .help("Overwrite what was changed there: --discard-target-changes")
        .help("Or keep it: clone the source under another name")
    }
}

/// Digests that are believed, and how far; or why they are not.
fn know(
    digests: &BaseDigests,
    key: &DigestKey,
    block: BlockSize,
    image_size: u64,
) -> std::result::Result<Known, String> {
    let root = match digests.trust {
        Trust::Sealed(root) => Some(root),
        Trust::Checked(_) => None,
    };
    let manifest = whole(Path::new(&digests.manifest), key, root)?;
    // An image may be as much larger as qcow2 rounds its disk up to.
    let sectors = |size: u64| size.div_ceil(512);
    if sectors(manifest.disk_size()) != sectors(image_size) {
        return Err(format!("it is of a disk of {} bytes, not {image_size}", manifest.disk_size()));
    }
    Ok(match digests.trust {
        // Digests of other blocks are of no use to the lane: what is read for its own can as well be compared.
        Trust::Sealed(_) if manifest.block() != block => Known::Checked(manifest, OnDivergence::Refuse),
        Trust::Sealed(_) => Known::Sealed(manifest),
        Trust::Checked(on_divergence) => Known::Checked(manifest, on_divergence),
    })
}

/// A whole manifest under `key`, of the given root where one is given; or why it counts as not there.
pub(in super::super) fn whole(
    path: &Path,
    key: &DigestKey,
    root: Option<Root>,
) -> std::result::Result<Manifest, String> {
    let manifest = Manifest::open(path).map_err(|error| format!("it cannot be opened: {error}"))??;
    if manifest.header().key != *key {
        return Err("it has another key".to_owned());
    }
    if root.is_some_and(|root| root != manifest.root()) {
        return Err("it is of another point".to_owned());
    }
    manifest.prove(&mut |_| Ok(())).map_err(|error| format!("it cannot be read: {error}"))??;
    Ok(manifest)
}

/// What the manifest says of a segment. Its blocks lie in whole ones of a manifest with larger blocks.
fn told(manifest: &Manifest, segment: Segment) -> Result<Vec<Digest>> {
    if !segment.offset.is_multiple_of(manifest.block().bytes()) {
        return Err(Error::internal(format!("{segment:?} begins inside a block of its manifest")));
    }
    manifest.read(segment.offset, manifest.block().count(segment.len))
}

/// What the base has of a segment, on its way.
enum Coming {
    /// Nothing is known: it is read.
    Read(Digesting),
    /// All is known.
    Told(Vec<Digest>),
    /// It is read; what is told of it is of the same blocks, or of those that it is read by once more.
    Checked { read: Digesting, as_then: Option<Digesting>, told: Vec<Digest> },
}

/// A segment that is being looked at.
pub(super) struct Looking {
    base: Arc<OpenBase>,
    pub(super) segment: Segment,
    known: Coming,
    begun: Vec<(Range<usize>, Option<Digesting>)>,
}

impl Looking {
    /// The digests, once they are there.
    ///
    /// # Errors
    /// The base cannot be read, or is not what it should be.
    pub(super) fn finish(mut self) -> Result<Looked> {
        let begun = std::mem::take(&mut self.begun);
        let mut looked = self.finish_base()?;
        for (blocks, digesting) in begun {
            if let Some(digesting) = digesting {
                let (digests, read) = digesting.finish()?;
                looked.digests[blocks.clone()].copy_from_slice(&digests);
                looked.read += read;
            }
            looked.begun.push(blocks);
        }
        Ok(looked)
    }

    /// What the base has, as if nothing lay over it.
    fn finish_base(self) -> Result<Looked> {
        let Self { base, segment, known, .. } = self;
        let looked = |(digests, read): (Vec<Digest>, u64)| Looked { digests, read, diverged: 0, begun: Vec::new() };
        match known {
            Coming::Told(digests) => base.told_now(segment, digests).map(looked),
            Coming::Read(reading) => {
                let found = reading.finish()?;
                base.device.drop_cache(segment.offset, segment.len);
                Ok(looked(found))
            }
            Coming::Checked { read, as_then, told } => {
                let found = read.finish()?;
                let by_manifest = as_then.map(Digesting::finish).transpose()?;
                base.device.drop_cache(segment.offset, segment.len);
                let diverged =
                    base.check(segment, by_manifest.as_ref().map_or(&found.0, |(digests, _)| digests), told)?;
                Ok(Looked { diverged, ..looked(found) })
            }
        }
    }
}

/// Any other digest than this one.
fn changed(digest: Digest) -> Digest {
    let mut other = digest;
    other.0[0] ^= 1;
    other
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
