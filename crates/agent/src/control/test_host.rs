//! A host of the tests' own: a session with its state in a directory of its own.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use kvm_clone_core::Result;
use tempfile::TempDir;

use super::progress::Progress;
use super::session::{Outgoing, Session};
use crate::place::Place;

/// Gone when it is dropped.
pub(super) struct TestHost {
    dir: TempDir,
    pub(super) session: Arc<Session>,
    _ends: (Receiver<Outgoing>, Receiver<Result<()>>),
}

impl TestHost {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { run: dir.path().join("run"), state: dir.path().join("state") }.make().unwrap();
        let (session, outgoing, ended) = Session::open(place, "").unwrap();
        Self { dir, session, _ends: (outgoing, ended) }
    }

    /// The path of a file of this host.
    pub(super) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub(super) fn progress(&self) -> Progress {
        Progress::of(&self.session, 0)
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        self.session.close();
    }
}
