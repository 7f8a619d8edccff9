//! Images that qemu reads for us: those with features, or of formats, that our own readers do not have.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use kvm_clone_core::wire::lane::{Export, ImageSpec};
use kvm_clone_core::{Code, Error, Result};

use super::blockdev;
use super::progress::Progress;
use super::session::Session;
use crate::program::{self, Watch};

/// Pause between two looks for its socket.
const PAUSE: Duration = Duration::from_millis(5);

/// Has `qemu-nbd` read an image, until programs are told to stop, or until this agent is gone. What it does is progress until
/// the image is open.
pub(super) fn open(
    session: &Arc<Session>,
    name: String,
    image: &ImageSpec,
    progress: &Arc<Progress>,
) -> Result<Export> {
    let path = session.socket(&format!("{name}.sock"));
    let socket = path.display().to_string();
    let users = session.users_for_program()?;
    let (told, ended) = mpsc::sync_channel(1);
    let arguments = ["--read-only", "--persistent", "--shared=0", "--socket", &socket, "--export-name", &name];
    let arguments: Vec<String> = arguments.map(str::to_owned).into_iter().chain([blockdev::filename(image)]).collect();
    let (serving, progress) = (Arc::clone(session), Arc::downgrade(progress));
    std::thread::spawn(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let worked = |work| progress.upgrade().map_or((), |progress| progress.add(work));
        // An export lasts as long as the copy, which has limits of its own.
        let watch = Watch { deadline: None, stop: &|| serving.is_stopping(), worked: &worked };
        let outcome = program::run("qemu-nbd", &arguments, users, &watch);
        let _ = told.send(outcome);
    });
    while UnixStream::connect(&path).is_err() {
        match ended.recv_timeout(PAUSE) {
            Ok(Ok(outcome)) => return Err(refused(image, outcome.output.trim())),
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(Export { socket, name })
}

fn refused(image: &ImageSpec, why: &str) -> Error {
    Error::new(Code::Verification, format!("qemu-nbd cannot read {}: {why}", image.path))
        .with("path", &image.path)
        .help("Look at the image: qemu-img check")
}
