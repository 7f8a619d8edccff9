//! The system calls that the devices have in common.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_clone_core::blocks::{Extent, extents};
use rustix::fs::{Advice, FallocateFlags, OFlags, SeekFrom, fadvise, fallocate, seek};
use rustix::io::Errno;

use super::{DeviceError, Problem, Result};

/// What is written where holes cannot be punched.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Flags as the standard library takes them.
fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

/// Opens a disk to be read, and says how large the file or block device is. Reading leaves no trace in the file's
/// access time where we may ask for that (its owner and root may), and a pipe under the name does not block us.
pub(super) fn open_source(path: &Path) -> Result<(File, u64)> {
    open_source_with(path, OFlags::empty())
}

/// The same of a file that must be no symbolic link.
pub(super) fn open_source_without_link(path: &Path) -> Result<(File, u64)> {
    open_source_with(path, OFlags::NOFOLLOW)
}

fn open_source_with(path: &Path, more: OFlags) -> Result<(File, u64)> {
    let open = |extra| OpenOptions::new().read(true).custom_flags(flags(OFlags::NONBLOCK | more | extra)).open(path);
    let file = open(OFlags::NOATIME)
        .or_else(
            |error| if error.kind() == io::ErrorKind::PermissionDenied { open(OFlags::empty()) } else { Err(error) },
        )
        .map_err(|error| DeviceError::io(path, "open it for reading", error))?;
    let size = disk_size(&file, path)?;
    if file.metadata().is_ok_and(|facts| facts.file_type().is_block_device()) {
        // Others may have written to a device past our cache: a guest without cache, another host.
        forget(&file, 0, size);
    }
    Ok((file, size))
}

/// Makes a new file that nothing else can be: no link is followed, nothing that exists is opened, nobody else may read.
pub(super) fn create_new(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(flags(OFlags::NOFOLLOW))
        .open(path)
        .map_err(|error| DeviceError::io(path, "create it", error))
}

/// Opens an image that we made, to write on.
pub(super) fn open_staging(path: &Path) -> Result<(File, u64)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags(OFlags::NOFOLLOW | OFlags::NONBLOCK))
        .open(path)
        .map_err(|error| DeviceError::io(path, "open it for writing", error))?;
    let size = disk_size(&file, path)?;
    Ok((file, size))
}

/// The size of a file or block device; anything else is refused.
fn disk_size(file: &File, path: &Path) -> Result<u64> {
    let failed = |error| DeviceError::io(path, "tell its size", error);
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else if metadata.file_type().is_block_device() {
        // A block device has no length in its metadata.
        seek(file, SeekFrom::End(0)).map_err(|error| failed(error.into()))
    } else {
        Err(DeviceError::new(path, Problem::NotADisk))
    }
}

/// Where the data of a file begins at or after `offset`; `None`: nowhere. Where the file system does not know holes,
/// everything is data.
pub(super) fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data.max(offset))),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
        Err(error) => Err(error.into()),
    }
}

/// Where the next hole begins at or after `offset`.
fn next_hole(file: &File, offset: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Hole(offset)) {
        Ok(hole) => Ok(hole),
        Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(u64::MAX),
        Err(error) => Err(error.into()),
    }
}

/// The holes of a file, with a memory for its data.
///
/// To find the next hole, the kernel walks all extents up to it; a file without holes is walked to its end, each time.
/// Asked piece by piece, as segments and clusters are, that costs the square of the file's length. So runs of data are
/// kept once they are found. That is safe while others write: data that has become a hole still reads right, and that
/// something is a hole is never remembered.
#[derive(Debug, Default)]
pub(super) struct DataMap {
    /// Start and end of runs that are known to be data.
    runs: Mutex<BTreeMap<u64, u64>>,
}

impl DataMap {
    /// Bounds the memory; runs that are forgotten are found again.
    const MAX_RUNS: usize = 1 << 16;
    /// How far back the start of a run is looked for, so that a file that is asked from its end to its start, too, is
    /// walked once in so many bytes.
    const STEP: u64 = 1 << 30;

    /// Data and holes of a range of a file. What lies beyond its end is a hole.
    pub(super) fn extents(&self, file: &File, offset: u64, len: u64) -> io::Result<Vec<Extent>> {
        let end = offset.saturating_add(len);
        let (mut list, mut at) = (Vec::new(), offset);
        while at < end {
            if let Some(stop) = self.known(at) {
                let stop = stop.min(end);
                extents::push(&mut list, Extent::data(at, stop - at));
                at = stop;
                continue;
            }
            let data = next_data(file, at)?.map_or(end, |data| data.min(end));
            extents::push(&mut list, Extent::zero(at, data - at));
            at = data;
            if at < end {
                self.learn(file, at)?;
            }
        }
        Ok(list)
    }

