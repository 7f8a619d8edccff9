//! How long a block is: the unit of comparison.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::compare::GROUP_LEN;
use crate::error::{Error, Result};
use crate::size::ByteSize;

const LEAST: u32 = 4 << 10;
/// A group, which is also what is read at once and what a frame carries at most, holds at least one block.
const MOST: u32 = 1 << 20;
const _: () = assert!(MOST as u64 == GROUP_LEN);

/// The length of a block: a power of two from 4 KiB to 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct BlockSize(u32);

impl BlockSize {
    /// A block of so many bytes, if there is one: the number may come from a file or a peer.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= LEAST && bytes <= MOST { Some(Self(bytes)) } else { None }
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        // `as` because a widening `From` is not const.
        self.0 as u64
    }

    /// The same as a length in memory.
    #[must_use]
    pub const fn in_memory(self) -> usize {
        self.0 as usize
    }

    /// How many blocks so many bytes have; the last one may be short.
    #[must_use]
    pub fn count(self, bytes: u64) -> usize {
        usize::try_from(bytes.div_ceil(self.bytes())).unwrap_or(usize::MAX)
    }

    /// How many blocks a group has.
    #[must_use]
    pub const fn in_group(self) -> usize {
        (MOST / self.0) as usize
    }
}

impl Default for BlockSize {
    /// 64 KiB, which is also a qcow2 cluster.
    fn default() -> Self {
        Self(64 << 10)
    }
}

impl FromStr for BlockSize {
    type Err = Error;

    /// Reads `4K`, `65536`, `1M`.
    fn from_str(text: &str) -> Result<Self> {
        let bytes = text.parse::<ByteSize>().ok().and_then(|size| u32::try_from(size.0).ok());
        bytes.and_then(Self::new).ok_or_else(|| refuse(text))
    }
}

impl TryFrom<u32> for BlockSize {
    type Error = Error;

    fn try_from(bytes: u32) -> Result<Self> {
        Self::new(bytes).ok_or_else(|| refuse(&bytes.to_string()))
    }
}

impl From<BlockSize> for u32 {
    fn from(size: BlockSize) -> Self {
        size.0
    }
}

impl fmt::Display for BlockSize {
    /// As users write it: `64K`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> 20 {
            0 => write!(f, "{}K", self.0 >> 10),
            mib => write!(f, "{mib}M"),
        }
    }
}

fn refuse(text: &str) -> Error {
    Error::validation(format!("{text:?} is not a block size: a power of two from 4K to 1M"))
        .with("block_size", text)
        .help("Write 4K, 8K, 16K, 32K, 64K, 128K, 256K, 512K or 1M")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_from_4k_to_1m_are_block_sizes() {
        for shift in 12..=20 {
            let size = BlockSize::new(1 << shift).unwrap();
            assert_eq!(size.to_string().parse::<BlockSize>().unwrap(), size);
            assert_eq!(size.in_group() as u64 * size.bytes(), GROUP_LEN);
        }
        assert_eq!("65536".parse::<BlockSize>().unwrap(), BlockSize::default());
        assert_eq!(BlockSize::default().to_string(), "64K");
    }

    #[test]
    fn nothing_else_is_a_block_size() {
        for text in ["", "0", "1", "2K", "3K", "5000", "96K", "2M", "4G", "64 blocks", "18446744073709551615"] {
            let error = text.parse::<BlockSize>().unwrap_err();
            assert!(error.message.contains("power of two from 4K to 1M"), "{text}: {error:?}");
        }
        assert!(serde_json::from_str::<BlockSize>("5000").is_err());
        assert_eq!(serde_json::from_str::<BlockSize>("4096").unwrap().to_string(), "4K");
    }

    #[test]
    fn short_ends_count() {
        let size = BlockSize::new(4096).unwrap();
        assert_eq!([0, 1, 4096, 4097].map(|bytes| size.count(bytes)), [0, 1, 1, 2]);
    }
}
