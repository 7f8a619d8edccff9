//! What a target has of a disk already: its digests, from its manifest or from reading it.
//!
//! A staging image that an interrupted try has begun counts as far as it goes: a new image is its own base, an overlay lies
//! over the base and is read where it holds something. Neither is believed.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use kvm_clone_core::blocks::{BLOCK, BLOCK_LEN, Digest, DigestKey, Root};
use kvm_clone_core::wire::lane::{Base, BaseDigests, ImageSpec, OnDivergence, Segment, Trust};
use kvm_clone_core::{Error, Result};

use super::super::images::open_reader;
use super::super::readers::{Digesting, Readers, block_count};
use super::grown::Grown;
use crate::device::ReadDevice;
use crate::device::new_qcow2::Written;
use crate::manifest::Manifest;

/// An open base, as large as the disk is now.
pub(super) struct OpenBase {
    path: String,
    key: DigestKey,
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
    pub(super) fn open(base: &Base, staging: &ImageSpec, key: &DigestKey, size: u64) -> Result<(Self, Option<String>)> {
        let device: Arc<dyn ReadDevice> = Arc::from(open_reader(&base.image)?);
        let (mut open, why) = Self::over(device, base, key, size)?;
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
        size: u64,
    ) -> Result<(Self, Option<String>)> {
        let path = base.image.path.clone();
        if device.size() > size {
            return Err(Error::internal(format!("{path} is larger than the disk that it becomes")).with("path", path));
        }
        let (known, why) = match base.digests.as_ref().map(|digests| know(digests, key, device.size())) {
            None => (Known::Nothing, None),
            Some(Ok(known)) => (known, None),
            Some(Err(why)) => (Known::Nothing, Some(why)),
        };
        let device = Arc::new(Grown::to(device, size));
        Ok((Self { path, key: key.clone(), device, known, begun: Begun::Nothing }, why))
    }

    /// Begins to look at a segment.
    pub(super) fn look(self: &Arc<Self>, readers: &Readers, segment: Segment) -> Result<Looking> {
        let blocks = block_count(segment.len);
        let told = match &self.known {
            Known::Nothing => None,
            Known::Sealed(manifest) | Known::Checked(manifest, _) => Some(manifest.read(segment.offset, blocks)?),
        };
        let reading = match &self.known {
            Known::Sealed(_) => None,
            Known::Nothing | Known::Checked(..) => Some(readers.digest(&self.device, segment.offset, segment.len)?),
        };
        let begun = self.look_at_begun(readers, segment)?;
        Ok(Looking { base: Arc::clone(self), segment, told, reading, begun })
    }

    /// What an interrupted try has left of a segment: its blocks and, where they are not the base's, their digests.
    fn look_at_begun(&self, readers: &Readers, segment: Segment) -> Result<Vec<(Range<usize>, Option<Digesting>)>> {
        match &self.begun {
            Begun::Nothing => Ok(Vec::new()),
            Begun::Itself => Ok(vec![(0..block_count(segment.len), None)]),
            Begun::Over(written, device) => {
                let mut found = Vec::new();
                for run in written.runs(segment.offset, segment.len)? {
                    let blocks = block_count(run.start - segment.offset)..block_count(run.end - segment.offset);
                    found.push((blocks, Some(readers.digest(device, run.start, run.end - run.start)?)));
                }
                Ok(found)
            }
        }
    }

    /// The block that had another length when the manifest was made, if it lies in this segment: its number there, where it
    /// lies, its length then, and its length now. A disk that ended inside a block and has grown has one.
    fn cut_block(&self, segment: Segment) -> Option<(usize, u64, usize, usize)> {
        let (Known::Sealed(manifest) | Known::Checked(manifest, _)) = &self.known else { return None };
        let then = manifest.disk_size() % BLOCK;
        let offset = manifest.disk_size() - then;
        let end = segment.offset + segment.len;
        let now = BLOCK.min(end.saturating_sub(offset));
        let found = then > 0 && then != now && (segment.offset..end).contains(&offset);
        let len = |len: u64| usize::try_from(len).unwrap_or(BLOCK_LEN);
        found.then(|| (block_count(offset - segment.offset), offset, len(then), len(now)))
    }

    fn block(&self, offset: u64, len: usize) -> Result<Digest> {
        let mut data = vec![0; len];
        self.device.read_at(&mut data, offset)?;
        Ok(self.key.block(&data))
    }

    /// How many blocks differ from what they should be.
    fn compare(&self, segment: Segment, found: &[Digest], told: &[Digest], then: OnDivergence) -> Result<u64> {
        let mut differing = found.iter().zip(told).enumerate().filter(|(_, (found, told))| found != told);
        let Some((first, _)) = differing.next() else { return Ok(0) };
        match then {
            OnDivergence::Refuse => Err(self.diverged(segment.offset + first as u64 * BLOCK)),
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
fn know(digests: &BaseDigests, key: &DigestKey, image_size: u64) -> std::result::Result<Known, String> {
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

/// A segment that is being looked at.
pub(super) struct Looking {
    base: Arc<OpenBase>,
    pub(super) segment: Segment,
    /// What the manifest says.
    told: Option<Vec<Digest>>,
    reading: Option<Digesting>,
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
        let Self { base, segment, told, reading, .. } = self;
        let cut = base.cut_block(segment);
        let Some(reading) = reading else {
            let mut digests = told.unwrap_or_default();
            let mut read = 0;
            if let Some((index, offset, _, now)) = cut.filter(|(index, ..)| !digests[*index].is_zero()) {
                digests[index] = base.block(offset, now)?;
                read = now as u64;
            }
            return Ok(Looked { digests, read, diverged: 0, begun: Vec::new() });
        };
        let (digests, read) = reading.finish()?;
        base.device.drop_cache(segment.offset, segment.len);
        let diverged = match (&base.known, told) {
            (Known::Checked(_, on_divergence), Some(mut told)) => {
                if let Some((index, offset, then, _)) = cut {
                    // Compared as it was; then it counts as it is.
                    let as_it_was = base.block(offset, then)? == told[index];
                    told[index] = if as_it_was { digests[index] } else { changed(digests[index]) };
                }
                base.compare(segment, &digests, &told, *on_divergence)?
            }
            _ => 0,
        };
        Ok(Looked { digests, read, diverged, begun: Vec::new() })
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
