//! Whole lanes, both ends in one process, over real files.
//!
//! What stands for an overlay is an image that is filled as the base is: what is not sent must be there already.

mod begun;
mod block_size;
mod damage;
mod disk;
mod divergence;
mod pair;
mod trouble;

use kvm_clone_core::blocks::{BLOCK, BlockSize, Digest, DigestKey};
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::wire::direct::Route;
use kvm_clone_core::wire::lane::{Base, BaseDigests, Compared, OnDivergence, Segment, Trust, Verify};
use proptest::prelude::*;
use tempfile::TempDir;
use uuid::Uuid;

use super::source::Source;
use super::target::Target;
use crate::manifest::ManifestFile;
use disk::{Block, Content, read};
use pair::{Came, Drive, carry};

fn key() -> DigestKey {
    DigestKey::new([3; 32])
}

/// What is kept of the base's digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Nothing,
    Sealed,
    Checked(OnDivergence),
}

/// A disk that is to be brought from one content to another.
struct Case {
    dir: TempDir,
    before: Content,
    after: Content,
    formats: (ImageFormat, ImageFormat),
    kept: Kept,
    verify: Verify,
    /// The lane's blocks, and those of the kept manifest.
    block: BlockSize,
    kept_block: BlockSize,
}

impl Case {
    fn new(before: Content, after: Content) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            dir,
            before,
            after,
            formats: (ImageFormat::Raw, ImageFormat::Raw),
            kept: Kept::Nothing,
            verify: Verify::On,
            block: BlockSize::default(),
            kept_block: BlockSize::default(),
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Source and target, made anew.
    fn make(&self) -> (Source, Target) {
        let (from, to) = &self.formats;
        let source = self.after.image(&self.path("source"), from, self.after.size, true);
        let base = self.before.image(&self.path("base"), to, self.before.size, true);
        let staging = self.before.image(&self.path("staging"), to, self.after.size, false);
        let root = self.before.manifest(&self.path("kept"), &key(), self.kept_block);
        ManifestFile::create(&self.path("manifest"), &key(), Uuid::nil(), (self.block, self.after.size)).unwrap();
        let trust = match self.kept {
            Kept::Nothing => None,
            Kept::Sealed => Some(Trust::Sealed(root)),
            Kept::Checked(on_divergence) => Some(Trust::Checked(on_divergence)),
        };
        let name = |name| self.path(name).to_str().unwrap().to_owned();
        let digests = trust.map(|trust| BaseDigests { manifest: name("kept"), trust });
        let target = Target {
            disks: vec![staging],
            bases: vec![Some(Base { image: base, digests, begun: false })],
            manifests: vec![name("manifest")],
            key: key(),
            block: self.block,
            verify: self.verify,
        };
        (Source { disks: vec![source], compared: vec![0], key: key(), block: self.block, route: Route::Relay }, target)
    }

    fn segments(&self, len: u64) -> Vec<Segment> {
        segments(0, self.after.size, len)
    }

    fn run(&self, len: u64) -> Came {
        let (source, target) = self.make();
        carry(source, target, Drive { segments: self.segments(len), ..Drive::default() })
    }

    /// Whether the target, and its new manifest, are what the source is.
    fn assert_same(&self) {
        let staging =
            kvm_clone_core::wire::lane::ImageSpec::new(self.path("staging").to_str().unwrap(), self.formats.1.clone());
        assert!(read(&staging) == self.after.bytes(), "the target is not what the source is");
        self.assert_manifest();
    }

    /// Whether the new manifest is that of the source.
    fn assert_manifest(&self) {
        let manifest = ManifestFile::open(&self.path("manifest")).unwrap();
        let (root, _) = manifest.complete(&|_| ()).unwrap();
        assert_eq!(root, self.after.manifest(&self.path("expected"), &key(), self.block));
    }

    /// What comparing these two must come to.
    fn expected(&self) -> Compared {
        let after = self.after.digests(&key(), self.block);
        // As large as the disk is now.
        let before = grown_digests(&self.before, self.after.size, &key(), self.block);
        let both = || after.iter().zip(&before);
        Compared {
            blocks: both().filter(|(now, then)| !now.is_zero() || !then.is_zero()).count() as u64,
            differing: both().filter(|(now, then)| now != then).count() as u64,
        }
    }
}

/// The digests of a content with zeros behind its end.
fn grown_digests(content: &Content, size: u64, key: &DigestKey, block: BlockSize) -> Vec<Digest> {
    let mut bytes = content.bytes();
    bytes.resize(usize::try_from(size).unwrap(), 0);
    bytes.chunks(block.in_memory()).map(|block| key.block(block)).collect()
}

fn segments(disk: u16, size: u64, len: u64) -> Vec<Segment> {
    (0..size.div_ceil(len)).map(|at| Segment { disk, offset: at * len, len: len.min(size - at * len) }).collect()
}

fn block() -> impl Strategy<Value = Block> {
    prop_oneof![2 => Just(Block::Hole), 1 => Just(Block::Zeros), 4 => any::<u8>().prop_map(Block::Data), 2 => any::<u8>().prop_map(Block::Parts)]
}

