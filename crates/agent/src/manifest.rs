//! The manifest file of a disk: its digests, kept on the target host.
//!
//! Each lane agent writes the entries of its own segments to a [`ManifestFile`], which the control agent makes and completes. From
//! then on it is a [`Manifest`], which is only read.

use std::fs::{File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kvm_clone_core::blocks::manifest::{ENTRY_LEN, HEADER_LEN, entry_offset};
use kvm_clone_core::blocks::{
    BlockIndex, BlockSize, Digest, DigestKey, ExtentKind, Geometry, Header, Root, RootHasher, extents,
};
use kvm_clone_core::{Error, Result};
use rustix::fs::OFlags;
use uuid::Uuid;

use crate::device::{RawReader, ReadDevice};
use crate::place::io_error;

/// Bytes of entries read at once; whole groups.
const BATCH: u64 = 1 << 16;
/// Bytes of the file whose holes are asked for at once.
const WINDOW: u64 = 1 << 30;

/// A manifest that is being made.
pub(crate) struct ManifestFile {
    file: File,
    path: PathBuf,
    header: Header,
}

impl ManifestFile {
    /// Makes a manifest without digests; one that is there already is of an earlier try and is replaced.
    pub(crate) fn create(
        path: &Path,
        key: &DigestKey,
        operation: Uuid,
        (block, disk_size): (BlockSize, u64),
    ) -> Result<()> {
        let _ = std::fs::remove_file(path);
        let failed = |error| io_error("making the manifest", path, &error);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let geometry = Geometry::new(block, disk_size)
            .map_err(|error| Error::unsupported(format!("the disk cannot have a manifest: {error}")))?;
        let header = Header { geometry, key: key.clone(), operation: operation.into_bytes(), root: None };
        file.set_len(header.geometry.file_len()).map_err(failed)?;
        file.write_all_at(&header.encode(), 0).map_err(failed)
    }

    pub(crate) fn open(path: &Path) -> Result<Self> {
        let no_link = OFlags::NOFOLLOW.bits().cast_signed();
        let file = OpenOptions::new().read(true).write(true).custom_flags(no_link).open(path);
        let failed = |error| io_error("opening the manifest", path, &error);
        let file = file.map_err(failed)?;
        let mut head = vec![0; HEADER_LEN];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        let header = Header::decode(&head).map_err(|error| {
            Error::internal(format!("the manifest that is being made: {error}")).with("path", path.display())
        })?;
        Ok(Self { file, path: path.to_owned(), header })
    }

    /// Writes the digests of neighbouring blocks. Runs of zero blocks stay holes.
    pub(crate) fn write(&self, offset: u64, digests: &[Digest]) -> Result<()> {
        if digests.iter().all(Digest::is_zero) {
            return Ok(());
        }
        let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.0).collect();
        let at = entry_offset(BlockIndex::of(offset, self.header.geometry.block()));
        self.file.write_all_at(&bytes, at).map_err(|error| io_error("writing the manifest", &self.path, &error))
    }

    /// Computes the root over all digests, writes it, and makes the file durable. Returns it with the number of blocks
    /// that hold data. Tells how many bytes of it were read.
    pub(crate) fn complete(&self, read: &dyn Fn(u64)) -> Result<(Root, u64)> {
        let failed = |error| io_error("completing the manifest", &self.path, &error);
        let mut header = Header { root: None, ..self.header.clone() };
        let written = RawReader::open_without_link(&self.path)?;
        let (root, data_blocks) = root(&written, &header, &mut |bytes| {
            read(bytes);
            Ok(())
        })?;
        header.root = Some(root);
        self.file.sync_data().map_err(failed)?;
        self.file.write_all_at(&header.encode(), 0).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        Ok((root, data_blocks))
    }
}

/// A manifest of the right length that was completed. Whether its digests are those of its root, [`Manifest::prove`] finds out.
pub(crate) struct Manifest {
    file: RawReader,
    header: Header,
    root: Root,
    path: PathBuf,
}

impl Manifest {
    /// Opens a manifest; it must be no symbolic link.
    ///
    /// # Errors
    /// The outer: it cannot be opened or read. The inner, in words: why it does not count.
    pub(crate) fn open(path: &Path) -> Result<std::result::Result<Self, String>> {
        let file = RawReader::open_without_link(path)?;
        if file.size() < HEADER_LEN as u64 {
            return Ok(Err("it is too short".to_owned()));
        }
        let mut head = vec![0; HEADER_LEN];
        file.read_at(&mut head, 0)?;
        let header = match Header::decode(&head) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let geometry = header.geometry;
        if geometry.file_len() != file.size() {
            return Ok(Err("it has another length than its disk asks for".to_owned()));
        }
        let Some(root) = header.root else { return Ok(Err("it was not completed".to_owned())) };
        Ok(Ok(Self { file, header, root, path: path.to_owned() }))
    }

    /// What its head says.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// The root that it was completed with.
    pub(crate) fn root(&self) -> Root {
        self.root
    }

