//! Images that qemu reads for us: those with features, or of formats, that our own readers do not have.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvm_clone_core::wire::lane::{Export, ImageSpec};
use kvm_clone_core::{Code, Error, Result};

use super::blockdev;
use super::session::Session;
use crate::program;

/// How long `qemu-nbd` may take to open an image.
const OPENING: Duration = Duration::from_secs(30);
/// An export lasts as long as the copy, which has limits of its own.
const LASTING: Duration = Duration::from_secs(365 * 24 * 3600);
/// Pause between two looks for its socket.
const PAUSE: Duration = Duration::from_millis(5);

/// Has `qemu-nbd` read an image, until programs are told to stop, or until this agent is gone.
pub(super) fn open(session: &Arc<Session>, name: String, image: &ImageSpec) -> Result<Export> {
    let path = session.socket(&format!("{name}.sock"));
    let socket = path.display().to_string();
    let users = session.users_for_program()?;
    let (told, ended) = mpsc::sync_channel(1);
    let arguments = ["--read-only", "--persistent", "--shared=0", "--socket", &socket, "--export-name", &name];
    let arguments: Vec<String> = arguments.map(str::to_owned).into_iter().chain([blockdev::filename(image)]).collect();
    let serving = Arc::clone(session);
    std::thread::spawn(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let outcome = program::run("qemu-nbd", &arguments, users, LASTING, &|| serving.is_stopping());
        let _ = told.send(outcome);
    });
    let until = Instant::now() + OPENING;
    while UnixStream::connect(&path).is_err() {
        match ended.recv_timeout(PAUSE) {
            Ok(Ok(outcome)) => return Err(refused(image, outcome.output.trim())),
            Ok(Err(error)) => return Err(error),
            Err(_) if Instant::now() > until => return Err(refused(image, "it does not answer")),
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
