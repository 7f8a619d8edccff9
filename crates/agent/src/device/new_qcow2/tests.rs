//! Against `qemu-img`, and against a model.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use kvm_clone_core::blocks::ExtentKind;
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::{ImageFormat, NamedImage, Problem, Qcow2Reader, ReadDevice, WriteDevice};
use super::layout::{CLUSTER, L2_SPAN, Layout};
use super::*;

mod overlays;
mod parts;

/// An image in a directory of its own.
struct Disk {
    dir: TempDir,
    path: PathBuf,
    /// What it lies over.
    backing: Vec<NamedImage>,
}

impl Disk {
    fn new(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        create(&path, size).unwrap();
        Self { dir, path, backing: Vec::new() }
    }

    /// An overlay over a raw file with these bytes.
    fn over(below: &[u8], size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backing = NamedImage { path: dir.path().join("below"), format: ImageFormat::Raw };
        std::fs::write(&backing.path, below).unwrap();
        let path = dir.path().join("disk.qcow2");
        create_overlay(&path, size, &backing).unwrap();
        Self { dir, path, backing: vec![backing] }
    }

    fn chunks(&self) -> Arc<AtomicChunks> {
        Arc::new(AtomicChunks::of(&self.path).unwrap())
    }

    fn writer(&self) -> Qcow2Writer {
        Qcow2Writer::open(&self.path, self.chunks()).unwrap()
    }

    fn reader(&self) -> Qcow2Reader {
        Qcow2Reader::open(&self.path, &self.backing).unwrap()
    }

    fn qemu_img(&self, args: &[&str]) -> Output {
        Command::new("qemu-img").args(args).arg(&self.path).output().expect("qemu-img is installed")
    }

    /// `finish`, then qemu's opinion: no error, no leak.
    fn finish_and_check(&self) {
        finish(&self.path, &|_| ()).unwrap();
        let out = self.qemu_img(&["check", "-f", "qcow2"]);
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains("No errors were found on the image."), "{out:?}");
    }

    /// Finished, checked, and equal to the model, read by qemu as well as by us.
    fn finish_as(&self, model: &[u8]) {
        self.finish_and_check();
        let raw = self.dir.path().join("model");
        std::fs::write(&raw, model).unwrap();
        let out = self.qemu_img(&["compare", "-f", "raw", "-F", "qcow2", raw.to_str().unwrap()]);
        assert!(out.status.success(), "{out:?}");
        assert!(self.read() == model);
    }

    fn read(&self) -> Vec<u8> {
        let reader = self.reader();
        let mut bytes = vec![0xee; usize::try_from(reader.size()).unwrap()];
        reader.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn allocated(&self) -> u64 {
        self.path.metadata().unwrap().blocks() * 512
    }
}

fn clusters(count: usize, value: u8) -> Vec<u8> {
    vec![value; count * 65536]
}

#[test]
fn small_and_odd_sizes() {
    for size in [0, 512, 65536, 65536 + 512, 3 * 65536 - 1024] {
        let disk = Disk::new(size);
        let len = usize::try_from(size).unwrap();
        assert!(disk.read() == vec![0; len]);
        disk.finish_as(&vec![0; len]);
        recover(&disk.path).unwrap();
        let writer = disk.writer();
        writer.write_at(&vec![5; len], 0).unwrap();
        assert!(disk.read() == vec![5; len]);
        drop(writer);
        disk.finish_as(&vec![5; len]);
        disk.finish_and_check();
    }
}

#[test]
fn impossible_requests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for size in [1, 513, u64::MAX - 511] {
        let error = create(&dir.path().join("x"), size).unwrap_err();
        assert!(matches!(error.problem, Problem::Unsupported { .. }));
    }
    let disk = Disk::new(2 * CLUSTER + 512);
    create(&disk.path, 512).unwrap_err();
    let writer = disk.writer();
    for (len, offset) in [(512, 0), (65536, 512), (1024, 2 * CLUSTER), (65536, 3 * CLUSTER), (1, u64::MAX)] {
        let error = writer.write_at(&vec![1; len], offset).unwrap_err();
        assert!(matches!(error.problem, Problem::BadRequest { .. }), "{error}");
        writer.write_zeroes(offset, len as u64).unwrap_err();
    }
}

