//! The commands, one file each.

pub(crate) mod cancel;
pub(crate) mod clone;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod list;
pub(crate) mod pages;
pub(crate) mod recover;
pub(crate) mod resume;
pub(crate) mod status;
pub(crate) mod sync;
pub(crate) mod verify;

mod confirm;
mod copying;

use kvm_clone_core::host::HostAddr;
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{Client, HostSpec};

use crate::interrupt;
use crate::request::{self, Host};
use crate::session::Session;

/// Asks several hosts at once; a slow one does not keep the others waiting.
async fn ask_each<T, F, W>(session: &Session, given: &[HostAddr], ask: F) -> Result<Vec<(Host, T)>>
where
    T: Send + 'static,
    F: Fn(Client, HostSpec) -> W,
    W: Future<Output = T> + Send + 'static,
{
    let client = session.client().await?;
    let asked: Vec<_> = request::hosts(&session.settings, given)
        .into_iter()
        .map(|host| (tokio::spawn(ask(client.clone(), host.spec.clone())), host))
        .collect();
    interrupt::unless_stopped(&session.interrupts, async {
        let mut answers = Vec::new();
        for (answer, host) in asked {
            let answer = answer.await.map_err(|error| Error::internal(format!("asking {}: {error}", host.name)))?;
            answers.push((host, answer));
        }
        Ok(answers)
    })
    .await
}
