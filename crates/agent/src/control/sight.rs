//! What can be seen of a file without reading it: what identifies it, and whether anybody could be writing to it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use kvm_clone_core::seal::{FileFacts, Writers, is_settled};
use kvm_clone_core::wire::facts::Identity;
use rustix::fs::OFlags;
use rustix::time::ClockId;

use super::writers;

/// How often, and after what pause, a file is looked at again whose change is not over yet.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(1);

/// What identifies a file now, and whether it is quiet. One that was changed in this very moment is looked at again a little
/// later.
pub(super) fn seen(path: &Path) -> io::Result<Identity> {
    match settled(&path.to_string_lossy()) {
        Ok((_, identity)) => Ok(Identity { quiet: true, ..identity }),
        Err(_) => fs::metadata(path).map(|facts| identity(&facts)),
    }
}

/// What identifies a file by what is known of it; it does not count as quiet.
pub(super) fn identity(facts: &Metadata) -> Identity {
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Identity {
        size: facts.len(),
        inode: (facts.dev(), facts.ino()),
        modified: nanos(facts.mtime(), facts.mtime_nsec()),
        changed: nanos(facts.ctime(), facts.ctime_nsec()),
        quiet: false,
    }
}

/// A file that can be sealed and whose last change is over, with what it is.
pub(super) fn settled(path: &str) -> std::result::Result<(File, Identity), String> {
    for _ in 0..LOOKS {
        // Before the look: whoever writes after it has a time of this tick or a later one.
        let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
        let (file, facts) = look(path)?;
        facts.proof()?;
        if is_settled(&facts.identity, i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)) {
            return Ok((file, facts.identity));
        }
        std::thread::sleep(PAUSE);
    }
    Err(format!("{path} was changed a moment ago, or its clock is ahead"))
}

pub(super) fn look(path: &str) -> std::result::Result<(File, FileFacts), String> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| format!("{path} cannot be opened: {error}"))?;
    let facts = facts(path, &file)?;
    Ok((file, facts))
}

/// What can be seen of an open file. Writers first: one that comes later changes the times, one that was there before may
/// have a write on its way whose time was taken already.
pub(super) fn facts(path: &str, file: &File) -> std::result::Result<FileFacts, String> {
    let failed = |error: io::Error| format!("{path} cannot be looked at: {error}");
    let regular = file.metadata().map_err(failed)?.is_file();
    let writers = if regular { writers::of(file).map_err(failed)? } else { Writers::Unknown };
    let file_system = rustix::fs::fstatfs(file).map_err(|error| failed(error.into()))?.f_type;
    Ok(FileFacts {
        path: path.to_owned(),
        identity: identity(&file.metadata().map_err(failed)?),
        regular,
        file_system: u64::try_from(file_system).unwrap_or(0),
        writers,
    })
}
