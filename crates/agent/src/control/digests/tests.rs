//! On real images and manifests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io;

use kvm_clone_core::Code;
use kvm_clone_core::blocks::compare::{Differences, differing_groups};
use kvm_clone_core::blocks::{BLOCK, BLOCK_LEN, BlockSize, DigestKey, Extent};
use kvm_clone_core::inventory::ImageFormat;
use rustix::io::Errno;
use uuid::Uuid;

use super::super::test_host::TestHost;
use super::*;
use crate::device::DeviceError;
use crate::manifest::ManifestFile;

/// Its last block is short, and so is its last group; most of it is a hole.
const SIZE: u64 = 40 * GROUP_LEN + 3 * BLOCK + 1000;
const DATA: [u64; 5] = [0, 17, 18, 320, 643];

impl TestHost {
    /// A raw disk with data in some blocks.
    fn disk(&self, name: &str, blocks: &[u64]) -> Digested {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::create(self.path(name)).unwrap();
        file.set_len(SIZE).unwrap();
        for block in blocks {
            let len = BLOCK_LEN.min(usize::try_from(SIZE - block * BLOCK).unwrap());
            file.write_all_at(&vec![7; len], block * BLOCK).unwrap();
        }
        Digested::Disk(ImageSpec::new(self.path(name), ImageFormat::Raw))
    }

    /// The manifest of such a disk.
    fn manifest(&self, name: &str, blocks: &[u64]) -> Digested {
        let path = self.path(name);
        ManifestFile::create(Path::new(&path), &key(), Uuid::nil(), (BlockSize::default(), SIZE)).unwrap();
        let file = ManifestFile::open(Path::new(&path)).unwrap();
        for block in blocks {
            let len = BLOCK_LEN.min(usize::try_from(SIZE - block * BLOCK).unwrap());
            file.write(block * BLOCK, &[key().block(&vec![7; len])]).unwrap();
        }
        file.complete(&|_| ()).unwrap();
        Digested::Manifest(path)
    }

    fn groups(&self, of: &Digested) -> Vec<(u64, Digest)> {
        let (mut found, mut from) = (Vec::new(), 0);
        loop {
            let page = groups(&query(of), from, &self.progress()).unwrap();
            from = page.end(from, SIZE).unwrap();
            found.extend(page.groups);
            if page.next.is_none() {
                return found;
            }
        }
    }

    fn blocks(&self, of: &Digested, groups: &[u64]) -> Vec<Digest> {
        blocks(&query(of), groups, &self.progress()).unwrap()
    }

    fn compare(&self, ours: &Digested, theirs: &Digested) -> Vec<(u64, u64)> {
        let mut found = Differences::default();
        for group in differing_groups(&self.groups(ours), &self.groups(theirs)) {
            let (ours, theirs) = (self.blocks(ours, &[group]), self.blocks(theirs, &[group]));
            found.push_blocks(group, (SIZE, BlockSize::default()), &ours, &theirs).unwrap();
        }
        found.end().0.iter().map(|range| (range.offset, range.length)).collect()
    }
}

fn key() -> DigestKey {
    DigestKey::new([9; 32])
}

fn query(of: &Digested) -> DigestQuery {
    DigestQuery { of: of.clone(), key: key(), block: BlockSize::default(), size: SIZE }
}

#[test]
fn a_disk_and_its_manifest_are_alike_and_what_differs_is_found() {
    let host = TestHost::new();
    let (disk, manifest) = (host.disk("disk", &DATA), host.manifest("manifest", &DATA));
    assert_eq!(host.groups(&disk).len(), 4);
    assert_eq!(host.compare(&disk, &manifest), []);
    // The last block of the disk; one that is zero in one of the two; two neighbours.
    let other = host.disk("other", &[0, 17, 18, 320]);
    assert_eq!(host.compare(&other, &manifest), [(643 * BLOCK, 1000)]);
    let other = host.disk("other", &[15, 16, 17, 18, 320, 643]);
    assert_eq!(host.compare(&other, &manifest), [(0, BLOCK), (15 * BLOCK, 2 * BLOCK)]);
    assert_eq!(host.compare(&manifest, &other), [(0, BLOCK), (15 * BLOCK, 2 * BLOCK)]);
}

