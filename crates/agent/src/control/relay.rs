//! libvirt's RPC, relayed: the agent opens the daemon's socket as the user it runs as, and passes bytes.
//!
//! The connection lives in the process that holds the operation's locks. When that process is gone, so is this
//! controller's libvirt: a controller that was asleep can do nothing more.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use kvm_clone_core::wire::control::{FromAgent, StreamId};
use kvm_clone_core::{Error, Result};

use super::session::Session;

/// Bytes relayed in one frame.
const PIECE: usize = 64 * 1024;
/// Pieces that may wait for libvirtd.
const WAITING: usize = 256;

/// Opens libvirt's socket and relays it from now on.
pub(super) fn open(session: &Arc<Session>) -> Result<StreamId> {
    let socket = connect(&sockets())?;
    let (to_libvirt, from_controller) = mpsc::sync_channel::<Vec<u8>>(WAITING);
    let stream = session.add_relay(to_libvirt);
    let mut writing = socket.try_clone().map_err(|error| lost(&error))?;
    std::thread::spawn(move || {
        for bytes in from_controller {
            if writing.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = writing.shutdown(std::net::Shutdown::Both);
    });
    let session = Arc::clone(session);
    std::thread::spawn(move || pass_answers(&session, stream, socket));
    Ok(stream)
}

fn pass_answers(session: &Session, stream: StreamId, mut socket: UnixStream) {
    let mut buffer = vec![0; PIECE];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => session.relay_out(stream, buffer[..count].to_vec()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    session.relay_closed(stream);
    session.tell(FromAgent::RelayClosed(stream));
}

/// The sockets of the system's libvirt for root, of the session's for others; the first that exists is taken. A
/// virtqemud connection serves storage and network calls too, so it stands in for libvirtd.
pub(super) fn sockets() -> Vec<String> {
    let names = ["libvirt-sock", "virtqemud-sock"];
    let dir = if rustix::process::geteuid().is_root() {
        "/run/libvirt".to_owned()
    } else {
        let run = std::env::var("XDG_RUNTIME_DIR").unwrap_or_else(|_| "/run/user/none".to_owned());
        format!("{run}/libvirt")
    };
    names.iter().map(|name| format!("{dir}/{name}")).collect()
}

fn connect(paths: &[String]) -> Result<UnixStream> {
    for path in paths {
        match UnixStream::connect(path) {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(Error::connection(format!("no permission to open libvirt's socket {path}"))
                    .with("path", path)
                    .help("Log in as root, or let this user run the agent through sudo without a password"));
            }
            Err(error) => {
                return Err(Error::connection(format!("libvirt does not answer at {path}: {error}"))
                    .with("path", path)
                    .help("Start libvirt on the host: systemctl start libvirtd (or virtqemud.socket)")
                    .transient());
            }
        }
    }
    let dir = paths.first().and_then(|path| Path::new(path).parent()).map(|dir| dir.display().to_string());
    Err(Error::connection("there is no libvirt socket on this host")
        .with("looked_for", paths.join(", "))
        .with("directory", dir.unwrap_or_default())
        .help("Install libvirt-daemon-system (Debian) or libvirt-daemon-kvm (Fedora), and start libvirtd or virtqemud"))
}

fn lost(error: &std::io::Error) -> Error {
    Error::connection(format!("libvirt's socket was lost: {error}")).transient()
}
