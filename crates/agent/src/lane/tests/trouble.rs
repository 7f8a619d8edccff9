//! Disks that fail or change, streams that are narrow, disks that are larger than memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvm_clone_core::Code;
use kvm_clone_core::blocks::Extent;

use super::*;
use crate::device::{DeviceError, ReadDevice, Result, WriteDevice};

/// What a medium that fails says.
fn failure(doing: &'static str) -> DeviceError {
    let error = std::io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
    DeviceError::io(std::path::Path::new("/dev/bad"), doing, error)
}

/// A disk that is full of data, without a file.
struct Full {
    size: u64,
    /// Where its medium fails.
    bad: Option<u64>,
    /// How often it was read; with `restless`, what is read depends on it.
    reads: AtomicUsize,
    restless: bool,
}

impl Full {
    fn new(size: u64) -> Self {
        Self { size, bad: None, reads: AtomicUsize::new(0), restless: false }
    }
}

impl ReadDevice for Full {
    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        Ok(vec![Extent::data(offset, len)])
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let reads = self.reads.fetch_add(1, Ordering::Relaxed);
        if let Some(bad) = self.bad.filter(|bad| (offset..offset + buf.len() as u64).contains(bad)) {
            return Err(failure("read").at(bad));
        }
        buf.fill(if self.restless { reads.to_le_bytes()[0] | 128 } else { 7 });
        Ok(())
    }

    fn drop_cache(&self, _: u64, _: u64) {}
}

/// A disk that forgets what is written.
struct Nowhere {
    size: u64,
    /// How often it was flushed; where it `fails`, each time in vain.
    flushed: Arc<AtomicUsize>,
    fails: bool,
    /// How many bytes were waited for.
    written_back: Arc<AtomicUsize>,
}

impl Nowhere {
    fn new(size: u64) -> Self {
        Self { size, flushed: Arc::default(), fails: false, written_back: Arc::default() }
    }
}

impl WriteDevice for Nowhere {
    fn size(&self) -> u64 {
        self.size
    }

    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn start_writeback(&self, _: u64, _: u64) {}

    fn write_back(&self, offset: u64, len: u64) -> Result<()> {
        assert!(offset + len <= self.size);
        self.written_back.fetch_add(usize::try_from(len).unwrap(), Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.flushed.fetch_add(1, Ordering::Relaxed);
        if self.fails { Err(failure("make it durable")) } else { Ok(()) }
    }
}

fn from(device: Full, case: &Case, segment_blocks: u64) -> Came {
    let (source, target) = case.make();
    let source_devices: Option<Vec<Arc<dyn ReadDevice>>> = Some(vec![Arc::new(device)]);
    carry(source, target, Drive { segments: case.segments(segment_blocks * BLOCK), source_devices, ..Drive::default() })
}

#[test]
fn a_medium_that_fails_is_named_with_the_place() {
    let case = Case::new(Content::data(64, 1), Content::data(64, 2));
    let bad = Full { bad: Some(40 * BLOCK + 512), ..Full::new(64 * BLOCK) };
    let error = from(bad, &case, 16).outcome.unwrap_err();
    assert_eq!(error.code, Code::Transfer, "{error:?}");
    assert_eq!((&error.context["path"][..], &error.context["offset"][..]), ("/dev/bad", "2621952"));
}

#[test]
fn a_source_that_changes_while_it_is_compared_is_refused() {
    let case = Case::new(Content::data(64, 1), Content::data(64, 2));
    let error = from(Full { restless: true, ..Full::new(64 * BLOCK) }, &case, 16).outcome.unwrap_err();
    assert_eq!(error.code, Code::Conflict, "{error:?}");
    assert!(error.context["path"].ends_with("/source"), "{error:?}");
}

/// Every block differs and every question is asked, through streams that hold less than one answer: neither end may wait
/// for the other to hear it while it does not hear.
#[test]
fn narrow_streams_do_not_stop_a_lane() {
    let case = Case::new(Content::data(32 * 16, 1), Content::data(32 * 16, 2));
    let (source, target) = case.make();
    let came = carry(source, target, Drive { segments: case.segments(16 * BLOCK), narrow: true, ..Drive::default() });
    came.outcome.clone().unwrap();
    case.assert_same();
    assert_eq!(came.compared().differing, 32 * 16);
}

fn peak_of_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A source that is fast, and a target that takes a block at a time.
#[test]
fn memory_does_not_grow_with_what_differs() {
    let size = 768u64 << 20;
    let mut case = Case::new(Content::new(Vec::new()), Content::new(Vec::new()));
    (case.before.size, case.after.size, case.verify) = (size, size, Verify::Off);
    let (source, target) = case.make();
    let drive = Drive {
        segments: case.segments(64 << 20),
        narrow: true,
        source_devices: Some(vec![Arc::new(Full::new(size))]),
        target_devices: Some(vec![Arc::new(Nowhere::new(size))]),
        damage: None,
    };
    let before = peak_of_memory();
    let came = carry(source, target, drive);
    came.outcome.clone().unwrap();
    assert_eq!(came.compared().differing, size / BLOCK);
    let grown = peak_of_memory() - before;
    assert!(grown < 128 << 20, "{} MiB for {} MiB", grown >> 20, size >> 20);
}

/// A new disk of so many bytes that are all data, to a target that forgets them.
fn to_nowhere(size: u64, target_device: Nowhere) -> Came {
    let mut case = Case::new(Content::new(Vec::new()), Content::new(Vec::new()));
    (case.before.size, case.after.size, case.verify) = (size, size, Verify::Off);
    let (source, target) = case.make();
    let drive = Drive {
        segments: case.segments(64 << 20),
        source_devices: Some(vec![Arc::new(Full::new(size))]),
        target_devices: Some(vec![Arc::new(target_device)]),
        ..Drive::default()
    };
    carry(source, target, drive)
}

#[test]
fn much_that_is_written_is_flushed_before_all_is() {
    for (size, least) in [(31u64 << 20, 0), (32 << 20, 1), (256 << 20, 1)] {
        let target = Nowhere::new(size);
        let (flushed, written_back) = (Arc::clone(&target.flushed), Arc::clone(&target.written_back));
        to_nowhere(size, target).outcome.unwrap();
        let flushed = flushed.load(Ordering::Relaxed);
        assert!((least..=usize::try_from(size >> 25).unwrap()).contains(&flushed), "{flushed} flushes of {size} bytes");
        let written_back = written_back.load(Ordering::Relaxed) as u64;
        assert!((least as u64 * (32 << 20)..=size).contains(&written_back), "{written_back} of {size} bytes");
    }
}

/// The last block of all is what has it flushed: nothing comes after it that would meet the failure again.
#[test]
fn a_flush_that_fails_ends_the_lane() {
    let error = to_nowhere(32 << 20, Nowhere { fails: true, ..Nowhere::new(32 << 20) }).outcome.unwrap_err();
    assert_eq!((error.code, &error.context["path"][..]), (Code::Transfer, "/dev/bad"), "{error:?}");
}
