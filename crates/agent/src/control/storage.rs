//! What files and devices are called on every host that reaches them, so that shared storage is recognised.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use kvm_clone_core::inventory::FileId;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// Which file a path leads to.
pub(super) fn file_id(path: &Path, facts: &Metadata) -> FileId {
    FileId { device: facts.dev(), inode: facts.ino(), length: facts.len(), born: born(path) }
}

fn born(path: &Path) -> Option<i128> {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::BTIME).ok()?;
    let known = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    known.then(|| i128::from(found.stx_btime.tv_sec) * 1_000_000_000 + i128::from(found.stx_btime.tv_nsec))
}

/// What a block device calls itself: the world-wide name of a unit of storage, the UUID of a volume of the device mapper.
/// A device without any has its number, which counts on one kernel only.
pub(super) fn device_id(facts: &Metadata) -> Option<String> {
    if !facts.file_type().is_block_device() {
        return None;
    }
    let (major, minor) = (rustix::fs::major(facts.rdev()), rustix::fs::minor(facts.rdev()));
    let sys = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let names = ["dm/uuid", "wwid", "device/wwid"];
    let named = names.iter().filter_map(|name| fs::read_to_string(sys.join(name)).ok());
    let named = named.map(|text| text.trim().to_owned()).find(|text| !text.is_empty());
    named.or_else(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(format!("{}:{major}:{minor}", boot.trim()))
    })
}
