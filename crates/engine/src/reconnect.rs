//! Reaching a host again to undo, after the connection to it was lost.

use std::time::Duration;

use kvm_clone_core::wire::control::Request;
use kvm_clone_core::{Code, Result};
use tokio::time::Instant;
use uuid::Uuid;

use crate::inventory::Site;

/// Pauses between tries grow to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// Beyond the time that the old control agent may take to notice, so long we try.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects anew and takes the operation's locks again. The old control agent, if it lives, holds them until it has
/// noticed the silence; so this tries for that long and a little more.
pub(crate) async fn reconnect(site: &Site, operation: Uuid, keys: &[String], silence: Duration) -> Result<Site> {
    let end = Instant::now() + silence + PATIENCE;
    let mut pause = Duration::from_millis(250);
    loop {
        let error = match attempt(site, operation, keys).await {
            Ok(site) => return Ok(site),
            Err(error) => error,
        };
        let hopeless = !error.transient && error.code != Code::Locked;
        if hopeless || Instant::now() + pause > end {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn attempt(site: &Site, operation: Uuid, keys: &[String]) -> Result<Site> {
    let host = site.host.again().await?;
    host.control.order(Request::Lock { operation, keys: keys.to_vec() }).await?;
    let libvirt = host.libvirt().await?;
    Ok(Site { host, libvirt })
}
