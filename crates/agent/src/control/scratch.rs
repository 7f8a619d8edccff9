//! Scratch files: where qemu keeps what a guest overwrites while a point of it is held. They grow with what the guest
//! writes, on its own host's storage, so they are watched.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kvm_clone_core::size::ByteSize;
use kvm_clone_core::wire::point::SCRATCH_FOR_DEVICES;
use kvm_clone_core::{Error, Result};

use crate::place::io_error;

/// A file system is never brought below this, or below a quarter of what was free where that is less.
const KEEP_FREE: u64 = 1 << 30;

/// Where the scratch file of a disk lies: beside the image, where there is space for a guest's writes and qemu may go;
/// for a device where images usually are, else with the process.
pub(super) fn dir_for(image: &Path, process_dir: &Path) -> PathBuf {
    let is_file = fs::metadata(image).is_ok_and(|facts| facts.is_file());
    match image.parent() {
        Some(dir) if is_file => dir.to_owned(),
        _ if Path::new(SCRATCH_FOR_DEVICES).is_dir() && rustix::process::geteuid().is_root() => {
            SCRATCH_FOR_DEVICES.into()
        }
        _ => process_dir.to_owned(),
    }
}

/// Bytes that these files take.
pub(super) fn used(files: &[String]) -> u64 {
    files.iter().filter_map(|file| fs::metadata(file).ok()).map(|facts| facts.blocks() * 512).sum()
}

/// How far scratch files may grow.
pub(super) struct Limit {
    files: Vec<String>,
    most: u64,
    /// For each directory, what must stay free.
    keep_free: BTreeMap<PathBuf, u64>,
}

impl Limit {
    /// `most` bytes in all; none allows half of what is free.
    pub(super) fn new(files: &[String], most: Option<u64>) -> Result<Self> {
        let mut keep_free = BTreeMap::new();
        let mut by_file_system = BTreeMap::new();
        for dir in files.iter().filter_map(|file| Path::new(file).parent()) {
            let failed = |error: std::io::Error| io_error("looking at", dir, &error);
            let available = available(dir).map_err(failed)?;
            by_file_system.insert(fs::metadata(dir).map_err(failed)?.dev(), available);
            keep_free.insert(dir.to_owned(), KEEP_FREE.min(available / 4));
        }
        let most = most.unwrap_or_else(|| by_file_system.values().sum::<u64>() / 2);
        Ok(Self { files: files.to_vec(), most, keep_free })
    }

    /// Whether they may go on growing.
    pub(super) fn check(&self) -> Result<()> {
        let used = used(&self.files);
        let short = self.keep_free.iter().find(|(dir, keep)| available(dir).is_ok_and(|free| free < **keep));
        let why = match short {
            _ if used > self.most => format!("it may take {}", ByteSize(self.most)),
            Some((dir, keep)) => format!("less than {} is free in {}", ByteSize(*keep), dir.display()),
            None => return Ok(()),
        };
        Err(Error::insufficient(format!(
            "the guest overwrote {} while it was copied, and {why}; the copy was given up so that the guest can go on",
            ByteSize(used)
        ))
        .with("scratch_used", used)
        .with("scratch_limit", self.most)
        .help("Copy it when it writes less, over a faster network, or with a larger safety.scratch_limit"))
    }
}

fn available(dir: &Path) -> std::io::Result<u64> {
    let facts = rustix::fs::statvfs(dir)?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}
