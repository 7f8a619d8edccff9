//! libvirt's RPC, relayed: the agent opens the daemon's socket as the user it runs as, and passes bytes.
//!
//! The connection lives in the process that holds the operation's locks. When that process is gone, so is this
//! controller's libvirt: a controller that was asleep can do nothing more.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;

use kvm_clone_core::wire::control::{FromAgent, StreamId};
use kvm_clone_core::wire::packed::{PIECE, Packer, Unpacker};
use kvm_clone_core::{Error, Result};

use super::session::Session;

/// Pieces that may wait for libvirtd.
const WAITING: usize = 256;

/// Opens libvirt's socket and relays it from now on.
pub(super) fn open(session: &Arc<Session>) -> Result<StreamId> {
    let socket = connect(&sockets())?;
    let (to_libvirt, from_controller) = mpsc::sync_channel::<Vec<u8>>(WAITING);
    let closed = || Error::connection("the agent is ending").transient();
    let stream = session.add_relay(to_libvirt).ok_or_else(closed)?;
    let mut writing = socket.try_clone().map_err(|error| lost(&error))?;
    std::thread::spawn(move || {
        let mut unpacker = Unpacker::default();
        for packed in from_controller {
            if unpacker.unpack(&packed).ok().is_none_or(|bytes| writing.write_all(&bytes).is_err()) {
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
    let mut packer = Packer::default();
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => match packer.pack(&buffer[..count]) {
                Ok(packed) => session.relay_out(stream, packed),
                Err(_) => break,
            },
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    session.relay_closed(stream);
    session.tell(FromAgent::RelayClosed(stream));
}

/// The sockets of the system's libvirt for root, of the session's for others; the first that answers is taken. A
/// virtqemud connection serves storage and network calls too, so it stands in for libvirtd.
pub(super) fn sockets() -> Vec<String> {
    let names = ["libvirt-sock", "virtqemud-sock"];
    let dirs = if is_root() { vec!["/run".to_owned()] } else { session_dirs() };
    let paths = dirs.iter().flat_map(|dir| names.iter().map(move |name| format!("{dir}/libvirt/{name}")));
    paths.collect()
}

/// Where a user's own libvirt has its sockets: as GLib's `g_get_user_runtime_dir`, the cache stands in for a missing
/// runtime directory.
fn session_dirs() -> Vec<String> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| value.starts_with('/'));
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| format!("{home}/.cache")));
    [set("XDG_RUNTIME_DIR"), cache].into_iter().flatten().collect()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn connect(paths: &[String]) -> Result<UnixStream> {
    let mut refusal = None;
    for path in paths {
        match UnixStream::connect(path) {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // A socket that a stopped daemon left must not hide the other daemon's.
            Err(error) => refusal = refusal.or_else(|| Some(refused(path, &error))),
        }
    }
    Err(refusal.unwrap_or_else(|| absent(paths)))
}

fn refused(path: &str, error: &std::io::Error) -> Error {
    if error.kind() == ErrorKind::PermissionDenied {
        return Error::connection(format!("no permission to open libvirt's socket {path}"))
            .with("path", path)
            .help("Log in as root, or let this user run the agent through sudo without a password");
    }
    let help = if is_root() {
        "Start libvirt on the host: systemctl start libvirtd (or virtqemud.socket)"
    } else {
        "Start the user's libvirt on the host: virsh -c qemu:///session list"
    };
    Error::connection(format!("libvirt does not answer at {path}: {error}")).with("path", path).help(help).transient()
}

fn absent(paths: &[String]) -> Error {
    let looked_for = paths.join(", ");
    if is_root() {
        return Error::connection("there is no libvirt socket").with("looked_for", looked_for).help(
            "Install libvirt-daemon-system (Debian) or libvirt-daemon-kvm (Fedora), and start libvirtd or virtqemud",
        );
    }
    Error::connection("this user's own libvirt does not run")
        .with("looked_for", looked_for)
        .help("Start it on the host: virsh -c qemu:///session list; it ends when nobody uses it")
        .help("To reach the system's machines, log in as root or let this user use sudo without a password")
}

fn lost(error: &std::io::Error) -> Error {
    Error::connection(format!("libvirt's socket was lost: {error}")).transient()
}
