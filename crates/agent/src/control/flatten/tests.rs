//! Against real images, with qemu's own opinion of what they hold.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kvm_clone_core::wire::marker::Marker;
use uuid::Uuid;

use super::super::test_host::TestHost;
use super::*;
use crate::device::{AtomicChunks, NamedImage, Qcow2Writer, WriteDevice, new_qcow2};
use crate::lane::open_reader;

const BLOCK: usize = 65536;

/// An image with an overlay of ours over it, both named by a marker.
struct Pair {
    host: TestHost,
    order: Flatten,
    /// What the new point of the disk is.
    model: Vec<u8>,
}

fn qemu(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Pair {
    /// An image of `old` blocks of ones, brought to `size` bytes with some blocks new and some zero.
    fn new(format: Format, old: usize, size: usize) -> Self {
        let host = TestHost::new();
        let path = |name: &str| host.path(name);
        std::fs::write(path("raw"), vec![1; old]).unwrap();
        let image = if format == Format::Raw { path("raw") } else { path("qcow2") };
        if format == Format::Qcow2 {
            qemu("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &path("raw"), &image]);
        }
        let mut model = vec![1; old];
        model.resize(size, 0);
        let backing = vec![(image, format)];
        let overlay = ImageSpec { backing, ..ImageSpec::new(path("overlay"), Format::Qcow2) };
        let order = Flatten { operation: Uuid::nil(), overlay, above: None, exact_size: size as u64 };
        let mut pair = Self { host, order, model };
        pair.mark(None);
        pair.make_overlay();
        pair
    }

    fn image(&self) -> &str {
        &self.order.overlay.backing[0].0
    }

    fn mark(&self, flattened: Option<Identity>) {
        let (image, format) = self.order.overlay.backing[0].clone();
        let (path, exact_size) = (self.order.overlay.path.clone(), self.order.exact_size);
        let (disk, under, above) =
            ("vda".parse().unwrap(), self.order.overlay.backing[1..].to_vec(), self.order.above.clone());
        let overlay = OverlayFile { disk, path, image, format, under, above, exact_size, flattened };
        let marker = Marker { overlays: vec![overlay], ..Marker::default() };
        marker::put(&self.host.session.place, &marker).unwrap();
    }

    fn make_overlay(&mut self) {
        let path = Path::new(&self.order.overlay.path);
        let format = if self.order.overlay.backing[0].1 == Format::Raw { ImageFormat::Raw } else { ImageFormat::Qcow2 };
        let below = NamedImage { path: self.image().into(), format };
        new_qcow2::create_overlay(path, whole_sectors(self.order.exact_size), &below).unwrap();
        let writer = Qcow2Writer::open(path, Arc::new(AtomicChunks::of(path).unwrap())).unwrap();
        for (index, block) in self.model.chunks_mut(BLOCK).enumerate().filter(|(index, _)| index % 3 > 0) {
            block.fill(if index % 3 == 1 { 0 } else { 2 });
            match index % 3 {
                1 => writer.write_zeroes((index * BLOCK) as u64, block.len() as u64).unwrap(),
                _ => writer.write_at(block, (index * BLOCK) as u64).unwrap(),
            }
        }
        drop(writer);
        new_qcow2::finish(path, &|_| ()).unwrap();
    }

    fn flatten(&self) -> Result<Flattened> {
        flatten(&self.host.session, &self.order, &self.host.progress())
    }

    fn read(spec: &ImageSpec) -> Vec<u8> {
        let reader = open_reader(spec).unwrap();
        let mut bytes = vec![0xee; usize::try_from(reader.size()).unwrap()];
        reader.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// The disk as the overlay shows it, and as the image does by itself.
    fn expect_new_point(&self, image_too: bool) {
        assert!(Self::read(&self.order.overlay)[..self.model.len()] == self.model);
        if image_too {
            let (path, format) = self.order.overlay.backing[0].clone();
            assert!(Self::read(&ImageSpec::new(path, format)) == self.model);
        }
    }

    fn info(&self) -> String {
        let out = Command::new("qemu-img").args(["info", "--output=json", self.image()]).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    }
}

#[test]
fn the_image_alone_is_the_new_point_and_once_more_changes_nothing() {
    for (format, old, size) in [
        (Format::Raw, 20 * BLOCK, 20 * BLOCK),
        (Format::Qcow2, 20 * BLOCK, 20 * BLOCK),
        // Grown, also by less than a sector, and with ends that no sector fills.
        (Format::Qcow2, 20 * BLOCK, 30 * BLOCK + 512),
        (Format::Raw, 2 * BLOCK + 1000, 2 * BLOCK + 1000),
        (Format::Raw, 3 * BLOCK + 1000, 3 * BLOCK + 1010),
        (Format::Raw, 3 * BLOCK + 1010, 3 * BLOCK + 1000),
        (Format::Raw, 3 * BLOCK + 1000, 30 * BLOCK + 1),
    ] {
        let pair = Pair::new(format, old, size);
        for _ in 0..2 {
            let before = identity_of(Path::new(pair.image())).unwrap();
            let flattened = pair.flatten().unwrap();
            assert_eq!(flattened.notes, Vec::<String>::new());
            let after = identity_of(Path::new(pair.image())).unwrap();
            assert_eq!(flattened.image, Rewritten { before, after });
            pair.expect_new_point(true);
        }
    }
}

#[test]
fn interrupted_anywhere_it_reads_as_the_new_point_and_is_done_again() {
    for format in [Format::Raw, Format::Qcow2] {
        let pair = Pair::new(format, 600 * BLOCK, 600 * BLOCK);
        let mut stopped = 0;
        for delay in 0..12 {
            pair.host.session.set_stopping(false);
            let session = Arc::clone(&pair.host.session);
            // Not a wait for anything: the moment of the kill is what is varied.
            let killer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(delay * 8));
                session.set_stopping(true);
            });
            let outcome = pair.flatten();
            killer.join().unwrap();
            stopped += u32::from(outcome.is_err_and(|error| error.code == Code::Cancelled));
            pair.expect_new_point(false);
        }
        assert!(stopped > 0);
        pair.host.session.set_stopping(false);
        pair.flatten().unwrap();
        pair.expect_new_point(true);
    }
}

