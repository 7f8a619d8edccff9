//! The manifest file of a disk: its digests, kept on the target host.
//!
//! Each lane agent writes the entries of its own segments; the control agent makes the file and completes it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kvm_clone_core::blocks::manifest::{ENTRY_LEN, HEADER_LEN, entry_offset};
use kvm_clone_core::blocks::{BLOCK, BlockIndex, Digest, DigestKey, Geometry, Header, Root, RootHasher};
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use crate::place::io_error;

/// Entries read at once when the root is computed.
const BATCH: u64 = 4096;

/// An open manifest.
pub(crate) struct ManifestFile {
    file: File,
    path: PathBuf,
}

impl ManifestFile {
    /// Makes a manifest without digests; one that is there already is of an earlier try and is replaced.
    pub(crate) fn create(path: &Path, key: &DigestKey, operation: Uuid, disk_size: u64) -> Result<()> {
        let _ = std::fs::remove_file(path);
        let failed = |error| io_error("making the manifest", path, &error);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let header = header(key, operation, disk_size, None)?;
        file.set_len(header.geometry.file_len()).map_err(failed)?;
        file.write_all_at(&header.encode(), 0).map_err(failed)
    }

    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|error| io_error("opening the manifest", path, &error))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Writes the digests of neighbouring blocks. Runs of zero blocks stay holes.
    pub(crate) fn write(&self, offset: u64, digests: &[Digest]) -> Result<()> {
        if digests.iter().all(Digest::is_zero) {
            return Ok(());
        }
        let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.0).collect();
        let at = entry_offset(BlockIndex(offset / BLOCK));
        self.file.write_all_at(&bytes, at).map_err(|error| io_error("writing the manifest", &self.path, &error))
    }

    /// Computes the root over all digests, writes it, and makes the file durable. Returns it with the number of blocks
    /// that hold data. Tells how many bytes of it were read.
    pub(crate) fn complete(
        &self,
        key: &DigestKey,
        operation: Uuid,
        disk_size: u64,
        read: &dyn Fn(u64),
    ) -> Result<(Root, u64)> {
        let failed = |error| io_error("completing the manifest", &self.path, &error);
        let mut header = header(key, operation, disk_size, None)?;
        let (root, data_blocks) = self.root(key, header.geometry, read).map_err(failed)?;
        header.root = Some(root);
        self.file.sync_data().map_err(failed)?;
        self.file.write_all_at(&header.encode(), 0).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        Ok((root, data_blocks))
    }

    /// The root over all digests, and how many of them are not zero.
    fn root(&self, key: &DigestKey, geometry: Geometry, read: &dyn Fn(u64)) -> std::io::Result<(Root, u64)> {
        let mut hasher = RootHasher::new(key, geometry);
        let mut data_blocks = 0;
        let mut at = HEADER_LEN as u64;
        let end = geometry.file_len();
        let mut buffer = vec![0; usize::try_from(BATCH * ENTRY_LEN).unwrap_or(0)];
        while let Some(start) = next_data(&self.file, at, end)? {
            let first = (start - HEADER_LEN as u64) / ENTRY_LEN;
            let count = BATCH.min(geometry.blocks() - first);
            let len = usize::try_from(count * ENTRY_LEN).unwrap_or(0);
            self.file.read_exact_at(&mut buffer[..len], entry_offset(BlockIndex(first)))?;
            for (index, entry) in (first..).zip(buffer[..len].as_chunks::<16>().0) {
                let digest = Digest(*entry);
                data_blocks += u64::from(!digest.is_zero());
                hasher.push(BlockIndex(index), digest).map_err(std::io::Error::other)?;
            }
            read(count * ENTRY_LEN);
            at = entry_offset(BlockIndex(first + count));
        }
        Ok((hasher.finish(), data_blocks))
    }
}

/// A manifest whose digests are those of its root, hence all there and of one point: the whole file was read.
pub(super) struct WholeManifest {
    manifest: ManifestFile,
    geometry: Geometry,
}

impl WholeManifest {
    /// Opens a manifest under `key`, of the given root where one is given.
    ///
    /// # Errors
    /// In words, why it counts as not there.
    pub(super) fn open(path: &Path, key: &DigestKey, root: Option<Root>) -> std::result::Result<Self, String> {
        let file = File::open(path).map_err(|error| format!("it cannot be opened: {error}"))?;
        let unreadable = |error| format!("it cannot be read: {error}");
        let mut bytes = [0; HEADER_LEN];
        file.read_exact_at(&mut bytes, 0).map_err(unreadable)?;
        let header = Header::decode(&bytes).map_err(|error| error.to_string())?;
        let geometry = header.geometry;
        let known = header.root.ok_or("it was not completed")?;
        if header.key != *key {
            return Err("it has another key".to_owned());
        }
        if u64::from(geometry.block_size()) != BLOCK {
            return Err(format!("it has blocks of {} bytes", geometry.block_size()));
        }
        if root.is_some_and(|root| root != known) {
            return Err("it is of another point".to_owned());
        }
        let manifest = ManifestFile { file, path: path.to_owned() };
        let (found, _) = manifest.root(key, geometry, &|_| ()).map_err(unreadable)?;
        if found == known {
            Ok(Self { manifest, geometry })
        } else {
            Err("its digests are not those of its root".to_owned())
        }
    }

    /// The size of its disk.
    pub(super) fn disk_size(&self) -> u64 {
        self.geometry.disk_size()
    }

    /// The digests of neighbouring blocks; those beyond its disk are zero.
    pub(super) fn read(&self, offset: u64, blocks: usize) -> Result<Vec<Digest>> {
        let first = BlockIndex::of(offset, self.geometry.block_size());
        let here =
            usize::try_from(self.geometry.blocks().saturating_sub(first.0)).map_or(blocks, |left| left.min(blocks));
        let mut bytes = vec![0; here * Digest::ZERO.0.len()];
        let read = self.manifest.file.read_exact_at(&mut bytes, entry_offset(first));
        read.map_err(|error| io_error("reading the manifest", &self.manifest.path, &error))?;
        let mut digests: Vec<Digest> = bytes.as_chunks::<16>().0.iter().map(|entry| Digest(*entry)).collect();
        digests.resize(blocks, Digest::ZERO);
        Ok(digests)
    }
}

/// Where the next written entry may be, at or after `at`.
fn next_data(file: &File, at: u64, end: u64) -> std::io::Result<Option<u64>> {
    if at >= end {
        return Ok(None);
    }
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(found) => Ok(Some(found.max(at)).filter(|found| *found < end)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(rustix::io::Errno::INVAL) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}

fn header(key: &DigestKey, operation: Uuid, disk_size: u64, root: Option<Root>) -> Result<Header> {
    let geometry = Geometry::default_blocks(disk_size)
        .map_err(|error| Error::unsupported(format!("the disk cannot have a manifest: {error}")))?;
    Ok(Header { geometry, key: key.clone(), operation: operation.into_bytes(), root })
}
