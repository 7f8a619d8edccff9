//! The unit of comparison may be another one at each sync: the replica becomes its source all the same, and what was changed there
//! is found all the same.

use crate::common::{MIB, number, silent};
use crate::oracle::child::Task;
use crate::oracle::strike::struck_while;
use crate::standby::{NAME, Standby, discarding, write};
use kvm_clone_core::blocks::BlockSize;
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::{SyncRequest, Update};
use kvm_clone_engine::{Client, CloneResult, CloneSettings, Moment, Resumed, Then, Way};
use kvm_clone_lab::{DiskSpec, Fill, MachineSpec};
use tokio_util::sync::CancellationToken;

/// Scattered writes at a time.
const WRITES: u64 = 30;

fn asked(size: Option<&str>) -> SyncRequest {
    SyncRequest { block_size: size.map(|size| size.parse().unwrap()), ..SyncRequest::default() }
}

fn asked_in_place(size: Option<&str>) -> SyncRequest {
    SyncRequest { update: Update { in_place: true, ..Update::default() }, ..asked(size) }
}

/// Pages of 4 KiB far from each other, on both disks.
fn scatter(standby: &Standby, byte: u8) {
    let commands: Vec<String> = (0..WRITES).map(|page| format!("write -q -P {byte} {}k 4k", page * 260 + 8)).collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    standby.write("vda", &commands);
    standby.write("vdb", &commands);
}

async fn new(test: &str) -> Option<Standby> {
    let machine = MachineSpec::named("web1")
        .disk(DiskSpec::qcow2("vda", 16 * MIB).fill(Fill::Random { seed: 1, bytes: 10 * MIB }))
        .disk(DiskSpec::raw("vdb", 8 * MIB).fill(Fill::Random { seed: 2, bytes: 8 * MIB }));
    Standby::of(test, machine).await
}

/// `verify` finds the replica to be its point.
async fn assert_verified(standby: &Standby) {
    let result = standby.verify().await.unwrap();
    assert!(result.success, "{result:?}");
}