/// A content, and what it becomes: mostly the same, perhaps longer.
fn contents() -> impl Strategy<Value = (Content, Content)> {
    let changed = prop_oneof![9 => Just(None), 1 => block().prop_map(Some)];
    let blocks = prop::collection::vec((block(), changed), 1..150);
    let more = prop_oneof![Just(Vec::new()), prop::collection::vec(block(), 0..40)];
    let cut = || prop_oneof![Just(0u64), (0u64..128).prop_map(|sectors| sectors * 512)];
    (blocks, more, cut(), cut()).prop_map(|(blocks, more, cut_before, cut_after)| {
        let before = Content::new(blocks.iter().map(|(before, _)| *before).collect());
        let mut after: Vec<Block> = blocks.iter().map(|(before, change)| change.unwrap_or(*before)).collect();
        after.extend(more);
        let mut after = Content::new(after);
        let mut before = before;
        before.size -= cut_before;
        after.size = (after.size - cut_after).max(before.size);
        (before, after)
    })
}

fn format() -> impl Strategy<Value = ImageFormat> {
    prop_oneof![Just(ImageFormat::Raw), Just(ImageFormat::Qcow2)]
}

fn kept() -> impl Strategy<Value = Kept> {
    prop_oneof![
        Just(Kept::Nothing),
        Just(Kept::Sealed),
        Just(Kept::Checked(OnDivergence::Refuse)),
        Just(Kept::Checked(OnDivergence::Discard)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn the_target_becomes_what_the_source_is_by_what_differs_alone(
        (before, after) in contents(),
        formats in (format(), format()),
        kept in kept(),
        segment_blocks in 1u64..70,
        verify in prop_oneof![Just(Verify::On), Just(Verify::Media), Just(Verify::Off)],
    ) {
        let case = Case { formats, kept, verify, ..Case::new(before, after) };
        // As many segments as may be dealt at once.
        let least = case.after.size.div_ceil(BLOCK * 32).max(1);
        let came = case.run(segment_blocks.max(least) * BLOCK);
        came.outcome.clone().unwrap();
        case.assert_same();
        prop_assert_eq!(came.compared(), case.expected());
        prop_assert!(came.written() <= case.expected().differing * BLOCK);
        prop_assert_eq!(came.diverged(), 0);
        prop_assert_eq!(came.disbelieved(), Vec::<&str>::new());
        if kept == Kept::Sealed {
            // At most the block in which the disk ended.
            prop_assert!(came.looked() <= BLOCK);
        }
    }
}

/// Disks in which some blocks of each group were changed, and some became holes.
fn changed(blocks: usize, every: usize) -> (Content, Content) {
    let before = Content::data(blocks, 1);
    let change = |(index, block): (usize, &Block)| match index % every {
        0 => Block::Data(250),
        1 if index % (3 * every) == 1 => Block::Hole,
        _ => *block,
    };
    let after = Content::new(before.blocks.iter().enumerate().map(change).collect());
    (before, after)
}

#[test]
fn what_is_zero_at_both_ends_stays_a_hole() {
    use std::os::unix::fs::MetadataExt;
    let mut before = Content::data(64, 1);
    before.blocks[8..40].fill(Block::Hole);
    let mut after = before.clone();
    after.blocks[40..60].fill(Block::Hole);
    after.blocks[10] = Block::Zeros;
    after.blocks[2] = Block::Data(99);
    let case = Case::new(before, after);
    let came = case.run(32 * BLOCK);
    came.outcome.clone().unwrap();
    case.assert_same();
    let allocated = std::fs::metadata(case.path("staging")).unwrap().blocks() * 512;
    assert_eq!(allocated, 12 * BLOCK, "eight blocks before the holes, four behind");
    assert_eq!(came.written(), BLOCK);
}

#[test]
fn comparing_costs_few_bytes_even_where_all_differs() {
    let len = 64 << 20;
    let blocks = 1024;
    let equal = Case::new(Content::data(blocks, 1), Content::data(blocks, 1)).run(len);
    let other = Case::new(Content::data(blocks, 1), Content::data(blocks, 2)).run(len);
    let share = |came: &Came| {
        came.outcome.clone().unwrap();
        came.digest_bytes() as f64 / len as f64
    };
    assert_eq!((equal.compared().differing, other.compared().differing), (0, 1024));
    assert!(share(&equal) <= 0.000_02, "{}", share(&equal));
    assert!(share(&other) <= 0.000_3, "{}", share(&other));
}

#[test]
fn a_lane_carries_new_disks_beside_those_that_are_compared() {
    let (before, after) = changed(96, 5);
    let case = Case::new(before, after);
    let (mut source, mut target) = case.make();
    let new = Content::data(70, 9);
    source.disks.push(new.image(&case.path("new-source"), &ImageFormat::Qcow2, new.size, true));
    target.disks.push(Content::new(Vec::new()).image(&case.path("new"), &ImageFormat::Raw, new.size, true));
    target.bases.push(None);
    ManifestFile::create(&case.path("new-manifest"), &key(), Uuid::nil(), (case.block, new.size)).unwrap();
    target.manifests.push(case.path("new-manifest").to_str().unwrap().to_owned());
    let mut segments = [case.segments(16 * BLOCK), segments(1, new.size, 16 * BLOCK)].concat();
    segments.sort_by_key(|segment| segment.offset);
    let made = target.disks[1].clone();
    let came = carry(source, target, Drive { segments, ..Drive::default() });
    came.outcome.clone().unwrap();
    assert_eq!(came.done().len(), 6 + 5);
    assert_eq!(came.compared(), case.expected());
    case.assert_same();
    assert!(read(&made) == new.bytes());
}
