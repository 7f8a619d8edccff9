//! What libvirt found out about qemu, handed from one host to the next.
//!
//! Asking every qemu program what it can do is most of a host's first start. libvirt checks what it finds in its cache
//! against the programs, the kernel and itself, and asks again where something differs; so a stale file costs time only.

use std::fs;
use std::path::PathBuf;

use crate::run::{make_dir, program};
use crate::{Host, LabError, Result, cache};

const INSIDE: &str = "var/cache/libvirt/qemu/capabilities";

/// Users of qemu see other devices, so each has answers of its own.
fn kept(host: &Host) -> Result<PathBuf> {
    let user = if host.spec().qemu_unprivileged { "unprivileged" } else { "root" };
    Ok(cache::dir()?.join(format!("capabilities-{user}")))
}

/// Gives a host that was never up what another one learned.
pub(crate) fn reuse(host: &Host) -> Result<()> {
    let kept = kept(host)?;
    if !kept.exists() {
        return Ok(());
    }
    let inside = host.root_dir().join(INSIDE);
    make_dir(&inside)?;
    crate::run::output(program("cp").arg("-a").arg(kept.join(".")).arg(&inside)).map(drop)
}

/// Keeps what a host that is up has learned, if that is news. Hosts that do this at the same time write the same.
pub(crate) fn keep(host: &Host) -> Result<()> {
    let Ok(learned) = fs::read_dir(host.root_dir().join(INSIDE)) else { return Ok(()) };
    let kept = kept(host)?;
    for entry in learned.flatten() {
        let (from, to) = (entry.path(), kept.join(entry.file_name()));
        let news = fs::read(&from).map_err(LabError::file("read", &from))?;
        if fs::read(&to).is_ok_and(|old| old == news) {
            continue;
        }
        make_dir(&kept)?;
        let fresh = tempfile::NamedTempFile::new_in(&kept).map_err(LabError::file("write in", &kept))?;
        fs::write(fresh.path(), &news).map_err(LabError::file("write", &to))?;
        fresh.persist(&to).map_err(|error| LabError::file("rename to", &to)(error.error))?;
    }
    Ok(())
}
