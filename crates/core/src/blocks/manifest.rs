//! The layout of a manifest: the block digests of one disk at one point, as a file.
//!
//! ```text
//! 0     8  magic            48  32  key
//! 8     4  version          80  16  operation id
//! 12    4  block size       96  32  root (zeros while incomplete)
//! 16    8  disk size       128  32  BLAKE3 of bytes 0..128
//! 24    4  flags: bit 0 = complete
//! 28   20  zeros           160  ..  zeros, up to 4096
//! 4096 + 16 * i            digest of block i; zero blocks are holes
//! ```
//!
//! All numbers are little-endian. The key stands beside what it made, so that whoever has the digests can go on with them; only
//! the host's administrator may read either. The hash finds torn and flipped headers; it proves nothing about who wrote them. A
//! manifest never becomes trusted by its content alone, but by the identity of the image it belongs to.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{BlockIndex, BlockSize, Digest, DigestKey};

/// The length of the header.
pub const HEADER_LEN: usize = 4096;
/// The length of one digest.
pub const ENTRY_LEN: u64 = 16;

const MAGIC: [u8; 8] = *b"kvmcloMF";
const VERSION: u32 = 2;
const FLAG_COMPLETE: u32 = 1;
const HASHED: usize = 128;
const ROOT_CONTEXT: &str = "kvm-clone 2025 manifest root v1";

/// Why a manifest is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// Shorter than a header, or other magic bytes.
    #[error("this is not a manifest")]
    NotAManifest,
    /// Written by another version of the program.
    #[error("the manifest has version {0}, this program knows version {VERSION}")]
    Version(u32),
    /// The header's own hash differs.
    #[error("the manifest's header is damaged")]
    Damaged,
    /// The numbers make no sense.
    #[error("the manifest describes an impossible disk: blocks of {block_size} bytes, {disk_size} bytes in all")]
    Geometry {
        /// As written there.
        block_size: u32,
        /// As written there.
        disk_size: u64,
    },
    /// Digests were given in another order, twice, or beyond the disk.
    #[error("block {0:?} is out of order or beyond the disk")]
    Order(BlockIndex),
}

/// How a disk is cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Geometry {
    block: BlockSize,
    disk_size: u64,
}

impl Geometry {
    /// Checks the size, which may come from a file or a peer.
    ///
    /// # Errors
    /// Where the disk is too large for a file's offsets.
    pub fn new(block: BlockSize, disk_size: u64) -> Result<Self, ManifestError> {
        let sane = disk_size <= i64::MAX as u64;
        sane.then_some(Self { block, disk_size }).ok_or(ManifestError::Geometry { block_size: block.into(), disk_size })
    }

    /// The length of a block.
    #[must_use]
    pub const fn block(&self) -> BlockSize {
        self.block
    }

    /// The size of the disk.
    #[must_use]
    pub const fn disk_size(&self) -> u64 {
        self.disk_size
    }

    /// How many blocks there are; the last one may be short.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.disk_size.div_ceil(self.block.bytes())
    }

    /// How long a manifest file of this disk is.
    #[must_use]
    pub const fn file_len(&self) -> u64 {
        entry_offset(BlockIndex(self.blocks()))
    }
}

/// Where the digest of a block lies in the file.
#[must_use]
pub const fn entry_offset(index: BlockIndex) -> u64 {
    index.0.saturating_mul(ENTRY_LEN).saturating_add(HEADER_LEN as u64)
}

/// What the head of a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// How the disk is cut.
    pub geometry: Geometry,
    /// The key of all digests.
    pub key: DigestKey,
    /// The operation that wrote it.
    pub operation: [u8; 16],
    /// Present when all digests are written: the manifest is complete.
    pub root: Option<Root>,
}

impl Header {
    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&u32::from(self.geometry.block).to_le_bytes());
        out[16..24].copy_from_slice(&self.geometry.disk_size.to_le_bytes());
        out[48..80].copy_from_slice(self.key.bytes());
        out[80..96].copy_from_slice(&self.operation);
        if let Some(root) = self.root {
            out[24..28].copy_from_slice(&FLAG_COMPLETE.to_le_bytes());
            out[96..HASHED].copy_from_slice(&root.0);
        }
        let hash = blake3::hash(&out[..HASHED]);
        out[HASHED..HASHED + 32].copy_from_slice(hash.as_bytes());
        out
    }

    /// Reads a header; bytes after it are left alone.
    ///
    /// # Errors
    /// Whatever is not exactly what [`Header::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let bytes: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(ManifestError::NotAManifest)?;
        if array::<8>(bytes, 0) != MAGIC {
            return Err(ManifestError::NotAManifest);
        }
        let version = u32::from_le_bytes(array(bytes, 8));
        if version != VERSION {
            return Err(ManifestError::Version(version));
        }
        if blake3::hash(&bytes[..HASHED]) != array::<32>(bytes, HASHED) {
            return Err(ManifestError::Damaged);
        }
        let (block_size, disk_size) = (u32::from_le_bytes(array(bytes, 12)), u64::from_le_bytes(array(bytes, 16)));
        let block = BlockSize::new(block_size).ok_or(ManifestError::Geometry { block_size, disk_size })?;
        let geometry = Geometry::new(block, disk_size)?;
        let complete = u32::from_le_bytes(array(bytes, 24)) == FLAG_COMPLETE;
        let header = Self {
            geometry,
            key: DigestKey::new(array(bytes, 48)),
            operation: array(bytes, 80),
            root: complete.then(|| Root(array(bytes, 96))),
        };
        // Unknown flags, bytes where zeros belong: not ours to interpret.
        if header.encode() == *bytes { Ok(header) } else { Err(ManifestError::Damaged) }
    }
}