#[test]
fn a_commit_by_hand_that_emptied_the_overlay_does_no_harm() {
    let pair = Pair::new(Format::Qcow2, 20 * BLOCK, 20 * BLOCK);
    qemu("qemu-img", &["commit", "-q", "-f", "qcow2", &pair.order.overlay.path]);
    pair.flatten().unwrap();
    pair.expect_new_point(true);
}

#[test]
fn a_missing_overlay_is_fine_only_once_it_was_flattened() {
    let pair = Pair::new(Format::Raw, 20 * BLOCK + 100, 20 * BLOCK + 100);
    let kept = pair.host.path("kept");
    std::fs::rename(&pair.order.overlay.path, &kept).unwrap();
    assert_eq!(pair.flatten().unwrap_err().code, Code::Conflict);
    std::fs::rename(&kept, &pair.order.overlay.path).unwrap();
    let flattened = pair.flatten().unwrap();
    pair.mark(flattened.overlay);
    std::fs::remove_file(&pair.order.overlay.path).unwrap();
    let image = Rewritten { before: flattened.image.after, ..flattened.image };
    assert_eq!(pair.flatten().unwrap(), Flattened { overlay: None, image, ..flattened });
}

#[test]
fn what_others_keep_in_the_image_stays_where_it_can() {
    let grown = Pair::new(Format::Qcow2, 20 * BLOCK, 40 * BLOCK);
    let same = Pair::new(Format::Qcow2, 20 * BLOCK, 20 * BLOCK);
    for pair in [&grown, &same] {
        qemu("qemu-img", &["snapshot", "-c", "before", pair.image()]);
        qemu("qemu-img", &["bitmap", "--add", "-f", "qcow2", pair.image(), "lost"]);
        // Killed while it has the image open, as a guest would be: its bitmaps are not closed.
        let abort = ["-f", "qcow2", "-c", "write -P 1 0 512", "-c", "abort", pair.image()];
        assert!(!Command::new("qemu-io").args(abort).output().unwrap().status.success());
        qemu("qemu-img", &["bitmap", "--add", "-f", "qcow2", pair.image(), "kept"]);
    }
    let notes = grown.flatten().unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains(r#""lost""#), "{notes:?}");
    assert_eq!(same.flatten().unwrap().notes, Vec::<String>::new());
    for pair in [&grown, &same] {
        pair.expect_new_point(true);
        assert!(pair.info().contains(r#""name": "before""#) && pair.info().contains(r#""name": "kept""#));
        qemu("qemu-img", &["check", "-q", "-f", "qcow2", pair.image()]);
    }
    assert!(same.info().contains(r#""name": "lost""#) && !grown.info().contains(r#""name": "lost""#));
}

#[test]
fn a_guest_that_was_started_meanwhile_is_left_alone() {
    let pair = Pair::new(Format::Raw, 20 * BLOCK, 20 * BLOCK);
    let mut guest = Command::new("qemu-io");
    guest.args(["-f", "qcow2", &pair.order.overlay.path]);
    guest.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut guest = guest.spawn().unwrap();
    // Its prompt comes when the image is open, and locked.
    let mut prompt = [0; 1];
    std::io::Read::read_exact(guest.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    assert_eq!(pair.flatten().unwrap_err().code, Code::Conflict);
    drop(guest.stdin.take());
    guest.wait().unwrap();
    pair.flatten().unwrap();
}

#[test]
fn only_what_the_marker_names_is_flattened_and_never_cut() {
    let pair = Pair::new(Format::Raw, 20 * BLOCK, 20 * BLOCK);
    let other = |change: fn(&mut Flatten)| {
        let mut order = pair.order.clone();
        change(&mut order);
        flatten(&pair.host.session, &order, &pair.host.progress()).unwrap_err().code
    };
    assert_eq!(other(|order| order.overlay.path += "x"), Code::Internal);
    assert_eq!(other(|order| order.overlay.backing[0].0 += "x"), Code::Internal);
    assert_eq!(other(|order| order.overlay.backing.clear()), Code::Internal);
    assert_eq!(other(|order| order.exact_size = 100), Code::Internal);
    trim(Path::new(pair.image()), 19 * BLOCK as u64).unwrap_err();
    // Another file under the overlay's name, which has its data elsewhere.
    std::fs::remove_file(&pair.order.overlay.path).unwrap();
    let data = format!("data_file={}", pair.host.path("secret"));
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &data, &pair.order.overlay.path, "1280k"]);
    assert_eq!(pair.flatten().unwrap_err().code, Code::Verification);
}

/// An overlay over an image that stands on another, and one over that overlay: what is between may go once it is merged.
#[test]
fn what_stands_on_the_overlay_stands_on_the_image_then() {
    for format in [Format::Raw, Format::Qcow2] {
        let mut pair = Pair::new(format, 20 * BLOCK, 20 * BLOCK);
        let above = pair.host.path("above");
        let below = NamedImage { path: pair.order.overlay.path.clone().into(), format: ImageFormat::Qcow2 };
        new_qcow2::create_overlay(Path::new(&above), (20 * BLOCK) as u64, &below).unwrap();
        new_qcow2::finish(Path::new(&above), &|_| ()).unwrap();
        qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 9 64k 64k", &above]);
        pair.order.above = Some(above.clone());
        assert_eq!(pair.flatten().unwrap_err().code, Code::Internal, "the marker does not say so");
        pair.mark(None);
        pair.model[BLOCK..2 * BLOCK].fill(9);
        for _ in 0..2 {
            let flattened = pair.flatten().unwrap();
            assert_eq!(flattened.above.unwrap().after, identity_of(Path::new(&above)).unwrap());
            let backing = pair.order.overlay.backing.clone();
            let shorter = ImageSpec { backing, ..ImageSpec::new(&above, Format::Qcow2) };
            assert!(Pair::read(&shorter) == pair.model);
            qemu("qemu-img", &["check", "-q", "-f", "qcow2", &above]);
        }
    }
}

/// A cluster of the image that is written in part is filled up from what the image stands on.
#[test]
fn an_image_that_stands_on_another_keeps_what_it_shows() {
    let mut pair = Pair::new(Format::Qcow2, 20 * BLOCK, 20 * BLOCK);
    let (image, base) = (pair.image().to_owned(), pair.host.path("base"));
    std::fs::rename(&image, &base).unwrap();
    let large = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=1M", "-b", &base, "-F", "qcow2", &image];
    qemu("qemu-img", &large);
    pair.order.overlay.backing.push((base.clone(), Format::Qcow2));
    assert_eq!(pair.flatten().unwrap_err().code, Code::Internal, "the marker does not say so");
    pair.mark(None);
    pair.flatten().unwrap();
    let chain = ImageSpec { backing: vec![(base, Format::Qcow2)], ..ImageSpec::new(image, Format::Qcow2) };
    assert!(Pair::read(&chain) == pair.model);
}

/// Of several overlays that go into one image, one that is there already does not come over a newer one again.
#[test]
fn what_was_merged_and_not_written_to_since_is_not_merged_again() {
    let pair = Pair::new(Format::Raw, 20 * BLOCK, 20 * BLOCK);
    let merged = pair.flatten().unwrap();
    qemu("qemu-io", &["-f", "raw", "-c", "write -P 5 0 1M", pair.image()]);
    pair.mark(merged.overlay);
    pair.flatten().unwrap();
    assert!(std::fs::read(pair.image()).unwrap()[..1 << 20].iter().all(|byte| *byte == 5));
    qemu("qemu-io", &["-f", "qcow2", "-c", "write -P 6 0 512", &pair.order.overlay.path]);
    pair.flatten().unwrap();
    assert!(std::fs::read(pair.image()).unwrap()[..512].iter().all(|byte| *byte == 6), "its guest wrote to it");
}
