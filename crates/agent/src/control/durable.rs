//! Waiting for storage to have written what it was given, and seeing meanwhile whether it writes.
//!
//! A call that makes a file durable tells nothing until it returns, and before it the device may have to write what others gave
//! it. So while it is waited for, what the device under the file system has written counts as progress: as long as it writes, the
//! turn of the file comes. A device that hangs, or one whose file system is frozen, writes nothing. File systems without a block
//! device of their own (NFS, btrfs) show no such count.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::fs::{major, minor};

use super::progress::Progress;

/// Between two looks at what the device has written.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Does what waits for the storage under this file.
pub(super) fn waiting<T>(path: &Path, progress: &Progress, work: impl FnOnce() -> T) -> T {
    let Some(device) = Device::under(path) else { return work() };
    std::thread::scope(|scope| {
        let (working, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            let mut before = device.written();
            while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                let now = device.written();
                if now > before {
                    progress.add(now - before);
                }
                before = now;
            }
        });
        let done = work();
        drop(working);
        done
    })
}

/// A block device, by the file that counts what it did.
struct Device(PathBuf);

impl Device {
    fn under(path: &Path) -> Option<Self> {
        let facts = fs::symlink_metadata(path).ok()?;
        // A disk that is itself a device is what has to write.
        let device = if facts.file_type().is_block_device() { facts.rdev() } else { facts.dev() };
        let counts = PathBuf::from(format!("/sys/dev/block/{}:{}/stat", major(device), minor(device)));
        counts.exists().then_some(Self(counts))
    }

    fn written(&self) -> u64 {
        written(&fs::read_to_string(&self.0).unwrap_or_default())
    }
}

/// The kernel's `Documentation/block/stat.rst`: of the fields, the 5th counts writes, the 7th sectors written and the 16th
/// flushes (since Linux 5.5).
fn written(stat: &str) -> u64 {
    let fields: Vec<u64> = stat.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    [4, 6, 15].into_iter().filter_map(|at| fields.get(at)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_flushes_are_counted_and_reads_are_not() {
        assert_eq!(written("1 2 3 4 50 6 700 8 9 10 11 12 13 14 15 6000 17\n"), 6750);
        assert_eq!(written("1 2 3 4 50 6 700 8 9 10 11\n"), 750);
        assert_eq!(written(""), 0);
    }
}