#[test]
fn until_it_is_finished_qemu_refuses_it_and_we_read_it() {
    let disk = Disk::new(1 << 30);
    disk.writer().write_at(&clusters(2, 9), 3 * CLUSTER).unwrap();
    let mut bytes = clusters(3, 0);
    disk.reader().read_at(&mut bytes, 3 * CLUSTER).unwrap();
    assert!(bytes == [clusters(2, 9), clusters(1, 0)].concat());
    let info = disk.qemu_img(&["info", "-f", "qcow2"]);
    let text = String::from_utf8_lossy(&info.stderr);
    assert!(!info.status.success() && text.contains("does not contain a reference count table"), "{info:?}");
    disk.finish_and_check();
    assert!(disk.qemu_img(&["info", "-f", "qcow2"]).status.success());
    let refused = Qcow2Writer::open(&disk.path, Arc::new(NoChunks)).unwrap_err();
    assert!(matches!(refused.problem, Problem::Corrupt(_)));
    AtomicChunks::of(&disk.path).unwrap_err();
}

struct NoChunks;

impl ChunkAllocator for NoChunks {
    fn next_chunk(&self) -> Result<u64> {
        panic!("no chunk is needed")
    }
}

#[test]
fn a_huge_disk_with_little_data_is_small_and_fast() {
    let start = std::time::Instant::now();
    let disk = Disk::new(64 << 40);
    let writer = disk.writer();
    let places = [0, L2_SPAN - CLUSTER, L2_SPAN, 77 * L2_SPAN + 5 * CLUSTER, (64 << 40) - 2 * CLUSTER];
    for (value, offset) in (1..).zip(places) {
        writer.write_at(&clusters(2, value), offset).unwrap();
    }
    writer.write_zeroes(L2_SPAN * 1000, L2_SPAN * 20_000).unwrap();
    drop(writer);
    disk.finish_and_check();
    let reader = disk.reader();
    for (value, offset) in (1..).zip(places) {
        let mut bytes = clusters(1, 0);
        reader.read_at(&mut bytes, offset + CLUSTER).unwrap();
        // The second write starts where the third one writes later.
        assert!(bytes == clusters(1, if offset == L2_SPAN - CLUSTER { 3 } else { value }), "{offset}");
    }
    let data = kvm_clone_core::blocks::extents::data_len(&reader.extents(0, reader.size()).unwrap());
    assert_eq!(data, 9 * CLUSTER);
    assert!(disk.allocated() < 3 << 20, "{}", disk.allocated());
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

#[test]
fn rewriting_is_in_place_and_zeros_give_space_back() {
    let disk = Disk::new(64 << 20);
    disk.writer().write_at(&clusters(512, 1), 0).unwrap();
    // Another process, which needs no chunk to write over what is there.
    let writer = Qcow2Writer::open(&disk.path, Arc::new(NoChunks)).unwrap();
    writer.write_at(&clusters(100, 2), 50 * CLUSTER).unwrap();
    writer.sync().unwrap();
    let full = disk.allocated();
    writer.write_zeroes(0, 32 << 20).unwrap();
    writer.sync().unwrap();
    assert!(disk.allocated() + (31 << 20) < full);
    disk.finish_as(&vec![0; 64 << 20]);
}

#[test]
fn many_writers_cross_tables() {
    let size = 2 * L2_SPAN + 512;
    let disk = Disk::new(size);
    let chunks = disk.chunks();
    // Four processes' worth of writers, each with every fourth piece of 48 clusters, in another order.
    std::thread::scope(|scope| {
        for lane in 0..4u64 {
            let (path, chunks) = (&disk.path, chunks.clone());
            scope.spawn(move || {
                let writer = Qcow2Writer::open(path, chunks).unwrap();
                for piece in (0..40u64).rev().map(|piece| piece * 4 + lane) {
                    let offset = L2_SPAN - 80 * 48 * CLUSTER + piece * 48 * CLUSTER;
                    writer.write_at(&clusters(48, u8::try_from(piece + 1).unwrap()), offset).unwrap();
                    writer.start_writeback(offset, 48 * CLUSTER);
                }
                if lane == 0 {
                    writer.write_at(&[200; 512], 2 * L2_SPAN).unwrap();
                }
                writer.sync().unwrap();
            });
        }
    });
    disk.finish_and_check();
    let reader = disk.reader();
    let mut bytes = clusters(48, 0);
    for piece in 0..160u64 {
        reader.read_at(&mut bytes, L2_SPAN - 80 * 48 * CLUSTER + piece * 48 * CLUSTER).unwrap();
        assert!(bytes == clusters(48, u8::try_from(piece + 1).unwrap()), "{piece}");
    }
    let mut tail = [0; 512];
    reader.read_at(&mut tail, 2 * L2_SPAN).unwrap();
    assert_eq!(tail, [200; 512]);
}

/// What a power cut may leave: entries without their table, tables without their entries, a file that is too short.
#[test]
fn recovery_drops_what_is_not_whole() {
    let disk = Disk::new(2 * L2_SPAN);
    let layout = Layout::new(2 * L2_SPAN).unwrap();
    let writer = disk.writer();
    writer.write_at(&clusters(3, 1), 0).unwrap();
    writer.write_at(&clusters(1, 2), L2_SPAN).unwrap();
    drop(writer);
    let file = std::fs::File::options().write(true).open(&disk.path).unwrap();
    file.write_all_at(&[0; 8], layout.l1_entry(1)).unwrap();
    file.set_len(layout.data_start() + 2 * CLUSTER).unwrap();
    recover(&disk.path).unwrap();
    let writer = disk.writer();
    // This makes the second table visible; the lost entry must not come back with it.
    writer.write_at(&clusters(1, 4), L2_SPAN + CLUSTER).unwrap();
    drop(writer);
    disk.finish_and_check();
    let reader = disk.reader();
    for (offset, value) in [(0, 1), (CLUSTER, 1), (2 * CLUSTER, 0), (L2_SPAN, 0), (L2_SPAN + CLUSTER, 4)] {
        let mut bytes = clusters(1, 0xee);
        reader.read_at(&mut bytes, offset).unwrap();
        assert!(bytes == clusters(1, value), "{offset}");
    }
}

#[test]
fn two_blocks_in_one_cluster_are_never_finished() {
    let disk = Disk::new(CLUSTER * 8);
    let layout = Layout::new(CLUSTER * 8).unwrap();
    disk.writer().write_at(&clusters(1, 1), 0).unwrap();
    let file = std::fs::File::options().write(true).open(&disk.path).unwrap();
    for entry in [layout.data_start() | 1 << 63, (layout.data_start() + CLUSTER) | 1 << 63, layout.data_start(), 7] {
        file.write_all_at(&entry.to_be_bytes(), layout.table(0) + 16).unwrap();
        let error = finish(&disk.path, &|_| ()).unwrap_err();
        assert!(matches!(error.problem, Problem::Corrupt(_)), "{error}");
    }
    recover(&disk.path).unwrap_err();
}

#[test]
fn an_image_that_qemu_has_changed_stays_as_it_is() {
    // With room for so many L2 tables that qemu puts data there.
    let disk = Disk::new(100 * L2_SPAN);
    disk.writer().write_at(&clusters(1, 1), 0).unwrap();
    disk.finish_and_check();
    let write = ["-f", "qcow2", "-c", "write -P 3 600M 1M"];
    assert!(Command::new("qemu-io").args(write).arg(&disk.path).output().unwrap().status.success());
    recover(&disk.path).unwrap_err();
    assert!(disk.qemu_img(&["check", "-f", "qcow2"]).status.success());
}

#[test]
fn a_foreign_image_is_not_written() {
    let disk = Disk::new(CLUSTER);
    let other = disk.dir.path().join("other");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&other).arg("1M").status().unwrap();
    assert!(made.success());
    let before = std::fs::read(&other).unwrap();
    Qcow2Writer::open(&other, Arc::new(NoChunks)).unwrap_err();
    recover(&other).unwrap_err();
    finish(&other, &|_| ()).unwrap_err();
    assert!(std::fs::read(&other).unwrap() == before);
}

