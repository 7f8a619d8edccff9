//! The header of an image of ours ("Header", "Header extensions").

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::{ImageFormat, NamedImage};
use super::layout::{CLUSTER_BITS, Layout};

/// The length of the fields: all of version 3, compression type included, as qemu writes them. Extensions follow; the rest
/// of the cluster is zeros.
const FIELDS: usize = 112;
/// "backing_file_size: … Must not be longer than 1023 bytes."
const MAX_BACKING_NAME: usize = 1023;
/// The header extension that states the backing file's format: without it, the format would be guessed from content that
/// a guest has written.
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Where the backing file's name begins: behind the fields, that extension (its head, its text padded to 8 bytes) and the
/// end of the list.
const NAME_AT: usize = FIELDS + 8 + 8 + 8;
/// Reference counts have 16 bits ("refcount_order" 4), qemu's default, so that the image can have snapshots later.
const REFCOUNT_ORDER: u32 = 4;

/// As much of an image as its header can be long.
pub(super) const HEADER_LEN: usize = NAME_AT + MAX_BACKING_NAME;

/// The refcount table, as the header names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RefcountTable {
    pub(super) offset: u64,
    pub(super) clusters: u32,
}

impl RefcountTable {
    /// None yet: the image is not finished.
    pub(super) const NONE: Self = Self { offset: 0, clusters: 0 };
}

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) layout: Layout,
    pub(super) refcounts: RefcountTable,
    /// The file that shows through where nothing was written.
    pub(super) backing: Option<NamedImage>,
}

impl Header {
    /// The header as bytes; none where the backing file has a name that cannot be written there: too long, or relative,
    /// which would mean another file once the image is elsewhere.
    pub(super) fn encode(&self) -> Option<[u8; HEADER_LEN]> {
        let mut out = [0; HEADER_LEN];
        let words = [
            (0, 0x5146_49fb), // magic
            (4, 3),           // version
            (20, CLUSTER_BITS),
            (36, self.layout.tables), // l1_size
            (56, self.refcounts.clusters),
            (96, REFCOUNT_ORDER),
            (100, 112), // header_length
        ];
        for (at, word) in words {
            put_word(&mut out, at, word);
        }
        for (at, long) in [(24, self.layout.virtual_size), (40, self.layout.l1()), (48, self.refcounts.offset)] {
            out[at..at + 8].copy_from_slice(&u64::to_be_bytes(long));
        }
        match &self.backing {
            None => Some(out),
            Some(backing) => put_backing(&mut out, backing).map(|()| out),
        }
    }

    /// Reads a header back, if it is one that [`Header::encode`] writes.
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let layout = Layout::new(long(bytes, 24)?)?;
        let refcounts = RefcountTable { offset: long(bytes, 48)?, clusters: word(bytes, 56)? };
        let header = Self { layout, refcounts, backing: backing(bytes)? };
        (header.encode()? == *bytes).then_some(header)
    }
}

fn put_word(out: &mut [u8; HEADER_LEN], at: usize, word: u32) {
    out[at..at + 4].copy_from_slice(&word.to_be_bytes());
}

fn put_backing(out: &mut [u8; HEADER_LEN], backing: &NamedImage) -> Option<()> {
    let name = backing.path.as_os_str().as_bytes();
    if !backing.path.is_absolute() || name.len() > MAX_BACKING_NAME {
        return None;
    }
    let format = backing.format.to_string();
    out[8..16].copy_from_slice(&(NAME_AT as u64).to_be_bytes()); // backing_file_offset
    put_word(out, 16, u32::try_from(name.len()).ok()?); // backing_file_size
    put_word(out, FIELDS, EXT_BACKING_FORMAT);
    put_word(out, FIELDS + 4, u32::try_from(format.len()).ok()?);
    out[FIELDS + 8..][..format.len()].copy_from_slice(format.as_bytes());
    out[NAME_AT..][..name.len()].copy_from_slice(name);
    Some(())
}

/// The backing file, or that there is none; whether all else about it is as we write it, is for the caller to compare.
fn backing(bytes: &[u8; HEADER_LEN]) -> Option<Option<NamedImage>> {
    if long(bytes, 8)? == 0 {
        return Some(None);
    }
    let len = usize::try_from(word(bytes, 16)?).ok()?;
    let name = std::ffi::OsStr::from_bytes(bytes.get(NAME_AT..)?.get(..len)?);
    let stated = bytes.get(FIELDS + 8..)?.get(..usize::try_from(word(bytes, FIELDS + 4)?).ok()?)?;
    let format =
        [ImageFormat::Raw, ImageFormat::Qcow2].into_iter().find(|known| known.to_string().as_bytes() == stated)?;
    Some(Some(NamedImage { path: PathBuf::from(Path::new(name)), format }))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn header(size: u64, backing: Option<NamedImage>) -> Header {
        let refcounts = RefcountTable { offset: 5 << 16, clusters: 2 };
        Header { layout: Layout::new(size).unwrap(), refcounts, backing }
    }

    fn over(path: &str, format: ImageFormat) -> Option<NamedImage> {
        Some(NamedImage { path: path.into(), format })
    }

    #[test]
    fn headers_are_read_back_and_foreign_ones_are_not() {
        let longest = format!("/{}", "x".repeat(MAX_BACKING_NAME - 1));
        for size in [0, 512, 3 << 30, 2 << 50] {
            for backing in [None, over("/a/raw", ImageFormat::Raw), over(&longest, ImageFormat::Qcow2)] {
                let header = header(size, backing);
                let bytes = header.encode().unwrap();
                assert_eq!(Header::parse(&bytes), Some(header));
                // A feature bit, the extension's kind, its length, its text, and what follows the list.
                for at in [79, 112, 119, 121, 130] {
                    let mut bent = bytes;
                    bent[at] ^= 1;
                    assert_eq!(Header::parse(&bent), None, "{at}");
                }
            }
        }
    }

    #[test]
    fn backing_files_that_cannot_be_named_are_refused() {
        for path in ["relative", "", &format!("/{}", "x".repeat(MAX_BACKING_NAME))] {
            assert_eq!(header(512, over(path, ImageFormat::Raw)).encode(), None);
        }
    }
}
