//! What a lane carries is damaged on its way, in either direction: an error, never a wrong image.

use kvm_clone_core::Code;

use super::pair::{Damage, Fault};
use super::*;

#[test]
fn damage_in_either_direction_is_an_error_and_never_a_wrong_image() {
    let forth =
        [Fault::FlipHeader, Fault::FlipBody, Fault::FlipPayload, Fault::Cut, Fault::Drop, Fault::Repeat, Fault::Swap];
    let (before, after) = changed(64, 7);
    for back in [false, true] {
        // The fourth frame back is an answer or the digests of a segment.
        for (fault, frame) in forth.into_iter().flat_map(|fault| [0, 3].map(|frame| (fault, frame))) {
            let case = Case::new(before.clone(), after.clone());
            let (source, target) = case.make();
            let damage = Some(Damage { fault, frame, back });
            let came = carry(source, target, Drive { segments: case.segments(16 * BLOCK), damage, ..Drive::default() });
            let error = came.outcome.as_ref().expect_err("damage was not noticed");
            assert_eq!(error.code.number(), 1006, "{damage:?}: {error:?}");
            assert!(!error.help.is_empty(), "{damage:?}: {error:?}");
            let (found, wanted) = (read_staging(&case), case.after.bytes());
            for segment in came.done() {
                let start = usize::try_from(segment.offset).unwrap();
                let range = start..start + usize::try_from(segment.len).unwrap();
                assert!(found[range.clone()] == wanted[range], "{damage:?}: {segment:?} is said to be done");
            }
        }
    }
}

/// The direct route has a seal in the place of checksums. What it cannot see is what a memory does.
#[test]
fn damage_that_no_checksum_tells_is_found_by_the_digests() {
    let (before, after) = changed(64, 7);
    for verify in [Verify::On, Verify::Off] {
        let came = (0..8).map(|frame| {
            let case = Case { verify, ..Case::new(before.clone(), after.clone()) };
            let (source, target) = case.make();
            let source = Source { route: Route::Direct, ..source };
            let damage = Some(Damage { fault: Fault::FlipPayload, frame, back: false });
            let came = carry(source, target, Drive { segments: case.segments(16 * BLOCK), damage, ..Drive::default() });
            came.outcome.expect_err("damage was not noticed").code
        });
        let codes: Vec<Code> = came.collect();
        assert!(codes.contains(&Code::Verification), "{verify:?}: {codes:?}");
    }
}

fn read_staging(case: &Case) -> Vec<u8> {
    std::fs::read(case.path("staging")).unwrap()
}
