//! Images that an interrupted try has begun: what is right in them stays, whatever else is in them.

use std::sync::Arc;

use kvm_clone_core::wire::lane::ImageSpec;

use super::disk::flip;
use super::*;
use crate::device::new_qcow2::{self, AtomicChunks};
use crate::device::{NamedImage, Qcow2Writer, WriteDevice};

/// Has the staging image of a case be its own base.
fn own_base(target: &mut Target) {
    let image = target.disks[0].clone();
    target.bases[0] = Some(Base { image, digests: None, begun: true });
}

/// Has the staging image of a case be an overlay over its base, in which these blocks were written.
pub(super) fn overlay(case: &Case, target: &mut Target, written: &[Option<Block>]) {
    let Some(base) = &mut target.bases[0] else { panic!("no base") };
    base.begun = true;
    let path = case.path("overlay");
    let format = match case.formats.1 {
        ImageFormat::Raw => crate::device::ImageFormat::Raw,
        _ => crate::device::ImageFormat::Qcow2,
    };
    let below = NamedImage { path: base.image.path.clone().into(), format };
    new_qcow2::create_overlay(&path, case.after.size, &below).unwrap();
    let writer = Qcow2Writer::open(&path, Arc::new(AtomicChunks::of(&path).unwrap())).unwrap();
    let content = overlaid(case, written);
    for (index, _) in written.iter().enumerate().filter(|(_, block)| block.is_some()) {
        let offset = index as u64 * BLOCK;
        match content.blocks[index] {
            Block::Data(_) | Block::Parts(_) => writer.write_at(&content.block(index), offset).unwrap(),
            _ => writer.write_zeroes(offset, BLOCK.min(content.size - offset)).unwrap(),
        }
    }
    let backing = vec![(base.image.path.clone(), case.formats.1.clone())];
    target.disks[0] = ImageSpec { backing, ..ImageSpec::new(path.to_str().unwrap(), ImageFormat::Qcow2) };
}

/// What the overlay shows.
fn overlaid(case: &Case, written: &[Option<Block>]) -> Content {
    let mut content = Content { size: case.after.size, ..case.before.clone() };
    content.blocks.resize(case.after.blocks.len(), Block::Hole);
    for (block, written) in content.blocks.iter_mut().zip(written) {
        *block = written.unwrap_or(*block);
    }
    content
}

/// Bytes of what is there that is right, and is data, among these blocks.
fn right(case: &Case, there: &[kvm_clone_core::blocks::Digest], counts: impl Fn(usize) -> bool) -> u64 {
    let after = case.after.digests(&key(), case.block);
    let both = after.iter().zip(there).enumerate();
    both.filter(|(index, (now, then))| counts(*index) && now == then && !now.is_zero()).count() as u64 * BLOCK
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn a_new_image_that_was_begun_is_its_own_base(
        (before, after) in contents(),
        formats in (format(), format()),
        segment_blocks in 1u64..70,
        verify in prop_oneof![Just(Verify::On), Just(Verify::Media), Just(Verify::Off)],
    ) {
        let case = Case { formats, verify, ..Case::new(before, after) };
        let (source, mut target) = case.make();
        own_base(&mut target);
        let least = case.after.size.div_ceil(BLOCK * 32).max(1);
        let segments = case.segments(segment_blocks.max(least) * BLOCK);
        let came = carry(source, target, Drive { segments, ..Drive::default() });
        came.outcome.clone().unwrap();
        case.assert_same();
        prop_assert_eq!(came.compared(), case.expected());
        let there = grown_digests(&case.before, case.after.size, &key(), case.block);
        prop_assert_eq!(came.kept(), right(&case, &there, |_| true));
    }

    #[test]
    fn an_overlay_that_was_begun_counts_where_it_holds_something(
        (before, after) in contents(),
        format in format(),
        kept in kept(),
        written in prop::collection::vec(prop::option::weighted(0.4, (block(), any::<bool>())), 190),
        segment_blocks in 1u64..70,
    ) {
        let case = Case { formats: (ImageFormat::Raw, format), kept, ..Case::new(before, after) };
        // Half of what was written is right.
        let written: Vec<Option<Block>> = case
            .after
            .blocks
            .iter()
            .zip(written)
            .map(|(after, written)| written.map(|(block, is_right)| if is_right { *after } else { block }))
            .collect();
        let (source, mut target) = case.make();
        overlay(&case, &mut target, &written);
        let image = target.disks[0].clone();
        let least = case.after.size.div_ceil(BLOCK * 32).max(1);
        let segments = case.segments(segment_blocks.max(least) * BLOCK);
        let came = carry(source, target, Drive { segments, ..Drive::default() });
        came.outcome.clone().unwrap();
        prop_assert!(read(&image) == case.after.bytes());
        prop_assert_eq!(came.disbelieved(), Vec::<&str>::new());
        let there = overlaid(&case, &written).digests(&key(), case.block);
        prop_assert_eq!(came.kept(), right(&case, &there, |index| written[index].is_some()));
        if kept == Kept::Sealed {
            let begun = written.iter().flatten().count() as u64;
            prop_assert!(came.looked() <= (begun + 1) * BLOCK);
        }
    }
}

#[test]
fn what_somebody_wrote_under_an_overlay_that_was_begun_is_found() {
    let (before, after) = changed(64, 7);
    let case = Case { kept: Kept::Checked(OnDivergence::Refuse), ..Case::new(before, after) };
    for block in [3, 40] {
        let (source, mut target) = case.make();
        let written: Vec<_> = case.after.blocks.iter().take(16).map(|block| Some(*block)).collect();
        overlay(&case, &mut target, &[written, vec![None; 48]].concat());
        flip(&case.path("base"), block * BLOCK + 5);
        let drive = Drive { segments: case.segments(32 * BLOCK), ..Drive::default() };
        let error = carry(source, target, drive).outcome.unwrap_err();
        assert_eq!(error.code, kvm_clone_core::Code::Conflict, "{error:?}");
        assert_eq!(error.context["offset"], (block * BLOCK).to_string());
        for file in ["source", "base", "staging", "overlay", "manifest", "kept"] {
            std::fs::remove_file(case.path(file)).unwrap();
        }
    }
}
