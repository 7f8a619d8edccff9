//! Reading back: what a segment is, as a reader who opens the image now finds it, compared with what was sent.

use std::ops::Range;
use std::sync::Arc;

use kvm_clone_core::blocks::{BLOCK, Digest};
use kvm_clone_core::wire::lane::{ImageSpec, Segment};
use kvm_clone_core::{Error, Result};

use super::images::open_reader;
use super::readers::Readers;
use crate::device::ReadDevice;

/// Compares what was written of a segment, by the numbers of its blocks, with the digests of the source's blocks.
pub(super) fn segment(
    readers: &Readers,
    image: &ImageSpec,
    segment: Segment,
    expected: &[Digest],
    written: &[Range<usize>],
) -> Result<()> {
    if written.is_empty() {
        return Ok(());
    }
    let device: Arc<dyn ReadDevice> = Arc::from(open_reader(image)?);
    let mut reading = Vec::new();
    for range in written {
        let (offset, len) = bytes(segment, range);
        reading.push(readers.digest(&device, offset, len)?);
    }
    for (range, reading) in written.iter().zip(reading) {
        let (found, _) = reading.finish()?;
        let (offset, len) = bytes(segment, range);
        device.drop_cache(offset, len);
        if let Some(block) = found.iter().zip(&expected[range.clone()]).position(|(found, expected)| found != expected)
        {
            return Err(mismatch(image, offset + block as u64 * BLOCK));
        }
    }
    Ok(())
}

/// Where blocks of a segment lie, and how many bytes they have.
fn bytes(segment: Segment, blocks: &Range<usize>) -> (u64, u64) {
    let end = (segment.offset + blocks.end as u64 * BLOCK).min(segment.offset + segment.len);
    let offset = segment.offset + blocks.start as u64 * BLOCK;
    (offset, end.saturating_sub(offset))
}

fn mismatch(image: &ImageSpec, offset: u64) -> Error {
    Error::verification(format!("what was written to {} at offset {offset} is not what was sent", image.path))
        .with("path", &image.path)
        .with("offset", offset)
        .help("The target's storage or memory may be faulty: look at its kernel log; nothing was made there")
}
