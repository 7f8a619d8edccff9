//! Reaching a host or its libvirt again, after the connection to it was lost.

use std::time::Duration;

use kvm_clone_core::wire::control::Request;
use kvm_clone_core::{Code, Error, Result};
use tokio::time::Instant;
use uuid::Uuid;

use crate::inventory::Site;

/// Pauses between tries grow from this …
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// … to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// Beyond the time that the old control agent may take to notice, so long we try.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// So long a libvirt that is being restarted is waited for.
const LIBVIRT_PATIENCE: Duration = Duration::from_secs(20);

/// Connects anew and takes the operation's locks again. The old control agent, if it lives, holds them until it has
/// noticed the silence; so this tries for that long and a little more.
pub(crate) async fn reconnect(site: &Site, operation: Uuid, keys: &[String], silence: Duration) -> Result<Site> {
    again(silence + PATIENCE, || async {
        let host = site.host.again().await?;
        host.control.order(Request::Lock { operation, keys: keys.to_vec() }).await?;
        let libvirt = host.libvirt().await?;
        Ok(Site { host, libvirt })
    })
    .await
}

/// The same site with a libvirt that answers: the daemon may have been restarted since it was opened, as updates do.
pub(crate) async fn revive(site: &Site) -> Result<Site> {
    if site.libvirt.answers().await {
        return Ok(site.clone());
    }
    let opened = again(LIBVIRT_PATIENCE, || async {
        let libvirt = site.host.libvirt().await?;
        Ok(Site { host: site.host.clone(), libvirt })
    });
    tokio::select! {
        site = opened => site,
        // Without the agent that holds the locks there is no way to libvirt, and must be none.
        error = site.host.control.gone() => Err(error),
    }
}

/// Tries until it works, cannot work, or took too long.
pub(crate) async fn again<T, F: Future<Output = Result<T>>>(patience: Duration, attempt: impl Fn() -> F) -> Result<T> {
    let end = Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !may_pass(&error) || Instant::now() + pause > end {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether the reason may go away by itself. A host that boots refuses in many ways until all of it is up.
const fn may_pass(error: &Error) -> bool {
    error.transient || matches!(error.code, Code::Locked | Code::Connection | Code::Libvirt | Code::Timeout)
}