    /// The size of its disk.
    pub(crate) fn disk_size(&self) -> u64 {
        self.header.geometry.disk_size()
    }

    /// The length of its blocks.
    pub(crate) fn block(&self) -> BlockSize {
        self.header.geometry.block()
    }

    /// The length of the file.
    pub(crate) fn file_len(&self) -> u64 {
        self.file.size()
    }

    /// Reads all of it: whether its digests are those of its root, hence all there and of one point. Returns how many blocks
    /// hold data. `read` is told of bytes that were read, and may end it.
    ///
    /// # Errors
    /// The outer: it cannot be read, or `read` ended it. The inner, in words: why it does not count.
    pub(crate) fn prove(&self, read: &mut dyn FnMut(u64) -> Result<()>) -> Result<std::result::Result<u64, String>> {
        let (found, data_blocks) = root(&self.file, &self.header, read)?;
        Ok(if found == self.root { Ok(data_blocks) } else { Err("its digests are not those of its root".to_owned()) })
    }

    /// The digests of neighbouring blocks; those beyond its disk are zero.
    pub(crate) fn read(&self, offset: u64, blocks: usize) -> Result<Vec<Digest>> {
        let first = BlockIndex::of(offset, self.block());
        let here = self.header.geometry.blocks().saturating_sub(first.0);
        let here = usize::try_from(here).map_or(blocks, |left| left.min(blocks));
        let mut bytes = vec![0; here * Digest::ZERO.0.len()];
        if bytes.is_empty() {
            return Ok(vec![Digest::ZERO; blocks]);
        }
        self.file.read_at(&mut bytes, entry_offset(first)).map_err(|error| self.named(error.into()))?;
        let mut digests = digests_in(&bytes);
        digests.resize(blocks, Digest::ZERO);
        Ok(digests)
    }

    /// Digests from this block on, which is the first of its group, in pieces of whole groups; those that are left out are zero.
    pub(crate) fn for_each_run(
        &self,
        from: BlockIndex,
        mut act: impl FnMut(BlockIndex, &[Digest]) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        for_each_piece(&self.file, self.block(), entry_offset(from), |offset, bytes| {
            act(index_of(offset), &digests_in(bytes))
        })
    }

    /// The bytes of its entries: where they lie, and what they are. Holes are left out.
    pub(crate) fn for_each_piece(&self, mut act: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        for_each_piece(&self.file, self.block(), HEADER_LEN as u64, |offset, bytes| {
            act(offset, bytes).map(ControlFlow::Continue)
        })
    }

    fn named(&self, error: Error) -> Error {
        error.with("manifest", self.path.display())
    }
}

/// The root over all digests, and how many of them are not zero.
fn root(file: &RawReader, header: &Header, read: &mut dyn FnMut(u64) -> Result<()>) -> Result<(Root, u64)> {
    let mut hasher = RootHasher::new(&header.key, header.geometry);
    let mut data_blocks = 0;
    for_each_piece(file, header.geometry.block(), HEADER_LEN as u64, |offset, bytes| {
        for (index, digest) in (index_of(offset).0..).zip(digests_in(bytes)) {
            data_blocks += u64::from(!digest.is_zero());
            let pushed = hasher.push(BlockIndex(index), digest);
            pushed.map_err(|error| Error::internal(format!("the manifest's order: {error}")))?;
        }
        read(bytes.len() as u64)?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((hasher.finish(), data_blocks))
}

/// Pieces of the file that hold data, from an offset on, until `act` has enough. Each begins with a group of entries, so that a
/// hole that begins anywhere never cuts one.
fn for_each_piece(
    file: &RawReader,
    block: BlockSize,
    from: u64,
    mut act: impl FnMut(u64, &[u8]) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let Some(group) = std::num::NonZeroU64::new(block.in_group() as u64 * ENTRY_LEN) else { return Ok(()) };
    let mut buffer = vec![0; usize::try_from(BATCH).unwrap_or(0)];
    let mut window = from;
    while window < file.size() {
        let end = file.size().min(window.saturating_add(WINDOW));
        let found = extents::align_outward(&file.extents(window, end - window)?, group, end);
        for extent in found.iter().filter(|extent| extent.kind == ExtentKind::Data) {
            let mut at = extent.offset;
            while at < extent.end() {
                let len = BATCH.min(extent.end() - at);
                let piece = &mut buffer[..usize::try_from(len).unwrap_or(0)];
                file.read_at(piece, at)?;
                if act(at, piece)?.is_break() {
                    return Ok(());
                }
                at += len;
            }
        }
        window = end;
    }
    Ok(())
}

/// The block whose entry lies there.
const fn index_of(offset: u64) -> BlockIndex {
    BlockIndex((offset - HEADER_LEN as u64) / ENTRY_LEN)
}

fn digests_in(bytes: &[u8]) -> Vec<Digest> {
    bytes.as_chunks::<16>().0.iter().map(|entry| Digest(*entry)).collect()
}
