//! qemu's own locks on image files, taken by us: then no program of qemu's opens the file for writing, or at all.
//!
//! qemu (`block/file-posix.c`, `raw_apply_lock_bytes` and `raw_check_lock_bytes`; the numbers are `RAW_LOCK_PERM_BASE`,
//! `RAW_LOCK_SHARED_BASE` and `BLK_PERM_*`) holds a shared lock on byte 100 + n for each permission n that it uses, and on byte
//! 200 + n for each one that it lets nobody else use. Who opens the file looks whether others hold what is against that. These are locks of an
//! open file, not of a process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The first byte for permissions that are used, and that for those that nobody else may use.
const USED: i64 = 100;
const NOT_SHARED: i64 = 200;
/// `BLK_PERM_CONSISTENT_READ`, `BLK_PERM_WRITE`, `BLK_PERM_RESIZE`, as numbers of their bits.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks the file as one that we write to, and that nobody else may read or write; false where somebody has it open already in
/// a way that is against that. Where there are no locks, as on some network file systems, qemu has none either.
pub(super) fn take(file: &File) -> io::Result<bool> {
    let ours = [USED + WRITE, USED + RESIZE, NOT_SHARED + READ, NOT_SHARED + WRITE, NOT_SHARED + RESIZE];
    // First locked, then looked: of two who do so at the same time at least one sees the other.
    take_bytes(file, &ours, &[USED + READ, USED + WRITE, USED + RESIZE, NOT_SHARED + WRITE, NOT_SHARED + RESIZE])
}

/// Locks the file as one that we read, and that nobody else may write; false where somebody does already. The file need be open for
/// reading alone.
pub(super) fn keep(file: &File) -> io::Result<bool> {
    let ours = [USED + READ, NOT_SHARED + WRITE, NOT_SHARED + RESIZE];
    take_bytes(file, &ours, &[USED + WRITE, USED + RESIZE, NOT_SHARED + READ])
}

/// Locks bytes for ourselves; false where somebody holds one of those that are against that.
fn take_bytes(file: &File, ours: &[i64], against: &[i64]) -> io::Result<bool> {
    for byte in ours.iter().copied() {
        match lock(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
            Err(error) if has_none(&error) => return Ok(true),
            // Somebody else than qemu has it to itself (fcntl(2) may say either).
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => return Ok(false),
            locked => locked?,
        };
    }
    for byte in against.iter().copied() {
        if is_held(file, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn has_none(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS))
}

/// Whether another open file holds a lock on this byte.
fn is_held(file: &File, byte: i64) -> io::Result<bool> {
    Ok(lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? != libc::F_UNLCK)
}

fn lock(file: &File, command: i32, kind: i32, byte: i64) -> io::Result<i32> {
    let number = |value: i32| libc::c_short::try_from(value).map_err(io::Error::other);
    // SAFETY: a `flock` of nothing but zeros is a valid one (fcntl(2)): it holds numbers only.
    let mut wanted: libc::flock = unsafe { std::mem::zeroed() };
    wanted.l_type = number(kind)?;
    wanted.l_whence = number(libc::SEEK_SET)?;
    wanted.l_start = byte;
    wanted.l_len = 1;
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and `wanted` outlives the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut wanted) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::from(wanted.l_type)) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_taken_is_opened_by_no_program_of_qemus() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let qemu_can = || {
            let write = ["-f", "raw", "-c", "write 0 512", path.to_str().unwrap()];
            Command::new("qemu-io").args(write).output().unwrap().status.success()
        };
        assert!(qemu_can());
        let first = open();
        assert!(take(&first).unwrap());
        assert!(!qemu_can());
        assert!(!take(&open()).unwrap(), "nor twice by us");
        drop(first);
        assert!(qemu_can());
        assert!(take(&open()).unwrap());
    }
}
