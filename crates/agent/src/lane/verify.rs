//! Reading back: what a segment is, as a reader who opens the image now finds it, compared with what was sent.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use kvm_clone_core::blocks::{BLOCK, BlockSize, Digest};
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::wire::lane::{ImageSpec, Segment, Verify};
use kvm_clone_core::{Error, Result};

use super::images::open_reader;
use super::readers::Readers;
use crate::device::{ReadDevice, forget_file};

/// Compares what was written of a segment, by the numbers of its blocks, with the digests of the source's blocks. From the medium
/// is read what was synced before.
pub(super) fn segment(
    readers: &Readers,
    image: &ImageSpec,
    how: Verify,
    segment: Segment,
    expected: &[Digest],
    written: &[Range<usize>],
) -> Result<()> {
    if written.is_empty() {
        return Ok(());
    }
    let device: Arc<dyn ReadDevice> = Arc::from(open_reader(image)?);
    read_back(readers, image, &device, how, segment, expected, written)
}

/// The same, of an image that is open already.
fn read_back(
    readers: &Readers,
    image: &ImageSpec,
    device: &Arc<dyn ReadDevice>,
    how: Verify,
    segment: Segment,
    expected: &[Digest],
    written: &[Range<usize>],
) -> Result<()> {
    if how == Verify::Media {
        forget_file(Path::new(&image.path))?;
    }
    let block = readers.block();
    let written = match image.format {
        ImageFormat::Raw => written.to_vec(),
        _ => filled_up(written, block, expected.len()),
    };
    let mut reading = Vec::new();
    for range in &written {
        let (offset, len) = bytes(segment, range, block);
        reading.push(readers.digest(device, offset, len)?);
    }
    for (range, reading) in written.iter().zip(reading) {
        let (found, _) = reading.finish()?;
        let (offset, len) = bytes(segment, range, block);
        device.drop_cache(offset, len);
        if let Some(at) = found.iter().zip(&expected[range.clone()]).position(|(found, expected)| found != expected) {
            return Err(mismatch(image, offset + at as u64 * block.bytes()));
        }
    }
    Ok(())
}

/// What was written with blocks of an image of clusters: all blocks of those that they lie in. One that is new was filled up with
/// what was there before.
fn filled_up(written: &[Range<usize>], block: BlockSize, blocks: usize) -> Vec<Range<usize>> {
    let in_cluster = usize::try_from(BLOCK / block.bytes()).map_or(1, |blocks| blocks.max(1));
    let whole = |range: &Range<usize>| {
        range.start - range.start % in_cluster..range.end.next_multiple_of(in_cluster).min(blocks)
    };
    joined(written.iter().map(whole))
}

/// Rising ranges, of which those that touch or overlap are one.
pub(super) fn joined(ranges: impl IntoIterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.end >= range.start => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}

/// Where blocks of a segment lie, and how many bytes they have.
pub(super) fn bytes(segment: Segment, blocks: &Range<usize>, block: BlockSize) -> (u64, u64) {
    let end = (segment.offset + blocks.end as u64 * block.bytes()).min(segment.offset + segment.len);
    let offset = segment.offset + blocks.start as u64 * block.bytes();
    (offset, end.saturating_sub(offset))
}

fn mismatch(image: &ImageSpec, offset: u64) -> Error {
    Error::verification(format!("what was written to {} at offset {offset} is not what was sent", image.path))
        .with("path", &image.path)
        .with("offset", offset)
        .help("The target's storage or memory may be faulty: look at its kernel log; nothing was made there")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::io::IoSliceMut;
    use std::sync::Mutex;

    use kvm_clone_core::blocks::{BLOCK_LEN, DigestKey, Extent};
    use rustix::io::{ReadWriteFlags, preadv2};

    use super::*;
    use crate::device::{RawReader, RawWriter, WriteDevice};

    const BLOCKS: usize = 64;

    /// A disk that notes of each read whether its first page was in the page cache before.
    struct Watched {
        disk: RawReader,
        file: File,
        cached: Mutex<Vec<bool>>,
    }

    impl ReadDevice for Watched {
        fn size(&self) -> u64 {
            self.disk.size()
        }

        fn extents(&self, offset: u64, len: u64) -> crate::device::Result<Vec<Extent>> {
            self.disk.extents(offset, len)
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> crate::device::Result<()> {
            // preadv2(2), `RWF_NOWAIT`: reads what is in the page cache, and fails where the storage would be needed.
            let mut page = [0; 4096];
            let seen = preadv2(&self.file, &mut [IoSliceMut::new(&mut page)], offset, ReadWriteFlags::NOWAIT);
            self.cached.lock().unwrap().push(seen.is_ok());
            self.disk.read_at(buf, offset)
        }

        fn drop_cache(&self, offset: u64, len: u64) {
            self.disk.drop_cache(offset, len);
        }
    }

    fn cached(path: &Path, how: Verify) -> Vec<bool> {
        let size = BLOCKS as u64 * BLOCK;
        let content = vec![7; BLOCK_LEN * BLOCKS];
        let disk = RawWriter::create(path, size).unwrap();
        disk.write_at(&content, 0).unwrap();
        disk.sync().unwrap();
        let (disk, file) = (RawReader::open(path).unwrap(), File::open(path).unwrap());
        let watched = Arc::new(Watched { disk, file, cached: Mutex::default() });
        let device: Arc<dyn ReadDevice> = Arc::clone(&watched) as _;
        let key = DigestKey::new([1; 32]);
        let expected = vec![key.block(&content[..BLOCK_LEN]); BLOCKS];
        let whole = Segment { disk: 0, offset: 0, len: size };
        let written = [Range { start: 0, end: 16 }, Range { start: 32, end: BLOCKS }];
        let image = ImageSpec::new(path.to_str().unwrap(), ImageFormat::Raw);
        read_back(&Readers::start(&key, BlockSize::default()), &image, &device, how, whole, &expected, &written)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        let cached = watched.cached.lock().unwrap();
        cached.clone()
    }

    #[test]
    fn from_the_medium_nothing_comes_from_the_page_cache() {
        // A file system in memory forgets nothing.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("disk");
        let on = cached(&path, Verify::On);
        assert_eq!(on, [true; 3], "what was written is in the page cache");
        // A reader may be overtaken by the kernel's reading ahead for the one before it; the first one cannot be.
        let media = cached(&path, Verify::Media);
        assert_eq!((media.len(), media[0]), (3, false), "{media:?}");
    }

    #[test]
    fn what_a_cluster_was_filled_up_with_is_read_back_beside_the_block() {
        let written = [Range { start: 5, end: 6 }, Range { start: 40, end: 41 }, Range { start: 70, end: 71 }];
        let small = BlockSize::new(4096).unwrap();
        assert_eq!(filled_up(&written, small, 75), [0..16, 32..48, 64..75]);
        assert_eq!(filled_up(&written, BlockSize::default(), 75), written);
    }
}