#[derive(Debug, Clone)]
struct Step {
    first: u64,
    count: u64,
    /// Zeros if none.
    value: Option<u8>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0u64..96, 1u64..24, prop::option::weighted(0.8, 1u8..));
    let step = step.prop_map(|(first, count, value)| Step { first, count, value });
    prop::collection::vec(step, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Three writers with their own thirds of the disk, some of them twice, with a recovery in between; over another image
    /// or over none.
    #[test]
    fn random_writes_equal_the_model(
        lanes in prop::collection::vec(steps(), 3),
        again in prop::collection::vec(steps(), 3),
        tail in (0u64..128).prop_map(|sectors| sectors * 512),
        between in 0..3,
        below in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let third = 120 * CLUSTER;
        let size = 3 * third + tail;
        let mut model = vec![0; usize::try_from(size).unwrap()];
        let disk = match &below {
            Some(length) => {
                // Shorter than the disk or as long, and ending anywhere.
                let length = length.index(model.len() + 1);
                model[..length].fill(0xbb);
                Disk::over(&model[..length], size)
            }
            None => Disk::new(size),
        };
        for (round, lanes) in [lanes, again].into_iter().enumerate() {
            if round == 1 && between > 0 {
                if between == 2 { disk.finish_as(&model) }
                recover(&disk.path).unwrap();
            }
            let chunks = disk.chunks();
            std::thread::scope(|scope| {
                for (index, (steps, part)) in lanes.iter().zip(model.chunks_mut(usize::try_from(third).unwrap())).enumerate() {
                    let writer = Qcow2Writer::open(&disk.path, chunks.clone()).unwrap();
                    scope.spawn(move || run_steps(&writer, steps, index as u64 * third, part));
                }
                if tail > 0 {
                    let value = u8::try_from(round + 1).unwrap();
                    let last = vec![value; usize::try_from(tail).unwrap()];
                    Qcow2Writer::open(&disk.path, chunks.clone()).unwrap().write_at(&last, 3 * third).unwrap();
                }
            });
            model[usize::try_from(3 * third).unwrap()..].fill(u8::try_from(round + 1).unwrap());
            prop_assert!(disk.read() == model);
        }
        disk.finish_as(&model);
        let zeros = disk.reader().extents(0, size).unwrap();
        for hole in zeros.iter().filter(|extent| extent.kind == ExtentKind::Zero) {
            let bytes = &model[usize::try_from(hole.offset).unwrap()..usize::try_from(hole.end()).unwrap()];
            prop_assert!(bytes.iter().all(|byte| *byte == 0));
        }
    }
}

fn run_steps(writer: &Qcow2Writer, steps: &[Step], start: u64, part: &mut [u8]) {
    for step in steps {
        let (at, len) =
            (usize::try_from(step.first * CLUSTER).unwrap(), usize::try_from(step.count * CLUSTER).unwrap());
        match step.value {
            Some(value) => writer.write_at(&vec![value; len], start + step.first * CLUSTER).unwrap(),
            None => writer.write_zeroes(start + step.first * CLUSTER, len as u64).unwrap(),
        }
        writer.start_writeback(start + step.first * CLUSTER, len as u64);
        part[at..at + len].fill(step.value.unwrap_or(0));
    }
}
