//! What operations write down.

use std::path::Path;

use kvm_clone_core::journal::{Mark, Step};
use kvm_clone_core::wire::point::PointNote;
use uuid::Uuid;

use super::{frames, seed};

/// Writes the seeds of `journal`.
pub(super) fn write(dir: &Path) {
    let note = PointNote {
        operation: Uuid::nil(),
        source: "web1 on alpha".to_owned(),
        new_name: "web1_clone".to_owned(),
        machine: Uuid::nil(),
        socket: "/var/lib/libvirt/qemu/domain-1-web1/kvm-clone-0.sock".to_owned(),
        scratch: vec!["/pool/.scratch".to_owned()],
    };
    seed(dir, "marker", 0, &serde_json::to_vec_pretty(&frames::marker()).unwrap());
    seed(dir, "note", 1, &serde_json::to_vec_pretty(&note).unwrap());
    let all: Vec<(Step, Mark)> =
        Step::ALL.into_iter().flat_map(|step| [(step, Mark::Intended), (step, Mark::Done)]).collect();
    let undone = Step::ALL[..5].iter().rev().map(|step| (*step, Mark::Undone));
    let failed: Vec<(Step, Mark)> = all[..9].iter().copied().chain(undone).collect();
    for (name, records) in [("completed", all), ("failed", failed)] {
        let words = records.iter().map(|(step, mark)| format!("{step} {mark}\n")).collect::<String>();
        seed(dir, &format!("{name}-words"), 2, words.as_bytes());
        let bytes: Vec<u8> = records.iter().map(|(step, mark)| (*step as u8) << 2 | *mark as u8).collect();
        seed(dir, &format!("{name}-records"), 3, &bytes);
    }
}
