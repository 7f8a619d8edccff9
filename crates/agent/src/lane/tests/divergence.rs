//! Bases that are not what their manifests say, and manifests that are not what they should be.

use kvm_clone_core::Code;
use kvm_clone_core::blocks::manifest::{HEADER_LEN, entry_offset};
use kvm_clone_core::blocks::{BlockIndex, Root};

use super::disk::flip;
use super::*;
use crate::lane::target::whole;

/// A case of which the base was changed, in one block, since its manifest was made.
fn written_to(kept: Kept) -> (Case, Source, Target) {
    let (before, after) = changed(64, 7);
    let case = Case { kept, ..Case::new(before, after) };
    let (source, target) = case.make();
    flip(&case.path("base"), 37 * BLOCK + 5);
    flip(&case.path("staging"), 37 * BLOCK + 5);
    (case, source, target)
}

fn drive(case: &Case) -> Drive {
    Drive { segments: case.segments(32 * BLOCK), ..Drive::default() }
}

#[test]
fn a_base_that_somebody_wrote_to_is_refused() {
    let (case, source, target) = written_to(Kept::Checked(OnDivergence::Refuse));
    let error = carry(source, target, drive(&case)).outcome.unwrap_err();
    assert_eq!(error.code, Code::Conflict, "{error:?}");
    assert_eq!(error.context["offset"], (37 * BLOCK).to_string());
    assert!(error.context["path"].ends_with("/base"), "{error:?}");
    assert!(error.ways_out()[0].contains("--discard-target-changes"), "{error:?}");
}

#[test]
fn what_somebody_wrote_to_a_base_is_discarded_if_that_was_asked_for() {
    let (case, source, target) = written_to(Kept::Checked(OnDivergence::Discard));
    let came = carry(source, target, drive(&case));
    came.outcome.clone().unwrap();
    case.assert_same();
    assert_eq!(came.diverged(), 1);
    assert_eq!(came.compared().differing, case.expected().differing + 1);
}

#[test]
fn a_base_whose_manifest_is_not_there_is_read_and_compared() {
    type Break = fn(&Case);
    let breaks: [(&str, Break); 5] = [
        ("cannot be opened", |case| std::fs::remove_file(case.path("kept")).unwrap()),
        ("not those of its root", |case| flip(&case.path("kept"), entry_offset(BlockIndex(9)))),
        ("damaged", |case| flip(&case.path("kept"), 70)),
        ("another length", |case| {
            let file = std::fs::File::options().write(true).open(case.path("kept")).unwrap();
            file.set_len(HEADER_LEN as u64 + 160).unwrap();
        }),
        ("not completed", |case| {
            std::fs::remove_file(case.path("kept")).unwrap();
            ManifestFile::create(&case.path("kept"), &key(), Uuid::nil(), (case.block, case.before.size)).unwrap();
        }),
    ];
    for kept in [Kept::Sealed, Kept::Checked(OnDivergence::Refuse)] {
        for (why, broken) in &breaks {
            let (before, after) = changed(40, 7);
            let case = Case { kept, ..Case::new(before, after) };
            let (source, target) = case.make();
            broken(&case);
            let came = carry(source, target, drive(&case));
            came.outcome.clone().unwrap();
            case.assert_same();
            assert_eq!(came.disbelieved().len(), 1, "{why}");
            assert!(came.disbelieved()[0].contains(why), "{why}: {came:?}");
            assert_eq!(came.looked(), case.before.size, "{why}");
        }
    }
}

#[test]
fn a_manifest_of_another_point_key_or_disk_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifest");
    let root = Content::data(20, 1).manifest(&path, &key(), BlockSize::default());
    let why = |key: &DigestKey, root| whole(&path, key, root).err().unwrap();
    assert!(why(&DigestKey::new([4; 32]), None).contains("another key"));
    assert!(why(&key(), Some(Root([7; 32]))).contains("another point"));
    assert_eq!(whole(&path, &key(), Some(root)).ok().unwrap().disk_size(), 20 * BLOCK);
    let (before, after) = changed(40, 7);
    let case = Case { kept: Kept::Checked(OnDivergence::Refuse), ..Case::new(before, after) };
    let (source, target) = case.make();
    std::fs::copy(&path, case.path("kept")).unwrap();
    let came = carry(source, target, drive(&case));
    came.outcome.clone().unwrap();
    assert!(came.disbelieved()[0].contains("a disk of"), "{came:?}");
}

#[test]
fn a_sealed_base_is_not_read() {
    let (before, after) = changed(64, 7);
    let case = Case { kept: Kept::Sealed, ..Case::new(before, after) };
    let (source, target) = case.make();
    // Who read it would find something else.
    flip(&case.path("base"), 37 * BLOCK + 5);
    let came = carry(source, target, drive(&case));
    came.outcome.clone().unwrap();
    case.assert_same();
    assert_eq!((came.looked(), came.compared()), (0, case.expected()));
}
