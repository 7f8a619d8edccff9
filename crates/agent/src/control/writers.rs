//! Whether anybody has a file open for writing, as the kernel knows it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use kvm_clone_core::seal::Writers;
use rustix::io::Errno;

/// `F_SETSIG` of fcntl(2), which the crate `libc` lacks (the kernel's `include/uapi/asm-generic/fcntl.h`).
const F_SETSIG: i32 = 10;

/// Asks by trying for a read lease (fcntl(2), "Leases"), which the kernel grants only while nobody has the file open for
/// writing: no process, in whatever namespace, by descriptor or by mapping, and nothing in the kernel, as a loop device. The
/// lease is given back at once; whoever opens the file meanwhile waits for that moment.
pub(super) fn of(file: &File) -> io::Result<Writers> {
    // Whoever waits for the lease has the kernel signal us: by a signal that is ignored, in place of one that kills.
    control(file, F_SETSIG, libc::SIGURG)?;
    match control(file, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => control(file, libc::F_SETLEASE, libc::F_UNLCK).map(|()| Writers::Nobody),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => Ok(Writers::Somebody),
            // A file of another user's; leases that were turned off, or that the file system has not.
            Some(Errno::ACCESS | Errno::INVAL | Errno::NOSYS) => Ok(Writers::Unknown),
            _ => Err(error),
        },
    }
}

fn control(file: &File, command: i32, value: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; these commands take numbers and no pointers.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, value) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