async fn synced(standby: &Standby, asked: &SyncRequest) -> CloneResult {
    let result = standby.sync_with(asked, &CloneSettings::default()).await.unwrap();
    standby.assert_synced();
    assert_verified(standby).await;
    assert_eq!(result.way, Way::Compare);
    // Of the raw machine one more.
    let whole = 24 * MIB / result.block_size.bytes();
    assert!((whole..=whole + 1).contains(&result.blocks_total), "{result:?}");
    assert!(!result.warnings.iter().any(|warning| warning.contains("digests")), "{:?}", result.warnings);
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sync_may_have_blocks_of_another_size() {
    let Some(standby) = new("each_sync_may_have_blocks").await else { return };
    let size = |text: &str| text.parse::<BlockSize>().unwrap();
    // The size asked for, that which it has, and whether the replica has to be read for it.
    let rounds = [
        (None, "64K", false),
        (Some("4K"), "4K", true),
        (None, "4K", false),
        (Some("1M"), "1M", true),
        (None, "1M", false),
        (Some("64K"), "64K", true),
    ];
    let mut sent = Vec::new();
    for (byte, (wanted, expected, reads)) in (1..).zip(rounds) {
        scatter(&standby, byte);
        let result = synced(&standby, &asked(wanted)).await;
        assert_eq!(result.block_size, size(expected));
        assert_eq!(result.bytes_read_dest > 0, reads, "{wanted:?}");
        sent.push((expected, result.bytes_transferred));
        if expected != "1M" {
            assert_eq!(result.blocks_synchronized, 2 * WRITES, "{wanted:?}");
        }
    }
    // Small blocks send less.
    assert!(sent[2].1 * 6 < sent[0].1, "{sent:?}");
    // Nothing changed but the size: its digests are made, nothing is sent.
    let result = synced(&standby, &asked(Some("4K"))).await;
    assert_eq!((result.bytes_written, result.blocks_synchronized), (0, 0));
    assert_eq!(standby.sync().await.unwrap().way, Way::Untouched);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_size_hides_no_change_of_the_replica() {
    let Some(standby) = new("a_change_of_size_hides_no_change").await else { return };
    for (byte, size) in (1..).zip(["4K", "1M", "64K"]) {
        scatter(&standby, byte);
        write(&standby.beta, NAME, "vdb", &["write -q -P 99 5M 512"]);
        let before = standby.replica_contents();
        let error = standby.sync_with(&asked(Some(size)), &CloneSettings::default()).await.unwrap_err();
        assert_eq!(number(&error), 1014, "{size}: {error:?}");
        assert_eq!(error.context["offset"], (5 * MIB).to_string(), "{size}: {error:?}");
        assert_eq!(standby.replica_contents(), before);
        let result = standby.sync_with(&asked(Some(size)), &discarding()).await.unwrap();
        assert_eq!(result.block_size.to_string(), size);
        standby.assert_synced();
        assert_verified(&standby).await;
    }
}

/// A replica whose disks can be written themselves; one of them ends inside a block.
async fn raw(test: &str) -> Option<Standby> {
    let machine = MachineSpec::named("web1")
        .disk(DiskSpec::raw("vda", 16 * MIB).fill(Fill::Random { seed: 1, bytes: 10 * MIB }))
        .disk(DiskSpec::raw("vdb", 8 * MIB + 512).fill(Fill::Random { seed: 2, bytes: 8 * MIB + 512 }));
    Standby::of(test, machine).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_place_just_the_blocks_that_differ_are_written_whatever_their_size() {
    let Some(standby) = raw("in_place_just_the_blocks").await else { return };
    for (byte, size) in (1..).zip([Some("4K"), None, Some("1M"), Some("64K")]) {
        scatter(&standby, byte);
        let result = synced(&standby, &asked_in_place(size)).await;
        let bytes = result.blocks_synchronized * result.block_size.bytes();
        assert!(
            result.blocks_synchronized > 0 && bytes - result.bytes_written < MIB,
            "a last block is shorter: {result:?}"
        );
        write(&standby.beta, NAME, "vdb", &["write -q -P 99 5M 512"]);
        let before = standby.replica_contents();
        for other in ["4K", "1M"] {
            let error = standby.sync_with(&asked_in_place(Some(other)), &CloneSettings::default()).await.unwrap_err();
            assert_eq!(number(&error), 1014, "{error:?}");
            assert_eq!(standby.replica_contents(), before, "before anything is written");
        }
        standby.sync_with(&asked_in_place(size), &discarding()).await.unwrap();
        standby.assert_synced();
    }
}

/// What it has written itself is not taken for what somebody else did.
#[tokio::test(flavor = "multi_thread")]
async fn in_place_a_step_may_be_done_twice_with_blocks_of_another_size() {
    let Some(standby) = raw("in_place_a_step_may_be_done_twice").await else { return };
    for (byte, step) in (1..).zip([Step::Stage, Step::Withdraw, Step::Copy, Step::Finish]) {
        let size = ["4K", "256K"][usize::from(byte) % 2];
        scatter(&standby, byte);
        let prepared = standby.prepare(&asked_in_place(Some(size))).await.unwrap();
        let result = struck_while(prepared, (step, Moment::Acted), || Ok(Then::Again)).await.unwrap();
        assert_eq!(result.block_size.to_string(), size, "{step}");
        standby.assert_synced();
        assert_verified(&standby).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_sync_goes_on_with_the_blocks_that_it_was_begun_with() {
    let Some(standby) = raw("an_interrupted_sync_goes_on_with_the_blocks").await else { return };
    let tasks = [("4K", Task::in_lab(&standby.lab)), ("256K", Task::in_lab(&standby.lab).in_place())];
    for (byte, (size, task)) in (7..).zip(tasks) {
        standby.write("vda", &[&format!("write -q -P {byte} 0 10M")]);
        let mut controller = task.blocks_of(size.parse().unwrap()).gate().start();
        controller.says("midway");
        controller.kill();
        standby.await_dead_man();
        let left = standby.beta.shell("basename -s .json /var/lib/kvm-clone/operations/*.json").unwrap();
        let mut options = crate::common::options(&standby.lab);
        options.journal = standby.lab.dir().join("child.db");
        options.silence = crate::oracle::SILENCE;
        let client = Client::new(options).await.unwrap();
        let resumed = client
            .resume(left.trim().parse().unwrap(), &CloneSettings::default(), silent(), CancellationToken::new())
            .await;
        let Resumed::Copied(result) = resumed.unwrap() else { panic!("it did not stand") };
        assert!(result.resumed && result.block_size.to_string() == size, "{result:?}");
        standby.assert_synced();
        assert_verified(&standby).await;
        let next = standby.sync().await.unwrap();
        assert_eq!((next.way, next.block_size.to_string().as_str()), (Way::Untouched, size));
    }
}
