//! What an earlier process wrote down, or something else in its place: no bytes may panic; markers and notes that can be read
//! mean the same when they are written again; and whatever the records of an operation say, what was begun last is undone
//! first, and nothing that was undone comes back.
//!
//! The first byte of an input chooses what the rest is taken for: a marker (0), the note of a point (1), records in words, a
//! line each (2), or records of one byte each (3).

#![no_main]

use kvm_clone_core::journal::{Mark, Step, Trail, is_lock_key};
use kvm_clone_core::wire::marker::Marker;
use kvm_clone_core::wire::point::PointNote;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    match choice {
        0 => comes_back::<Marker>(bytes),
        1 => comes_back::<PointNote>(bytes),
        2 => words(bytes),
        3 => records(bytes),
        _ => {}
    }
});

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec_pretty(&read).unwrap();
    assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), read);
}

fn words(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for line in text.lines().filter(|line| is_lock_key(line)) {
        assert!(!line.contains(['/', '\0']), "{line:?} is no name of a file");
    }
    let records = text.lines().filter_map(|line| line.split_once(' '));
    if let Ok(trail) = Trail::read(records) {
        undo(trail);
    }
}

fn records(bytes: &[u8]) {
    let mut trail = Trail::default();
    let (mut begun, mut undoing) = (Vec::new(), false);
    for byte in bytes {
        let (step, mark) =
            (Step::ALL[usize::from(byte >> 2) % Step::ALL.len()], Mark::ALL[usize::from(byte & 3) % Mark::ALL.len()]);
        let before = trail;
        if trail.take(step, mark).is_err() {
            assert_eq!(trail, before, "a record that was refused changed something");
            continue;
        }
        match mark {
            Mark::Intended => {
                assert!(!undoing, "{step} is begun after something was undone");
                begun.push(step);
            }
            Mark::Done => assert_eq!(begun.last(), Some(&step), "another step than the last was done"),
            Mark::Undone => {
                undoing = true;
                // One that was passed over may be undone like any other: it takes with it what came after it.
                begun.retain(|other| *other < step);
            }
            Mark::Resumed => {
                undoing = false;
                begun.retain(|other| *other < step);
            }
        }
        // Steps that only a sync has may be passed over; then they count as begun.
        let open = trail.open().iter().filter(|step| !step.is_of_sync() || begun.contains(step));
        assert!(open.eq(&begun), "{:?} is not {begun:?}", trail.open());
    }
    undo(trail);
}

/// Undoes all that may have happened.
fn undo(mut trail: Trail) {
    let open = trail.open();
    assert!(!trail.is_committed() || open.contains(&Step::Define));
    for step in open.iter().rev() {
        assert_eq!(trail.to_undo(), Some(*step));
        trail.take(*step, Mark::Undone).unwrap();
        assert!(!trail.open().contains(step));
    }
    assert_eq!(trail.to_undo(), None);
    assert!(!trail.is_committed());
    assert!(trail.take(Step::Mark, Mark::Intended).is_err() || open.is_empty());
}
