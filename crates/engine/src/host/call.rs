//! Calls of libvirt's library, which block: each runs on a thread for blocking work, with a deadline.

use std::time::Duration;

use kvm_clone_core::{Error, Result};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use virt::error::ErrorDomain;

type Outcome<T> = std::result::Result<T, virt::error::Error>;

/// Runs a call with a deadline. One that hangs keeps its thread until libvirt answers, or until the relay ends with the last use of the
/// connection.
pub(super) async fn blocking<T: Send + 'static>(
    deadline: Duration,
    host: &str,
    work: impl FnOnce() -> Outcome<T> + Send + 'static,
) -> Result<T> {
    answered(deadline, host, tokio::task::spawn_blocking(work)).await
}

async fn answered<T>(deadline: Duration, host: &str, call: JoinHandle<Outcome<T>>) -> Result<T> {
    let since = std::time::Instant::now();
    let ended = tokio::time::timeout(deadline, call).await;
    tracing::debug!(host, micros = since.elapsed().as_micros(), "libvirt answered");
    match ended {
        Ok(Ok(outcome)) => outcome.map_err(|error| failed(host, &error)),
        Ok(Err(_)) => Err(Error::internal("a call of libvirt panicked")),
        Err(_) => Err(Error::timeout(format!("libvirt on {host} did not answer in {} s", deadline.as_secs()))
            .with("host", host)
            .help("libvirtd may hang there: systemctl status libvirtd; libvirt.timeout sets how long we wait")
            .transient()),
    }
}

fn failed(host: &str, error: &virt::error::Error) -> Error {
    // The RPC itself failed, not what was asked for: the relay is gone, and with it the agent.
    if error.domain().is(ErrorDomain::Rpc) {
        return Error::connection(format!("the connection to libvirt on {host} was lost: {}", error.message()))
            .with("host", host)
            .help("Run the command again; if it happens twice, look at libvirtd's log on the host")
            .transient();
    }
    Error::libvirt(format!("libvirt on {host}: {}", error.message()))
        .with("host", host)
        .with("libvirt_code", error.code().to_raw())
        .help("journalctl -u libvirtd -u virtqemud on the host says more")
}

/// Calls that change something. One that was given up may still do so, unseen: nothing may be built on that it did not.
#[derive(Clone, Default)]
pub(super) struct Changing(TaskTracker);

impl Changing {
    /// Runs one of them.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        deadline: Duration,
        host: &str,
        work: impl FnOnce() -> Outcome<T> + Send + 'static,
    ) -> Result<T> {
        answered(deadline, host, self.0.spawn_blocking(work)).await
    }

    /// Waits until all of them have ended.
    ///
    /// # Errors
    /// [`Code::Timeout`](kvm_clone_core::Code::Timeout) where one has not.
    pub(super) async fn over(&self, limit: Duration, host: &str) -> Result<()> {
        self.0.close();
        tokio::time::timeout(limit, self.0.wait()).await.map_err(|_| {
            Error::timeout(format!("libvirt on {host} was asked for a change, and may still make it"))
                .with("host", host)
                .help("libvirtd hangs there: systemctl status libvirtd")
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::channel;

    use kvm_clone_core::Code;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_that_was_given_up_is_not_over_until_it_has_ended() {
        let changing = Changing::default();
        let (go_on, held) = channel::<()>();
        let hangs = move || {
            let _ = held.recv();
            Ok(())
        };
        let error = changing.blocking(SHORT, "beta", hangs).await.unwrap_err();
        assert!(error.code == Code::Timeout && error.transient, "{error:?}");
        assert_eq!(changing.over(SHORT, "beta").await.unwrap_err().code, Code::Timeout);
        drop(go_on);
        changing.over(LONG, "beta").await.unwrap();
        changing.blocking(LONG, "beta", || Ok(())).await.unwrap();
        changing.over(LONG, "beta").await.unwrap();
    }
}
