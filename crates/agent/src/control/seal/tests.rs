//! Whoever writes, however it is done, ends the trust. On real files, and on real file systems.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvm_clone_core::blocks::{KeyId, Root};
use kvm_clone_core::inventory::ImageFormat as Format;
use kvm_clone_core::wire::lane::Export;
use tempfile::TempDir;

use super::super::sight::{identity, seen};
use super::*;

const OPERATION: Uuid = Uuid::from_u128(7);
const TRUSTED: SealState = SealState::Trusted { root: Root([1; 32]), key: KeyId([2; 16]) };

/// A directory on a file system that can have seals, and an agent's state.
struct Host {
    dir: TempDir,
    place: Place,
}

impl Host {
    fn new() -> Self {
        // Where the tests were built: `/tmp` is no file system of its own on many hosts.
        let built = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(built.parent().unwrap()).unwrap();
        let place = Place { run: dir.path().join("run"), state: dir.path().join("state") }.make().unwrap();
        Self { dir, place }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// A new image of this content.
    fn image(&self, name: &str, content: &[u8]) -> ImageSpec {
        fs::write(self.path(name), content).unwrap();
        ImageSpec::new(self.path(name), Format::Raw)
    }

    fn order(image: &ImageSpec, seen: Vec<Identity>) -> SealOrder {
        let (disk, image) = ("vda".parse().unwrap(), image.clone());
        SealOrder { operation: OPERATION, disk, root: Root([1; 32]), key: KeyId([2; 16]), image, seen }
    }

    fn seal_as(&self, image: &ImageSpec, seen: Vec<Identity>) {
        take(&self.place, &[Self::order(image, seen)]).unwrap();
    }

    /// Seals an image as it is now.
    fn seal(&self, image: &ImageSpec) {
        self.seal_as(image, chain(image).map(|path| seen(Path::new(path)).unwrap()).collect());
    }

    fn state_of(&self, operation: Uuid, image: &ImageSpec) -> SealState {
        let query = SealQuery { operation, disk: "vda".parse().unwrap(), image: image.clone() };
        states(&self.place, &[query]).unwrap().remove(0)
    }

    fn state(&self, image: &ImageSpec) -> SealState {
        self.state_of(OPERATION, image)
    }

    fn seal_file(&self) -> PathBuf {
        path(&self.place, OPERATION, &"vda".parse().unwrap())
    }

    #[track_caller]
    fn expect_untrusted(&self, image: &ImageSpec, about: &str) {
        match self.state(image) {
            SealState::Untrusted { root: Root([1, ..]), key: KeyId([2, ..]), why } if why.contains(about) => {}
            other => panic!("{about:?} was expected: {other:?}"),
        }
    }
}

fn writable(path: &str) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// A page of a file, mapped to be written.
struct Page(*mut libc::c_void);

impl Page {
    fn of(path: &str) -> Self {
        let (file, access) = (writable(path), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping, at an address of the kernel's choice, of a file that is a page long.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at)
    }

    fn set(&self, value: u8) {
        // SAFETY: the mapping is there until it is dropped, and one page long.
        unsafe { self.0.cast::<u8>().write_volatile(value) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made, of which nothing is kept.
        unsafe { libc::munmap(self.0, 4096) };
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn what_nobody_wrote_to_is_trusted() {
    let host = Host::new();
    let image = host.image("image", &[5; 4096]);
    assert_eq!(host.state(&image), SealState::Absent { why: None });
    host.seal(&image);
    assert_eq!(fs::metadata(host.seal_file()).unwrap().mode() & 0o777, 0o600);
    fs::read(host.path("image")).unwrap();
    drop(writable(&image.path));
    assert_eq!(host.state(&image), TRUSTED);
}

/// Whoever had it open then may write after it was read, with a time that was taken before.
#[test]
fn what_was_open_for_writing_when_it_was_looked_at_is_not_sealed() {
    let host = Host::new();
    let image = host.image("image", &[5; 4096]);
    let writer = writable(&image.path);
    let before = seen(Path::new(&image.path)).unwrap();
    drop(writer);
    host.seal_as(&image, vec![before]);
    host.expect_untrusted(&image, "open for writing");
    host.seal(&image);
    assert_eq!(host.state(&image), TRUSTED);
}

#[test]
fn a_newer_point_outdates_the_seals_of_its_lineage_and_of_no_other() {
    const NEWER: Uuid = Uuid::from_u128(8);
    let host = Host::new();
    let (old, new) = (host.image("old", &[5; 4096]), host.image("new", &[6; 4096]));
    host.seal(&old);
    let looked_at = vec![seen(Path::new(&new.path)).unwrap()];
    let newer = SealOrder { operation: NEWER, disk: "vdb".parse().unwrap(), ..Host::order(&new, looked_at) };
    take(&host.place, &[SealOrder { key: KeyId([3; 16]), ..newer.clone() }]).unwrap();
    assert_eq!(host.state(&old), TRUSTED);
    take(&host.place, &[newer]).unwrap();
    assert_eq!(host.state(&old), SealState::Absent { why: None });
    assert_eq!(fs::read_dir(host.place.seals()).unwrap().count(), 1);
}

#[test]
fn a_write_right_after_the_seal_shows_however_quick_it_is() {
    let host = Host::new();
    let image = host.image("image", &[5; 4096]);
    let file = writable(&image.path);
    for round in 0..100u8 {
        // The file is closed for the seal's moment only, so that the write is as near to it as can be.
        host.seal(&image);
        let sealed_while_open = host.state(&image);
        assert_ne!(sealed_while_open, TRUSTED);
        let again = host.image("other", &[round; 4096]);
        host.seal(&again);
        fs::write(&again.path, [round + 1; 4096]).unwrap();
        assert_ne!(host.state(&again), TRUSTED, "{round}");
        file.write_all_at(&[round], 0).unwrap();
    }
}

#[test]
fn a_seal_taken_while_somebody_writes_never_lies() {
    let host = Host::new();
    let image = host.image("image", &[0; 4096]);
    let stop = Arc::new(AtomicBool::new(false));
    let (path, stopping) = (image.path.clone(), Arc::clone(&stop));
    let writer = std::thread::spawn(move || {
        let mut round = 0u64;
        while !stopping.load(Ordering::Relaxed) {
            round += 1;
            writable(&path).write_all_at(&round.to_le_bytes(), 0).unwrap();
            // Rests that are sometimes longer than a look takes, sometimes shorter.
            std::thread::sleep(Duration::from_micros(round * 7919 % 40_000));
        }
    });
    let mut trusted = 0;
    for _ in 0..150 {
        let before = seen(Path::new(&image.path)).unwrap();
        let content = fs::read(&image.path).unwrap();
        host.seal_as(&image, vec![before]);
        let after = fs::read(&image.path).unwrap();
        if host.state(&image) == TRUSTED {
            trusted += 1;
            assert!(after == content);
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    println!("{trusted} of 150 seals held");
}

#[test]
fn writes_through_mappings_show() {
    let host = Host::new();
    let image = host.image("image", &[5; 4096]);
    let page = Page::of(&image.path);
    page.set(6);
    // Mapped and dirty: what is written through it from now on would change no time.
    host.seal(&image);
    host.expect_untrusted(&image, "open for writing");
    drop(page);
    host.expect_untrusted(&image, "open for writing");
    host.seal(&image);
    assert_eq!(host.state(&image), TRUSTED);
    // The pages are in the cache, and were dirty before.
    let page = Page::of(&image.path);
    page.set(7);
    drop(page);
    host.expect_untrusted(&image, "was changed");
}

#[test]
fn whatever_touches_the_file_ends_the_trust() {
    let host = Host::new();
    let other = host.path("other");
    let changes: [&dyn Fn(&str); 7] = [
        &|path| writable(path).write_all_at(&[1], 9).unwrap(),
        &|path| writable(path).set_len(5000).unwrap(),
        &|path| fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap(),
        &|path| drop(run("touch", &[path])),
        &|path| drop(run("chown", &[&rustix::process::geteuid().as_raw().to_string(), path])),
        &|path| fs::hard_link(path, &other).unwrap(),
        // Content that was put back, with its old times.
        &|path| drop(run("sh", &["-c", r#"cp -p "$1" "$1.copy"; echo x >"$1"; cp -p "$1.copy" "$1""#, "sh", path])),
    ];
    for change in changes {
        let image = host.image("image", &[5; 4096]);
        host.seal(&image);
        assert_eq!(host.state(&image), TRUSTED);
        change(&image.path);
        host.expect_untrusted(&image, "was changed");
    }
}

#[test]
fn another_file_of_that_name_is_not_trusted() {
    let host = Host::new();
    let image = host.image("image", &[5; 4096]);
    host.seal(&image);
    let copy = host.path("copy");
    run("cp", &["-p", &image.path, &copy]);
    fs::rename(copy, &image.path).unwrap();
    host.expect_untrusted(&image, "another file");
    fs::remove_file(&image.path).unwrap();
    host.expect_untrusted(&image, "cannot be opened");
    // By another name too: a link counts as what it leads to.
    let (first, second) = (host.image("first", &[1]), host.image("second", &[2]));
    symlink(&first.path, &image.path).unwrap();
    host.seal(&image);
    assert_eq!(host.state(&image), TRUSTED);
    fs::remove_file(&image.path).unwrap();
    symlink(&second.path, &image.path).unwrap();
    host.expect_untrusted(&image, "another file");
}

#[test]
fn every_file_of_the_chain_counts() {
    let host = Host::new();
    let below = host.image("below", &[5; 4096]);
    let image = ImageSpec { backing: vec![(below.path.clone(), Format::Raw)], ..host.image("image", &[6; 4096]) };
    host.seal(&image);
    assert_eq!(host.state(&image), TRUSTED);
    host.expect_untrusted(&ImageSpec { backing: Vec::new(), ..image.clone() }, "other files");
    host.expect_untrusted(&ImageSpec { data_files: vec![Default::default()], ..image.clone() }, "data file");
    writable(&below.path).write_all_at(&[1], 0).unwrap();
    host.expect_untrusted(&image, "below was changed");
}

#[test]
fn what_cannot_be_sealed_keeps_its_root_and_says_why() {
    let host = Host::new();
    let image = host.image("image", &[5; 4096]);
    let export = Some(Export { socket: host.path("socket"), name: "x".to_owned() });
    host.seal(&ImageSpec { export, ..image.clone() });
    host.expect_untrusted(&image, "server");
    host.seal(&ImageSpec::new("/dev/null", Format::Raw));
    host.expect_untrusted(&image, "no regular file");
    host.seal_as(&image, Vec::new());
    host.expect_untrusted(&image, "looked at before");
    let before = seen(Path::new(&image.path)).unwrap();
    fs::write(&image.path, [6; 4096]).unwrap();
    host.seal_as(&image, vec![before]);
    host.expect_untrusted(&image, "since its content was known");
    // The time of the last write is what anybody says that it is.
    let before = seen(Path::new(&image.path)).unwrap();
    run(
        "sh",
        &[
            "-c",
            r#"touch -r "$1" "$1.time"; printf x | dd of="$1" conv=notrunc; touch -r "$1.time" "$1""#,
            "sh",
            &image.path,
        ],
    );
    assert!(identity(&fs::metadata(&image.path).unwrap()).is_same_file(&before));
    host.seal_as(&image, vec![before]);
    host.expect_untrusted(&image, "since its content was known");
}

#[test]
fn an_open_file_is_not_trusted_as_long_as_it_is_open() {
    let host = Host::new();
    let image = host.image("image", &[5; 4096]);
    host.seal(&image);
    let file = writable(&image.path);
    host.expect_untrusted(&image, "open for writing");
    drop(file);
    assert_eq!(host.state(&image), TRUSTED);
}

#[test]
fn a_boot_another_point_and_damage_end_a_seal() {
    let host = Host::new();
    let image = host.image("image", &[5; 4096]);
    host.seal(&image);
    let good = fs::read(host.seal_file()).unwrap();
    let absent = || matches!(host.state(&image), SealState::Absent { why: Some(_) });
    // As another operation's.
    let other = Uuid::from_u128(8);
    fs::copy(host.seal_file(), path(&host.place, other, &"vda".parse().unwrap())).unwrap();
    assert!(matches!(host.state_of(other, &image), SealState::Absent { why: Some(_) }));
    for len in (0..good.len()).step_by(13) {
        fs::write(host.seal_file(), &good[..len]).unwrap();
        assert!(absent(), "{len}");
    }
    let edited = String::from_utf8(good.clone()).unwrap().replacen("4096", "4097", 1);
    fs::write(host.seal_file(), edited).unwrap();
    assert!(absent());
    fs::remove_file(host.seal_file()).unwrap();
    fs::create_dir(host.seal_file()).unwrap();
    assert!(absent());
    fs::remove_dir(host.seal_file()).unwrap();
    let booted = Seal { boot_id: "another".to_owned(), ..Seal::decode(&good).unwrap() };
    fs::write(host.seal_file(), booted.encode()).unwrap();
    host.expect_untrusted(&image, "booted");
    fs::write(host.seal_file(), good).unwrap();
    assert_eq!(host.state(&image), TRUSTED);
}

/// Times there are not changed by writes through mappings.
#[test]
fn files_in_memory_are_not_sealed() {
    let host = Host::new();
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
    let path = memory.path().join("image");
    fs::write(&path, [5; 4096]).unwrap();
    let image = ImageSpec::new(path.display().to_string(), Format::Raw);
    host.seal(&image);
    host.expect_untrusted(&image, "times prove nothing");
}

/// A file system in a file, mounted.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_file_system_that_counts_in_seconds_proves_nothing() {
    let host = Host::new();
    if !is_root() {
        return;
    }
    let (disk, dir) = (host.path("disk"), host.path("mnt"));
    File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    run("mkfs.ext3", &["-q", "-F", "-I", "128", &disk]);
    fs::create_dir(&dir).unwrap();
    run("mount", &["-o", "loop", &disk, &dir]);
    let _mounted = Mounted(dir);
    let image = host.image("mnt/image", &[5; 4096]);
    host.seal(&image);
    host.expect_untrusted(&image, "times in seconds");
}

#[test]
fn an_image_behind_a_loop_device_is_not_trusted() {
    let host = Host::new();
    if !is_root() {
        return;
    }
    let image = host.image("image", &[5; 1 << 20]);
    host.seal(&image);
    assert_eq!(host.state(&image), TRUSTED);
    let device = run("losetup", &["--find", "--show", &image.path]);
    host.expect_untrusted(&image, "open for writing");
    host.seal(&image);
    fs::write(&device, [9; 4096]).unwrap();
    run("losetup", &["--detach", &device]);
    assert_ne!(host.state(&image), TRUSTED);
}