#[test]
fn blocks_of_any_size_are_compared() {
    let host = TestHost::new();
    let Digested::Disk(image) = host.disk("disk", &DATA) else { panic!("a disk") };
    for shift in 12..=20 {
        let block = BlockSize::new(1 << shift).unwrap();
        let manifest = host.path(&format!("manifest-{block}"));
        ManifestFile::create(Path::new(&manifest), &key(), Uuid::nil(), (block, SIZE)).unwrap();
        let file = ManifestFile::open(Path::new(&manifest)).unwrap();
        let bytes = std::fs::read(&image.path).unwrap();
        let digests: Vec<Digest> = bytes.chunks(block.in_memory()).map(|bytes| key().block(bytes)).collect();
        file.write(0, &digests).unwrap();
        file.complete(&|_| ()).unwrap();
        let changed = 18 * BLOCK + 5000;
        let mut other = bytes.clone();
        other[usize::try_from(changed).unwrap()] ^= 1;
        std::fs::write(host.path("other"), other).unwrap();
        let of = |of| DigestQuery { of, key: key(), block, size: SIZE };
        let ask = |query: &DigestQuery| groups(query, 0, &host.progress()).unwrap().groups;
        let same = of(Digested::Disk(image.clone()));
        let manifest = of(Digested::Manifest(manifest));
        let other = of(Digested::Disk(ImageSpec::new(host.path("other"), ImageFormat::Raw)));
        assert_eq!(ask(&same), ask(&manifest), "{block}");
        assert_eq!(differing_groups(&ask(&other), &ask(&manifest)), [changed / GROUP_LEN], "{block}");
        let all: Vec<u64> = (0..groups_of(SIZE)).collect();
        assert_eq!(blocks(&manifest, &all, &host.progress()).unwrap(), digests, "{block}");
        let ours = blocks(&other, &all, &host.progress()).unwrap();
        let differing: Vec<_> = (0..digests.len()).filter(|index| ours[*index] != digests[*index]).collect();
        assert_eq!(differing, [usize::try_from(changed / block.bytes()).unwrap()], "{block}");
    }
}

#[test]
fn a_manifest_that_is_another_now_is_not_read() {
    let host = TestHost::new();
    let manifest = host.manifest("manifest", &DATA);
    let another = [
        DigestQuery { key: DigestKey::new([8; 32]), ..query(&manifest) },
        DigestQuery { size: SIZE - 1, ..query(&manifest) },
        DigestQuery { block: BlockSize::new(4096).unwrap(), ..query(&manifest) },
    ];
    for query in another {
        assert_eq!(groups(&query, 0, &host.progress()).unwrap_err().code, Code::Conflict);
    }
    let disk = DigestQuery { size: SIZE + 1, ..query(&host.disk("disk", &DATA)) };
    assert_eq!(groups(&disk, 0, &host.progress()).unwrap_err().code, Code::Conflict);
}

#[test]
fn what_cannot_be_asked_for_is_refused() {
    let host = TestHost::new();
    let disk = host.disk("disk", &DATA);
    let all = groups_of(SIZE);
    assert!(groups(&query(&disk), all + 1, &host.progress()).is_err());
    assert!(blocks(&query(&disk), &[all], &host.progress()).is_err());
    assert!(blocks(&query(&disk), &vec![0; GROUPS_ASKED + 1], &host.progress()).is_err());
    let Digested::Disk(image) = disk else { panic!("a disk") };
    assert!(read(&image, 0, BYTES_ASKED + 1).is_err());
    assert!(read(&image, SIZE, 1).is_err());
    assert_eq!(read(&image, 17 * BLOCK - 1, 2).unwrap(), [0, 7]);
}

/// A disk with a sector that cannot be read.
struct Unreadable;

impl ReadDevice for Unreadable {
    fn size(&self) -> u64 {
        SIZE
    }

    fn extents(&self, offset: u64, len: u64) -> crate::device::Result<Vec<Extent>> {
        Ok(vec![Extent::data(offset, len)])
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> crate::device::Result<()> {
        let end = offset + buf.len() as u64;
        if (offset..end).contains(&(20 * GROUP_LEN + 5)) {
            let error = io::Error::from_raw_os_error(Errno::IO.raw_os_error());
            return Err(DeviceError::io(Path::new("/dev/worn"), "read", error).at(offset));
        }
        buf.fill(1);
        Ok(())
    }

    fn drop_cache(&self, _: u64, _: u64) {}
}

#[test]
fn a_sector_that_cannot_be_read_is_named() {
    let host = TestHost::new();
    let device: Arc<dyn ReadDevice> = Arc::new(Unreadable);
    let query = query(&Digested::Disk(ImageSpec::new("/dev/worn", ImageFormat::Raw)));
    for error in [
        disk_groups(&device, &query, 0, &host.progress()).unwrap_err(),
        disk_blocks(&device, &query, &[3, 20], &host.progress()).unwrap_err(),
    ] {
        assert_eq!((error.code, &*error.context["path"]), (Code::Transfer, "/dev/worn"));
        assert_eq!(error.context["offset"], (20 * GROUP_LEN).to_string());
    }
}
