//! The header of a qcow2 image ("Header", "Header extensions").

use super::super::Problem;
use super::{Backing, Feature, ImageFormat, ImageInfo};

/// The fields up to the first optional one, compression type (byte 104).
pub(super) const FIXED_LEN: usize = 112;

const MAGIC: u32 = 0x5146_49fb;
const V2_LEN: usize = 72;
const V3_MIN_LEN: usize = 104;
/// "backing_file_size: … Must not be longer than 1023 bytes."
const MAX_BACKING_NAME: usize = 1023;
/// qemu's limit for the L1 table is 32 MiB ("size").
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;

const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_BITMAPS: u32 = 0x2385_2875;
const EXT_DATA_FILE: u32 = 0x4441_5441;

fn corrupt(what: impl Into<String>) -> Problem {
    Problem::Corrupt(what.into())
}

fn be32(bytes: &[u8], at: usize) -> Result<u32, Problem> {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .map(|b| u32::from_be_bytes(*b))
        .ok_or_else(|| corrupt("it is too short"))
}

fn be64(bytes: &[u8], at: usize) -> Result<u64, Problem> {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .map(|b| u64::from_be_bytes(*b))
        .ok_or_else(|| corrupt("it is too short"))
}

/// `len` bytes at `at`, if they are there.
fn slice(bytes: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len)?)
}

/// Whether this is a qcow2 image, by its first bytes.
pub(super) fn has_magic(head: &[u8]) -> bool {
    be32(head, 0).is_ok_and(|magic| magic == MAGIC)
}

/// The cluster size: 2^9 by the specification, to 2^21, which is as far as qemu goes.
pub(super) fn cluster_size(head: &[u8]) -> Result<usize, Problem> {
    match be32(head, 20)? {
        bits @ 9..=21 => Ok(1 << bits),
        bits => Err(corrupt(format!("its clusters are of 2^{bits} bytes"))),
    }
}

/// Reads the header from the image's first cluster.
pub(super) fn parse(cluster: &[u8]) -> Result<ImageInfo, Problem> {
    let version = be32(cluster, 4)?;
    let (incompatible, compatible, header_len) = match version {
        2 => (0, 0, V2_LEN),
        3 => {
            let len = usize::try_from(be32(cluster, 100)?).unwrap_or(usize::MAX);
            if !(V3_MIN_LEN..=cluster.len()).contains(&len) || len % 8 != 0 {
                return Err(corrupt(format!("its header claims a length of {len}")));
            }
            (be64(cluster, 72)?, be64(cluster, 80)?, len)
        }
        other => return Err(Problem::Unsupported { feature: format!("qcow2 version {other}") }),
    };
    // The one optional field that is known so far lies inside the header only if the header is that long.
    let compression = if header_len > 104 { cluster.get(104).copied().unwrap_or(0) } else { 0 };
    let extensions = extensions(cluster, header_len)?;
    let mut features = features(incompatible, compatible, compression, be32(cluster, 32)?);
    if extensions.bitmaps {
        features.push(Feature::Bitmaps);
    }
    let info = ImageInfo {
        format: ImageFormat::Qcow2,
        virtual_size: be64(cluster, 24)?,
        cluster_size: cluster.len() as u64,
        backing: backing_name(cluster)?.map(|name| Backing { name, format: extensions.backing_format }),
        data_file: extensions.data_file,
        snapshots: be32(cluster, 60)?,
        dirty: incompatible & 1 != 0,
        corrupt: incompatible & 2 != 0,
        features,
    };
    check_l1(cluster, &info)?;
    Ok(info)
}

/// The L1 table has to be aligned, of a sane size, and large enough for the disk; else it would read as empty there.
fn check_l1(cluster: &[u8], info: &ImageInfo) -> Result<(), Problem> {
    let (entries, offset) = (u64::from(be32(cluster, 36)?), be64(cluster, 40)?);
    let entry_len = if info.features.contains(&Feature::ExtendedL2) { 16 } else { 8 };
    let span = info.cluster_size * (info.cluster_size / entry_len);
    let needed = info.virtual_size.div_ceil(span);
    if entries > MAX_L1_ENTRIES || entries < needed || offset % info.cluster_size != 0 || offset >> 56 != 0 {
        return Err(corrupt(format!("its L1 table of {entries} entries at {offset} cannot be")));
    }
    Ok(())
}

/// The features of the bit fields and the encryption method.
fn features(incompatible: u64, compatible: u64, compression: u8, encryption: u32) -> Vec<Feature> {
    let mut list = Vec::new();
    for bit in (2..64).filter(|bit| incompatible >> bit & 1 != 0) {
        list.push(match (bit, compression) {
            (2, _) => Feature::ExternalDataFile,
            (3, 1) => Feature::ZstdCompression,
            (3, other) => Feature::OtherCompression(other),
            (4, _) => Feature::ExtendedL2,
            (bit, _) => Feature::UnknownIncompatible(bit),
        });
    }
    match encryption {
        0 => {}
        1 => list.push(Feature::AesEncryption),
        2 => list.push(Feature::LuksEncryption),
        other => list.push(Feature::OtherEncryption(other)),
    }
    if compatible & 1 != 0 {
        list.push(Feature::LazyRefcounts);
    }
    list
}

/// The name of the backing file; it has to lie in the first cluster.
fn backing_name(cluster: &[u8]) -> Result<Option<String>, Problem> {
    let (offset, len) = (be64(cluster, 8)?, be32(cluster, 16)?);
    // qemu takes an empty name for none as well.
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let name = slice(cluster, at, len)
        .filter(|name| name.len() <= MAX_BACKING_NAME)
        .ok_or_else(|| corrupt(format!("the name of its backing file is {len} bytes at {offset}")))?;
    let name = str::from_utf8(name)
        .map_err(|_| Problem::Unsupported { feature: "a backing file whose name is not UTF-8".into() })?;
    Ok(Some(name.to_owned()))
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    bitmaps: bool,
    data_file: Option<String>,
}

/// Walks the extensions. Version 2 has them too, although only version 3 has a field for where they start.
fn extensions(cluster: &[u8], start: usize) -> Result<Extensions, Problem> {
    // They end at an end mark, or where the backing file's name begins (qemu's `qcow2_read_extensions`).
    let end = match usize::try_from(be64(cluster, 8)?).unwrap_or(usize::MAX) {
        0 => cluster.len(),
        name => name.min(cluster.len()),
    };
    let mut found = Extensions::default();
    let mut at = start;
    while at + 8 <= end {
        let (kind, len) = (be32(cluster, at)?, usize::try_from(be32(cluster, at + 4)?).unwrap_or(usize::MAX));
        let data = slice(cluster, at + 8, len)
            .filter(|data| at + 8 + data.len() <= end)
            .ok_or_else(|| corrupt(format!("a header extension claims a length of {len}")))?;
        match kind {
            EXT_END => break,
            EXT_BACKING_FORMAT => found.backing_format = Some(String::from_utf8_lossy(data).into_owned()),
            EXT_BITMAPS => found.bitmaps = true,
            EXT_DATA_FILE => found.data_file = Some(String::from_utf8_lossy(data).into_owned()),
            _ => {}
        }
        at += 8 + data.len().next_multiple_of(8);
    }
    Ok(found)
}
