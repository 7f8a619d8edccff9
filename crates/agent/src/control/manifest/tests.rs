//! On real manifests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use kvm_clone_core::Code;
use kvm_clone_core::blocks::manifest::{ENTRY_LEN, entry_offset};
use kvm_clone_core::blocks::{BLOCK, BlockIndex, BlockSize, Digest, DigestKey};
use kvm_clone_core::wire::marker::Marker;

use super::super::test_host::TestHost;
use super::*;
use crate::manifest::ManifestFile;

const OLD: Uuid = Uuid::from_u128(1);
const NEW: Uuid = Uuid::from_u128(2);
/// A disk whose manifest has a hole between two runs of entries.
const SIZE: u64 = 40_000 * BLOCK + 1;

impl TestHost {
    /// A manifest that is not complete yet.
    fn begin(&self, name: &str) -> ManifestFile {
        let path = self.path(name);
        ManifestFile::create(Path::new(&path), &key(), OLD, (BlockSize::default(), SIZE)).unwrap();
        let manifest = ManifestFile::open(Path::new(&path)).unwrap();
        for block in [0, 5000, 39_999, 40_000] {
            manifest.write(block * BLOCK, &[Digest([3; 16])]).unwrap();
        }
        manifest
    }

    fn state_as(&self, name: &str, operation: Uuid) -> ManifestState {
        state(&ManifestQuery { path: self.path(name), operation }, &self.progress()).unwrap()
    }

    fn state(&self, name: &str) -> ManifestState {
        self.state_as(name, OLD)
    }

    fn bend(&self, name: &str, offset: u64) {
        let file = OpenOptions::new().write(true).open(self.path(name)).unwrap();
        file.write_all_at(&[0x55], offset).unwrap();
    }
}

fn key() -> DigestKey {
    DigestKey::new([9; 32])
}

fn is_unusable(state: &ManifestState) -> bool {
    matches!(state, ManifestState::Unusable { .. })
}

#[test]
fn only_a_whole_one_of_that_point_counts() {
    let host = TestHost::new();
    assert_eq!(host.state("none"), ManifestState::Absent);
    let manifest = host.begin("m");
    assert!(is_unusable(&host.state("m")));
    let (root, data_blocks) = manifest.complete(&|_| ()).unwrap();
    let whole = ManifestState::Whole { disk_size: SIZE, block: BlockSize::default(), key: key(), root, data_blocks };
    assert_eq!((host.state("m"), data_blocks), (whole.clone(), 4));
    assert!(is_unusable(&host.state_as("m", NEW)));
    // An entry, one of a zero block, the header, the length.
    for offset in
        [entry_offset(BlockIndex(5000)), entry_offset(BlockIndex(17)), 60, 90, entry_offset(BlockIndex(40_001))]
    {
        fs::copy(host.path("m"), host.path("bent")).unwrap();
        assert_eq!(host.state("bent"), whole);
        host.bend("bent", offset);
        assert!(is_unusable(&host.state("bent")), "{offset}");
    }
    fs::write(host.path("bent"), b"short").unwrap();
    assert!(is_unusable(&host.state("bent")));
}

#[test]
fn one_of_an_unchanged_disk_is_taken_over() {
    let host = TestHost::new();
    let manifest = host.begin("m");
    let marker = Marker { operation: NEW, manifests: vec![host.path("new")], ..Marker::default() };
    marker::put(&host.session.place, &marker).unwrap();
    let take = |to: &str| adopt(&host.session.place, NEW, &host.path("m"), &host.path(to));
    assert_eq!(take("new").unwrap_err().code, Code::Verification);
    let (root, data_blocks) = manifest.complete(&|_| ()).unwrap();
    assert_eq!(take("other").unwrap_err().code, Code::Internal);
    assert_eq!(take("m").unwrap_err().code, Code::Internal);
    for _ in 0..2 {
        take("new").unwrap();
        let whole =
            ManifestState::Whole { disk_size: SIZE, block: BlockSize::default(), key: key(), root, data_blocks };
        assert_eq!(host.state_as("new", NEW), whole);
        assert_eq!(host.state("m"), whole);
    }
    // Holes stay holes.
    use std::os::unix::fs::MetadataExt;
    assert!(fs::metadata(host.path("new")).unwrap().blocks() * 512 < SIZE.div_ceil(BLOCK) * ENTRY_LEN);
}
