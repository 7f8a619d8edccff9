//! The locks of an operation, on both hosts.

use kvm_clone_core::Result;
use kvm_clone_core::wire::control::Request;
use uuid::Uuid;

use crate::inventory::Site;

/// Takes the locks of both sides, never waiting: on one host all at once, so that no order can deadlock.
pub(crate) async fn lock_both(
    source: &Site,
    target: &Site,
    operation: Uuid,
    source_keys: Vec<String>,
    target_keys: Vec<String>,
) -> Result<()> {
    let take = |site: &Site, keys: Vec<String>| {
        let control = site.host.control.clone();
        async move { control.order(Request::Lock { operation, keys }).await }
    };
    if source.host.is(&target.host) {
        let mut keys = [source_keys, target_keys].concat();
        keys.sort();
        keys.dedup();
        take(source, keys).await?;
        return source.host.control.order(Request::ClearPoints).await;
    }
    take(source, source_keys).await?;
    // Whoever holds a machine's lock is the one to end what a dead operation left running on it.
    let cleared = source.host.control.order(Request::ClearPoints);
    tokio::try_join!(cleared, take(target, target_keys)).map(drop)
}
