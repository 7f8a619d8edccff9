//! What a disk holds: data that a test can make again from a seed, with holes and zeroes as real disks have them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{LabError, Result};

const CHUNK: usize = 1 << 20;

/// What is written to a new disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Nothing: one hole.
    None,
    /// `bytes` of data, 1 MiB at a time, spread over the disk. Between them lie holes; now and then a run of zeroes is
    /// written out; the last bytes of the disk are data too.
    Random {
        /// Equal seeds give equal disks.
        seed: u64,
        /// How much of the disk becomes data, about.
        bytes: u64,
    },
    /// One mebibyte of data from a fixed seed, for guests that only have to find their disk.
    Bootable,
}

impl Fill {
    /// Writes the content into a raw image that is all holes.
    pub(crate) fn write(self, image: &File, size: u64, path: &Path) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Bootable => scatter(image, size, 1, CHUNK as u64).map_err(LabError::file("fill", path)),
            Self::Random { seed, bytes } => scatter(image, size, seed, bytes).map_err(LabError::file("fill", path)),
        }
    }
}

fn scatter(image: &File, size: u64, seed: u64, bytes: u64) -> std::io::Result<()> {
    let chunk = CHUNK as u64;
    let wanted = bytes.div_ceil(chunk).min(size.div_ceil(chunk));
    let stride = size.div_ceil(chunk).checked_div(wanted).unwrap_or(1).max(1) * chunk;
    for index in 0..wanted {
        write_chunk(image, size, index * stride, seed, index)?;
    }
    // A disk's end is where sizes that are no multiple of anything go wrong.
    if wanted > 0 && size > chunk {
        let tail = content(seed, u64::MAX, 4096);
        image.write_all_at(&tail, size - 4096)?;
    }
    Ok(())
}

fn write_chunk(image: &File, size: u64, offset: u64, seed: u64, index: u64) -> std::io::Result<()> {
    let length = usize::try_from(size.saturating_sub(offset)).unwrap_or(CHUNK).min(CHUNK);
    let mut data = content(seed, index, length);
    // Every eighth chunk has a quarter of written zeroes, not aligned to any block.
    if index % 8 == 7 {
        data.iter_mut().skip(10_000).take(CHUNK / 4).for_each(|byte| *byte = 0);
    }
    image.write_all_at(&data, offset)
}

/// Pseudo-random bytes (splitmix64): every chunk can be made without the ones before it.
fn content(seed: u64, index: u64, length: usize) -> Vec<u8> {
    let mut state = seed ^ index.wrapping_mul(0xd134_2543_de82_ef95);
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        data.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    data.truncate(length);
    data
}