/// `N` bytes at a constant place inside the header.
fn array<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// One value for the content of a whole disk: equal roots under one key mean equal disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Root(pub [u8; 32]);

/// Computes a [`Root`] from the digests in order. Zero blocks do not count, so that a reader may skip holes.
#[derive(Debug)]
pub struct RootHasher {
    hasher: blake3::Hasher,
    blocks: u64,
    next: u64,
}

impl RootHasher {
    /// Starts with the disk's geometry: the same bytes cut otherwise are another root.
    #[must_use]
    pub fn new(key: &DigestKey, geometry: Geometry) -> Self {
        // A key of its own: no block's content can pass for a list of digests.
        let mut hasher = blake3::Hasher::new_keyed(&blake3::derive_key(ROOT_CONTEXT, key.bytes()));
        hasher.update(&u32::from(geometry.block).to_le_bytes());
        hasher.update(&geometry.disk_size.to_le_bytes());
        Self { hasher, blocks: geometry.blocks(), next: 0 }
    }

    /// Takes the digest of the next block; blocks left out count as zero.
    ///
    /// # Errors
    /// Where the index does not grow or lies beyond the disk.
    pub fn push(&mut self, index: BlockIndex, digest: Digest) -> Result<(), ManifestError> {
        if index.0 < self.next || index.0 >= self.blocks {
            return Err(ManifestError::Order(index));
        }
        self.next = index.0 + 1;
        if !digest.is_zero() {
            self.hasher.update(&index.0.to_le_bytes());
            self.hasher.update(&digest.0);
        }
        Ok(())
    }

    /// The root of all that was given.
    #[must_use]
    pub fn finish(&self) -> Root {
        Root(*self.hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::blocks::BLOCK;

    fn key() -> DigestKey {
        DigestKey::new([5; 32])
    }

    fn geometry(disk_size: u64) -> Geometry {
        Geometry::new(BlockSize::default(), disk_size).unwrap()
    }

    fn root_of(list: &[(u64, Digest)], disk_size: u64) -> Root {
        let mut hasher = RootHasher::new(&key(), geometry(disk_size));
        for (index, digest) in list {
            hasher.push(BlockIndex(*index), *digest).unwrap();
        }
        hasher.finish()
    }

    fn any_header() -> impl Strategy<Value = Header> {
        let (bits, size) = (12u32..=20, 0..=i64::MAX as u64);
        let ids = (any::<[u8; 32]>(), any::<[u8; 16]>());
        (bits, size, ids, any::<Option<[u8; 32]>>()).prop_map(|(bits, size, (key, operation), root)| Header {
            geometry: Geometry::new(BlockSize::new(1 << bits).unwrap(), size).unwrap(),
            key: DigestKey::new(key),
            operation,
            root: root.map(Root),
        })
    }

    proptest! {
        #[test]
        fn headers_survive(header in any_header()) {
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn a_changed_bit_is_noticed(header in any_header(), at in 0..HEADER_LEN, bit in 0u8..8) {
            let mut bytes = header.encode();
            bytes[at] ^= 1u8 << bit;
            prop_assert!(Header::decode(&bytes).is_err());
        }

        #[test]
        fn rubbish_is_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..5000), marked in any::<bool>()) {
            if marked && bytes.len() >= 12 {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
            }
            prop_assert!(Header::decode(&bytes).is_err());
        }

        #[test]
        fn the_root_skips_zeros_and_sees_all_else(
            blocks in prop::collection::vec(prop::option::of(1u8..), 1..50),
            at in any::<prop::sample::Index>(),
        ) {
            let size = blocks.len() as u64 * BLOCK;
            let all: Vec<_> = (0..).zip(&blocks).map(|(i, b)| (i, Digest([b.unwrap_or(0); 16]))).collect();
            let some: Vec<_> = all.iter().filter(|(_, digest)| !digest.is_zero()).copied().collect();
            prop_assert_eq!(root_of(&all, size), root_of(&some, size));
            prop_assert_ne!(root_of(&all, size), root_of(&all, size + 1));
            let mut other = all;
            let at = at.index(blocks.len());
            other[at].1.0[3] ^= 1;
            prop_assert_ne!(root_of(&some, size), root_of(&other, size));
        }
    }

    #[test]
    fn sense_is_checked_even_under_a_right_hash() {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let hash = blake3::hash(&bytes[..HASHED]);
        bytes[HASHED..HASHED + 32].copy_from_slice(hash.as_bytes());
        assert_eq!(Header::decode(&bytes), Err(ManifestError::Geometry { block_size: 0, disk_size: 0 }));
    }

    #[test]
    fn order_is_kept() {
        let mut hasher = RootHasher::new(&key(), geometry(3 * BLOCK));
        hasher.push(BlockIndex(1), Digest([1; 16])).unwrap();
        for wrong in [0, 1, 3] {
            assert_eq!(hasher.push(BlockIndex(wrong), Digest::ZERO), Err(ManifestError::Order(BlockIndex(wrong))));
        }
    }

    #[test]
    fn entries_follow_the_header() {
        assert_eq!(entry_offset(BlockIndex(0)), 4096);
        assert_eq!(entry_offset(BlockIndex(3)), 4096 + 48);
        assert_eq!(geometry(BLOCK + 1).file_len(), 4096 + 32);
        assert_eq!(entry_offset(BlockIndex(u64::MAX)), u64::MAX);
    }
}
