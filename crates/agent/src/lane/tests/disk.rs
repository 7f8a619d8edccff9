//! Disks of which the tests know what must be on them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use kvm_clone_core::blocks::{BLOCK, BLOCK_LEN, BlockSize, Digest, DigestKey, Root};
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::wire::lane::ImageSpec;
use uuid::Uuid;

use super::super::images::open_reader;
use crate::device::new_qcow2::{self, AtomicChunks};
use crate::device::{Qcow2Writer, RawWriter, WriteDevice};
use crate::manifest::ManifestFile;

/// What is on a disk, 64 KiB by 64 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) blocks: Vec<Block>,
    pub(super) size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    Hole,
    /// Zeros that are written as data.
    Zeros,
    Data(u8),
    /// 4 KiB by 4 KiB data or zeros: a bit for each two.
    Parts(u8),
}

impl Content {
    /// So many whole blocks.
    pub(super) fn new(blocks: Vec<Block>) -> Self {
        let size = blocks.len() as u64 * BLOCK;
        Self { blocks, size }
    }

    /// Blocks of data, each another one.
    pub(super) fn data(blocks: usize, seed: u8) -> Self {
        Self::new((0..blocks).map(|index| Block::Data(seed.wrapping_add(low(index % 200)))).collect())
    }

    pub(super) fn block(&self, index: usize) -> Vec<u8> {
        let len = usize::try_from(self.size - index as u64 * BLOCK).unwrap().min(BLOCK_LEN);
        match self.blocks[index] {
            Block::Hole | Block::Zeros => vec![0; len],
            Block::Data(seed) => (0..len).map(|at| seed ^ low(at % 251) ^ low(index)).collect(),
            Block::Parts(bits) => {
                (0..len).map(|at| if bits >> (at / 8192) & 1 == 1 { low(index) | 1 } else { 0 }).collect()
            }
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        (0..self.blocks.len()).flat_map(|index| self.block(index)).collect()
    }

    fn fill(&self, disk: &dyn WriteDevice) {
        for index in (0..self.blocks.len()).filter(|index| self.blocks[*index] != Block::Hole) {
            let (mut data, offset) = (self.block(index), index as u64 * BLOCK);
            // A disk that has grown is zero behind its former end.
            data.resize(usize::try_from(disk.size() - offset).unwrap().min(BLOCK_LEN), 0);
            disk.write_at(&data, offset).unwrap();
        }
    }

    /// An image with it. Unfinished ones can still be written.
    pub(super) fn image(&self, path: &Path, format: &ImageFormat, size: u64, finished: bool) -> ImageSpec {
        if *format == ImageFormat::Raw {
            self.fill(&RawWriter::create(path, size).unwrap());
        } else {
            new_qcow2::create(path, size).unwrap();
            let chunks = std::sync::Arc::new(AtomicChunks::of(path).unwrap());
            self.fill(&Qcow2Writer::open(path, chunks).unwrap());
            if finished {
                new_qcow2::finish(path, &|_| ()).unwrap();
            }
        }
        ImageSpec::new(path.to_str().unwrap(), format.clone())
    }

    pub(super) fn digests(&self, key: &DigestKey, block: BlockSize) -> Vec<Digest> {
        self.bytes().chunks(block.in_memory()).map(|bytes| key.block(bytes)).collect()
    }

    /// A manifest of it.
    pub(super) fn manifest(&self, path: &Path, key: &DigestKey, block: BlockSize) -> Root {
        ManifestFile::create(path, key, Uuid::nil(), (block, self.size)).unwrap();
        let manifest = ManifestFile::open(path).unwrap();
        manifest.write(0, &self.digests(key, block)).unwrap();
        manifest.complete(&|_| ()).unwrap().0
    }
}

fn low(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

/// What a reader finds on an image.
pub(super) fn read(image: &ImageSpec) -> Vec<u8> {
    let device = open_reader(image).unwrap();
    let mut data = vec![9; usize::try_from(device.size()).unwrap()];
    device.read_at(&mut data, 0).unwrap();
    data
}

/// Flips a bit of a file.
pub(super) fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}
