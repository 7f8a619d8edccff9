//! What a lane carries is damaged on its way, in either direction: an error, never a wrong image.

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

fn read_staging(case: &Case) -> Vec<u8> {
    std::fs::read(case.path("staging")).unwrap()
}
