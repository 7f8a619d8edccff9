//! A replica is synced by another controller than the one that made it: one that knows nothing but what the hosts tell.

use crate::common::{MIB, silent, spec};
use crate::oracle::child::Task;
use crate::oracle::{SILENCE, wait_for};
use crate::standby::Standby;
use kvm_clone_core::Result;
use kvm_clone_core::plan::SyncRequest;
use kvm_clone_engine::{Client, CloneResult, CloneSettings, Recovery, Way};
use tokio_util::sync::CancellationToken;

/// A controller with a place of its own, in which there is nothing.
async fn newcomer(standby: &Standby, name: &str) -> Client {
    let place = standby.lab.dir().join(name);
    std::fs::create_dir(&place).unwrap();
    let mut options = crate::common::options(&standby.lab);
    options.journal = place.join("journal.db");
    options.silence = SILENCE;
    Client::new(options).await.unwrap()
}

async fn sync(client: &Client) -> Result<CloneResult> {
    let (alpha, beta, name) = (spec("alpha"), spec("beta"), "web1".parse()?);
    let asked = SyncRequest::default();
    let prepared = client.prepare_sync(&alpha, &beta, &name, &asked, Recovery::Act, silent()).await?;
    prepared.execute(&CloneSettings::default(), silent(), CancellationToken::new()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_controller_goes_on_with_a_replica() {
    let Some(standby) = Standby::new("another_controller_goes_on_with_a_replica").await else { return };
    standby.write("vda", &["write -P 7 1M 64k"]);
    standby.sync().await.unwrap();
    let other = newcomer(&standby, "other").await;
    // What the one has noted holds for the other: nothing is read.
    assert_eq!(sync(&other).await.unwrap().way, Way::Untouched);
    standby.write("vda", &["write -P 8 2M 128k"]);
    standby.write("vdb", &["write -P 9 3M 64k"]);
    let result = sync(&other).await.unwrap();
    assert_eq!((result.way, result.bytes_read_dest), (Way::Compare, 0), "{}", result.why);
    assert_eq!(result.blocks_synchronized, 3, "only what was changed");
    assert!(result.bytes_transferred < MIB, "{result:?}");
    drop(other);
    standby.assert_synced();
    // And the first one goes on with that.
    assert_eq!(standby.sync().await.unwrap().way, Way::Untouched);
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_controller_goes_on_where_the_first_was_killed_midway() {
    let test = "another_controller_goes_on_where_the_first_was_killed_midway";
    let Some(standby) = Standby::new(test).await else { return };
    standby.write("vda", &["write -P 7 8M 6M"]);
    let old = standby.replica_contents();
    let mut controller = Task::in_lab(&standby.lab).sync().gate().start();
    controller.says("midway");
    let staged = || standby.beta.shell("du -c /var/lib/libvirt/images/.kvm-clone-* | tail -1 | cut -f1").unwrap();
    wait_for("data in an overlay", || staged().trim().parse::<u64>().unwrap() > 1024);
    controller.kill();
    standby.await_dead_man();
    assert_eq!(standby.replica_contents(), old);
    let other = newcomer(&standby, "other").await;
    let result = sync(&other).await.unwrap();
    assert_eq!((result.way, result.blocks_synchronized), (Way::Compare, 6 * 16), "{}", result.why);
    drop(other);
    standby.assert_synced();
    // Nothing of it is left for the first one to go on with, and nothing is wrong for it.
    assert_eq!(standby.sync().await.unwrap().way, Way::Untouched);
    standby.assert_synced();
}
