//! Disks of the source whose images cannot be looked at: a file is missing or cannot be read, a pool is not there.

use super::Facts;
use crate::domain::{DiskElement, DiskKind};
use crate::error::{Code, Error};
use crate::inventory::Pool;
use crate::name::DiskTarget;
use crate::quote::quoted;

/// What is wrong with an image that was looked at for the first time: nothing can have changed yet, so what is not there is
/// missing. The error again where it says nothing of the image, as when a host is lost.
///
/// # Errors
/// The error, where it is no reason to refuse the disk.
pub fn unseen_image(mut error: Error) -> Result<Error, Error> {
    match error.code {
        Code::Conflict => error.code = Code::InsufficientResources,
        Code::Transfer | Code::Verification | Code::Unsupported | Code::InsufficientResources => {}
        _ => return Err(error),
    }
    Ok(error)
}

/// What is wrong with a volume whose path libvirt does not tell; `pools` are those of its host.
///
/// # Errors
/// The error, where it is no reason to refuse the disk.
pub fn unseen_volume(disk: &DiskElement, pools: &[Pool], why: Error) -> Result<Error, Error> {
    let (Some(name), Some(volume), Code::Libvirt) = (&disk.pool, &disk.source, why.code) else { return Err(why) };
    let word = quoted(name);
    let (message, help) = match pools.iter().find(|pool| pool.name == *name) {
        None => (
            format!("its host has no pool {name:?}"),
            "virsh pool-list --all shows those that are there; define this one again".to_owned(),
        ),
        Some(pool) if !pool.active => (format!("pool {name} is not active"), format!("virsh pool-start {word}")),
        Some(_) => (
            format!("pool {name} does not find its volume {volume:?}: {}", why.message),
            format!("Have the pool look again: virsh pool-refresh {word}; virsh vol-list {word}"),
        ),
    };
    let error = Error::insufficient(message).with("pool", name).with("volume", volume);
    Ok(error.help(help))
}

/// Why a disk's image is not known; nothing for the kinds that are refused as such, and were never looked at.
pub(super) fn refusal(facts: &Facts<'_>, disk: &DiskElement) -> Option<Error> {
    let target = &disk.target;
    let is_looked_at =
        matches!(disk.kind, DiskKind::File | DiskKind::Block | DiskKind::Volume) && disk.source.is_some();
    let error = match facts.source.unseen.get(target) {
        Some(error) => Error { message: format!("disk {target} cannot be read: {}", error.message), ..error.clone() },
        None if is_looked_at => Error::insufficient(format!("the image of disk {target} cannot be found or read")),
        None => return None,
    };
    let host = &facts.source.host_name;
    let named = disk.source.as_ref().filter(|_| disk.kind != DiskKind::Volume);
    let path = error.context.get("path").or(named).cloned();
    let shown = path.as_deref().unwrap_or("its image");
    let error = match error.code {
        _ if !error.help.is_empty() => error,
        Code::Transfer => error.help(format!("See who may read it: ls -l {} on {host}", quoted(shown))),
        _ => error.help(format!("Restore {shown} on {host}")),
    };
    let error = or_leave_out(error, target).with("disk", target).with("host", host);
    Some(path.into_iter().fold(error, |error, path| error.with("path", path)))
}

/// Adds to the first way out, which a plan shows, that a machine can do without the disk.
pub(super) fn or_leave_out(mut error: Error, target: &DiskTarget) -> Error {
    if let Some(first) = error.help.first_mut() {
        first.push_str(&format!("; or leave the disk out with --exclude {target}"));
    }
    error
}
