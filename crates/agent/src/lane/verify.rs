//! Reading back: what a segment is, as a reader who opens the image now finds it, compared with what was sent.

use std::sync::Arc;

use kvm_clone_core::blocks::{BLOCK, Digest};
use kvm_clone_core::wire::lane::{ImageSpec, Segment};
use kvm_clone_core::{Error, Result};

use super::images::open_reader;
use super::readers::{Readers, pieces};
use crate::device::ReadDevice;

/// Compares a written segment with the digests of the source's blocks.
pub(super) fn segment(readers: &Readers, image: &ImageSpec, segment: Segment, expected: &[Digest]) -> Result<()> {
    let device: Arc<dyn ReadDevice> = Arc::from(open_reader(image)?);
    let mut found = vec![Digest::ZERO; expected.len()];
    let mut coming = std::collections::VecDeque::new();
    let mut take = |coming: super::readers::Coming| -> Result<()> {
        let piece = coming.recv().map_err(|_| Error::internal("a reader thread is gone"))??;
        let first = index(piece.offset - segment.offset);
        found[first..first + piece.digests.len()].copy_from_slice(&piece.digests);
        readers.recycle(piece.data);
        Ok(())
    };
    for (offset, len) in pieces(&*device, segment.offset, segment.len)? {
        coming.push_back(readers.read(&device, offset, len)?);
        if coming.len() > 4 {
            coming.pop_front().map_or(Ok(()), &mut take)?;
        }
    }
    coming.into_iter().try_for_each(take)?;
    device.drop_cache(segment.offset, segment.len);
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(block) => Err(mismatch(image, segment.offset + block as u64 * BLOCK)),
    }
}

fn mismatch(image: &ImageSpec, offset: u64) -> Error {
    Error::verification(format!("what was written to {} at offset {offset} is not what was sent", image.path))
        .with("path", &image.path)
        .with("offset", offset)
        .help("The target's storage or memory may be faulty: look at its kernel log; nothing was made there")
}

fn index(offset: u64) -> usize {
    usize::try_from(offset / BLOCK).unwrap_or(usize::MAX)
}