    fn runs(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of the known run that holds `at`.
    fn known(&self, at: u64) -> Option<u64> {
        self.runs().range(..=at).next_back().map(|(_, end)| *end).filter(|end| *end > at)
    }

    /// Finds the run of data that holds `at`, and remembers it.
    fn learn(&self, file: &File, at: u64) -> io::Result<()> {
        let before = at - at % Self::STEP;
        let (start, hole) = match next_hole(file, before)? {
            hole if hole > at => (before, hole),
            _ => (at, next_hole(file, at)?),
        };
        // A hole that does not lie ahead means that the file changes under us: then the next page counts as data.
        let end = if hole > at { hole } else { at.saturating_add(4096) };
        let mut runs = self.runs();
        if runs.len() >= Self::MAX_RUNS {
            runs.clear();
        }
        runs.insert(start, end);
        Ok(())
    }
}

/// Reads as far as the file goes; beyond its end there are zeros.
pub(super) fn read_or_zero(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, offset) {
            Ok(0) => {
                buf.fill(0);
                break;
            }
            Ok(read) => {
                buf = buf.get_mut(read..).unwrap_or_default();
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives what a range of a file occupies back to the file system, so that it reads as zeros. `Some`: where data begins
/// that it cannot give back.
pub(super) fn punch(file: &File, offset: u64, len: u64) -> io::Result<Option<u64>> {
    let end = offset.saturating_add(len);
    let Some(data) = next_data(file, offset)?.filter(|data| *data < end) else { return Ok(None) };
    match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, data, end - data) {
        Ok(()) => Ok(None),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Some(data)),
        Err(error) => Err(error.into()),
    }
}

/// Makes a range of a file read as zeros: nothing where it is a hole already, else a hole, else zeros are written.
pub(super) fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    match punch(file, offset, len)? {
        None => Ok(()),
        Some(data) => write_zeros(file, data, offset.saturating_add(len) - data),
    }
}

/// Writes zeros as data.
fn write_zeros(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let end = offset.saturating_add(len);
    let mut at = offset;
    while at < end {
        let piece = usize::try_from(end - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        file.write_all_at(&ZEROS[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}

/// Starts write-back of what is dirty in a range, without waiting, so that a later fsync has little left to do.
///
/// `POSIX_FADV_DONTNEED` would start it too, but where pages are still being written it then drains the page caches of
/// all processors (`lru_add_drain_all` in the kernel's `mm/fadvise.c`), which in a copy is nearly always and costs more
/// than the writing.
pub(super) fn start_write_back(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the call takes no pointers (sync_file_range(2)).
    // A hint: a file system that does not know it costs time in fsync, not correctness.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// Writes what is dirty in a range, and waits until it is written. The storage's failures are reported here, since the kernel
/// reports each only once to a descriptor. Where the file system does not know the call, nothing is written yet.
pub(super) fn write_back(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return Ok(()) };
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: as in `start_write_back`.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    let unknown = [libc::ENOSYS, libc::EINVAL, libc::ESPIPE, libc::EOPNOTSUPP];
    if error.raw_os_error().is_some_and(|code| unknown.contains(&code)) { Ok(()) } else { Err(error) }
}

/// Has the kernel begin to read a range into the page cache.
pub(super) fn read_ahead(file: &File, offset: u64, len: u64) {
    /// The kernel takes no more at once than the device's largest request (`force_page_cache_ra` in its `mm/readahead.c`).
    const AT_ONCE: u64 = 1 << 20;
    let mut done = 0;
    while let Some(piece) = NonZeroU64::new(AT_ONCE.min(len - done)) {
        // A hint: a file system that ignores it costs time, not correctness.
        let _ = fadvise(file, offset + done, Some(piece), Advice::WillNeed);
        done += piece.get();
    }
}

/// Lets the page cache forget all that is clean of a file, so that it is read from the medium next. The whole file: the kernel drops
/// its pages in units of up to 2 MiB, and keeps one that lies only partly in a range (`find_lock_entries` in its `mm/filemap.c`).
///
/// # Errors
/// It cannot be opened.
pub fn forget_file(path: &Path) -> Result<()> {
    let (file, _) = open_source(path)?;
    fadvise(&file, 0, None, Advice::DontNeed)
        .map_err(|error| DeviceError::io(path, "drop it from the page cache", error.into()))
}

/// Lets the page cache forget what is clean in a range. To be called for large ranges, once: see [`start_write_back`].
pub(super) fn forget(file: &File, offset: u64, len: u64) {
    if let Some(len) = NonZeroU64::new(len) {
        // A hint: a file system that ignores it costs memory, not correctness.
        let _ = fadvise(file, offset, Some(len), Advice::DontNeed);
    }
}
