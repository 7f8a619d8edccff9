//! Blocks of every size: over real overlays, and over digests that were kept of blocks of another size.

use super::begun::overlay;
use super::disk::flip;
use super::*;

const SIZES: [u32; 3] = [4 << 10, 64 << 10, 1 << 20];

fn size(bytes: u32) -> BlockSize {
    BlockSize::new(bytes).unwrap()
}

fn sizes() -> impl Strategy<Value = BlockSize> {
    prop::sample::select(SIZES.to_vec()).prop_map(size)
}

/// Segments of whole blocks of both sizes, no more than may be dealt at once.
fn dealt(case: &Case, mib: u64) -> Vec<Segment> {
    let least = case.after.size.div_ceil(32 << 20).max(1);
    case.segments(mib.max(least) << 20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn an_overlay_becomes_what_the_source_is_whatever_the_size_of_the_blocks(
        (before, after) in contents(),
        format in format(),
        kept in kept(),
        (block, kept_block) in (sizes(), sizes()),
        mib in 1u64..6,
        verify in prop_oneof![Just(Verify::On), Just(Verify::Media), Just(Verify::Off)],
    ) {
        let case = Case { formats: (ImageFormat::Raw, format), kept, verify, block, kept_block, ..Case::new(before, after) };
        let (source, mut target) = case.make();
        overlay(&case, &mut target, &[]);
        let image = target.disks[0].clone();
        let came = carry(source, target, Drive { segments: dealt(&case, mib), ..Drive::default() });
        came.outcome.clone().unwrap();
        prop_assert!(read(&image) == case.after.bytes());
        case.assert_manifest();
        prop_assert_eq!(came.compared(), case.expected());
        prop_assert!(came.written() <= case.expected().differing * block.bytes());
        prop_assert_eq!(came.diverged(), 0);
        prop_assert_eq!(came.disbelieved(), Vec::<&str>::new());
        if kept == Kept::Sealed && block == kept_block {
            // At most the block in which the disk ended.
            prop_assert!(came.looked() <= block.bytes());
        }
    }

    #[test]
    fn a_begun_overlay_is_gone_on_with_whatever_the_size_of_the_blocks(
        (before, after) in contents(),
        format in format(),
        kept in kept(),
        (block, kept_block) in (sizes(), sizes()),
        written in prop::collection::vec(prop::option::weighted(0.2, block()), 190),
        mib in 1u64..6,
    ) {
        let case = Case { formats: (ImageFormat::Raw, format), kept, block, kept_block, ..Case::new(before, after) };
        let written = &written[..case.after.blocks.len()];
        let (source, mut target) = case.make();
        overlay(&case, &mut target, written);
        let image = target.disks[0].clone();
        let came = carry(source, target, Drive { segments: dealt(&case, mib), ..Drive::default() });
        came.outcome.clone().unwrap();
        prop_assert!(read(&image) == case.after.bytes());
        case.assert_manifest();
    }

    #[test]
    fn a_new_image_is_made_of_blocks_of_any_size(
        (_, after) in contents(),
        formats in (format(), format()),
        block in sizes(),
        mib in 1u64..6,
    ) {
        let case = Case { formats, block, ..Case::new(Content::new(Vec::new()), after) };
        let (mut source, mut target) = case.make();
        (source.compared, target.bases) = (Vec::new(), vec![None]);
        let came = carry(source, target, Drive { segments: dealt(&case, mib), ..Drive::default() });
        came.outcome.clone().unwrap();
        case.assert_same();
    }
}

#[test]
fn what_somebody_wrote_is_found_whatever_the_sizes_of_the_blocks() {
    let flipped = 37 * BLOCK + 5000;
    for (block, kept_block) in SIZES.into_iter().flat_map(|block| SIZES.map(|kept| (size(block), size(kept)))) {
        let (before, after) = changed(64, 7);
        let new = |kept| Case { kept, block, kept_block, ..Case::new(before.clone(), after.clone()) };
        let run = |case: &Case| {
            let (source, mut target) = case.make();
            overlay(case, &mut target, &[]);
            flip(&case.path("base"), flipped);
            let image = target.disks[0].clone();
            (carry(source, target, Drive { segments: dealt(case, 2), ..Drive::default() }), image)
        };
        let sealed = (block != kept_block).then_some(Kept::Sealed);
        for kept in sealed.into_iter().chain([Kept::Checked(OnDivergence::Refuse)]) {
            let error = run(&new(kept)).0.outcome.unwrap_err();
            assert_eq!(error.code, kvm_clone_core::Code::Conflict, "{block} {kept_block}: {error:?}");
            assert_eq!(error.context["offset"], (flipped - flipped % kept_block.bytes()).to_string(), "{block}");
        }
        let case = new(Kept::Checked(OnDivergence::Discard));
        let (came, image) = run(&case);
        came.outcome.clone().unwrap();
        assert!(read(&image) == case.after.bytes(), "{block} {kept_block}");
        assert_eq!(came.diverged(), 1, "{block} {kept_block}");
        assert!(came.compared().differing >= case.expected().differing);
    }
}

/// A database that wrote 300 pages, each somewhere else.
#[test]
fn small_blocks_send_less_of_scattered_small_writes() {
    let cost = |block: u32| {
        let before = Content::new(vec![Block::Parts(0xff); 1024]);
        let mut after = before.clone();
        after.blocks.iter_mut().step_by(3).take(300).for_each(|block| *block = Block::Parts(0xfe));
        let case = Case { block: size(block), kept_block: size(block), kept: Kept::Sealed, ..Case::new(before, after) };
        let came = case.run(64 << 20);
        came.outcome.clone().unwrap();
        case.assert_same();
        came.sent() + came.digest_bytes()
    };
    let [small, usual, large] = SIZES.map(cost);
    assert!(small * 8 < usual, "{small} of {usual} bytes");
    assert!(usual < large, "{usual} of {large} bytes");
}

/// What is in a cluster beside a block that was sent is read back, too.
#[test]
fn what_a_new_cluster_was_filled_up_with_is_read_back() {
    use crate::device::{ReadDevice, Result as DeviceResult};
    use std::sync::Arc;

    /// A disk that shows what it does not hold.
    struct Wrong(Box<dyn ReadDevice>);

    impl ReadDevice for Wrong {
        fn size(&self) -> u64 {
            self.0.size()
        }

        fn extents(&self, offset: u64, len: u64) -> DeviceResult<Vec<kvm_clone_core::blocks::Extent>> {
            self.0.extents(offset, len)
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> DeviceResult<()> {
            self.0.read_at(buf, offset)?;
            buf.iter_mut().for_each(|byte| *byte ^= 1);
            Ok(())
        }

        fn drop_cache(&self, _: u64, _: u64) {}
    }

    let before = Content::new(vec![Block::Parts(0xff); 32]);
    let mut after = before.clone();
    after.blocks[5] = Block::Parts(0xfe);
    let case = Case { block: size(4096), ..Case::new(before, after) };
    let (source, mut target) = case.make();
    overlay(&case, &mut target, &[]);
    let path = case.path("overlay");
    let chunks = Arc::new(crate::device::AtomicChunks::of(&path).unwrap());
    let whole = crate::device::Qcow2Writer::open(&path, chunks).unwrap();
    let below = super::super::open_reader(&target.bases[0].as_ref().unwrap().image).unwrap();
    let writer = crate::device::PartWriter::new(whole, Some(Box::new(Wrong(below))));
    let target_devices: Option<Vec<Arc<dyn crate::device::WriteDevice>>> = Some(vec![Arc::new(writer)]);
    let drive = Drive { segments: dealt(&case, 2), target_devices, ..Drive::default() };
    let error = carry(source, target, drive).outcome.unwrap_err();
    assert_eq!(error.code, kvm_clone_core::Code::Verification, "{error:?}");
    assert_eq!(error.context["offset"], (5 * BLOCK + 8192).to_string());
}
