#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::fd::AsRawFd;

use kvm_clone_core::Code;
use sha2::{Digest, Sha256};

use super::super::test_host::TestHost;
use super::*;

/// A host with a state of two files, of which the first is to become another and the second is to go.
struct Scene(TestHost);

impl Scene {
    fn new() -> Self {
        let host = TestHost::new();
        fs::create_dir(host.path("tpm2")).unwrap();
        let scene = Self(host);
        [("tpm2/permall", "old"), ("staged", "new"), ("tpm2/savestate", "older")]
            .iter()
            .for_each(|(name, text)| scene.write(name, text));
        let before = |text: &str| Some(Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect());
        let renewed = vec![
            RenewedFile {
                path: scene.0.path("tpm2/permall"),
                staging: Some(scene.0.path("staged")),
                before: before("old"),
            },
            RenewedFile { path: scene.0.path("tpm2/savestate"), staging: None, before: before("older") },
        ];
        let marker = Marker { staging: vec![scene.0.path("staged")], renewed, ..Marker::default() };
        marker::put(&scene.0.session.place, &marker).unwrap();
        scene
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.0.path(name)).ok()
    }

    fn renew(&self) -> Result<std::result::Result<(), String>> {
        renew(&self.0.session, Uuid::nil(), &self.0.progress())
    }

    fn assert_renewed(&self) {
        assert_eq!(self.read("tpm2/permall").as_deref(), Some("new"));
        assert_eq!((self.read("tpm2/savestate"), self.read("staged")), (None, None));
    }

    /// Whether an emulator gets the lock that an emulator takes.
    fn is_free(&self) -> bool {
        self.emulator().is_some()
    }

    /// The lock that an emulator takes, as another process would have it: of the open file, not of this process.
    fn emulator(&self) -> Option<File> {
        let file = File::options().write(true).create(true).truncate(false).open(self.0.path("tpm2/.lock")).unwrap();
        // SAFETY: all bytes zero are a value of this structure of numbers.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = i16::try_from(libc::F_WRLCK).unwrap();
        // SAFETY: the descriptor is open, and the structure lives until the call returns.
        let taken = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
        (taken == 0).then_some(file)
    }
}

#[test]
fn what_is_staged_takes_its_place_however_often_it_is_asked_for() {
    let scene = Scene::new();
    hold(&scene.0.session, Uuid::nil()).unwrap();
    for _ in 0..3 {
        assert_eq!(scene.renew(), Ok(Ok(())));
        scene.assert_renewed();
    }
    assert!(scene.0.session.held_states().is_empty());
    assert!(!Path::new(&scene.0.path("tpm2/.lock")).exists());
}

#[test]
fn what_was_half_done_is_done() {
    let scene = Scene::new();
    fs::rename(scene.0.path("staged"), scene.0.path("tpm2/permall")).unwrap();
    assert_eq!(scene.renew(), Ok(Ok(())));
    scene.assert_renewed();
}

#[test]
fn what_somebody_changed_stays_and_is_named() {
    for (name, text) in [("tpm2/permall", "mine"), ("tpm2/savestate", "mine")] {
        let scene = Scene::new();
        scene.write(name, text);
        let why = scene.renew().unwrap().unwrap_err();
        assert!(why.contains(name), "{why}");
        assert_eq!(scene.read(name).as_deref(), Some(text));
        assert_eq!(scene.read("staged").as_deref(), Some("new"));
    }
    // Another time stamp is no change, and what went already need not go.
    let scene = Scene::new();
    scene.write("tpm2/permall", "old");
    fs::remove_file(scene.0.path("tpm2/savestate")).unwrap();
    assert_eq!(scene.renew(), Ok(Ok(())));
    scene.assert_renewed();
}

#[test]
fn an_emulator_and_the_renewal_keep_each_other_out() {
    let scene = Scene::new();
    hold(&scene.0.session, Uuid::nil()).unwrap();
    hold(&scene.0.session, Uuid::nil()).unwrap();
    assert!(!scene.is_free());
    scene.0.session.drop_locks();
    assert!(scene.is_free());

    let emulator = scene.emulator().unwrap();
    assert_eq!(scene.renew().unwrap_err().code, Code::Conflict);
    assert_eq!(hold(&scene.0.session, Uuid::nil()).unwrap_err().code, Code::Conflict);
    assert_eq!(scene.read("tpm2/permall").as_deref(), Some("old"));
    drop(emulator);
    assert_eq!(scene.renew(), Ok(Ok(())));
    assert!(Path::new(&scene.0.path("tpm2/.lock")).exists(), "it is the emulator's");
}

#[test]
fn a_directory_that_the_operation_made_gets_no_lock_before_the_commit() {
    let scene = Scene::new();
    let marker = marker::get(&scene.0.session.place, Uuid::nil()).unwrap();
    let marker = Marker { directories: vec![scene.0.path("tpm2")], ..marker };
    marker::put(&scene.0.session.place, &marker).unwrap();
    hold(&scene.0.session, Uuid::nil()).unwrap();
    assert!(!Path::new(&scene.0.path("tpm2/.lock")).exists());
    assert_eq!(scene.renew(), Ok(Ok(())));
}
