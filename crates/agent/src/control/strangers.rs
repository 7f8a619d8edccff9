//! Sockets that are only called as ours. The kernel's list has the names that programs gave, and in mount and user namespaces of
//! his own any user of a host can give a socket any name: without this, one that stays would keep a backup job for ever, until
//! the guest's storage is full.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::unix_socket;

/// Whether all that listens at a socket belongs to users who cannot be its server: that is root, or whose directory it lies in.
/// Where it cannot be told whose something is, it may be the server's.
pub(super) fn listen_alone_at(socket: &Path) -> bool {
    have(socket, true)
}

/// The same of what is connected there. What nobody has accepted is nobody's, and a server accepts at once.
pub(super) fn are_connected_alone_to(socket: &Path) -> bool {
    have(socket, false)
}

fn have(socket: &Path, listening: bool) -> bool {
    let Some(owner) = socket.parent().and_then(|dir| fs::metadata(dir).ok()).map(|dir| dir.uid()) else { return false };
    let Ok(ends) = unix_socket::inodes(socket, listening) else { return false };
    let ends: Vec<PathBuf> = ends.iter().map(|inode| PathBuf::from(format!("socket:[{inode}]"))).collect();
    let mut strange = vec![false; ends.len()];
    for process in processes() {
        let held: Vec<usize> = files(&process).filter_map(|file| ends.iter().position(|end| *end == file)).collect();
        if held.is_empty() {
            continue;
        }
        match user(&process) {
            Some(user) if user != 0 && user != owner => held.into_iter().for_each(|end| strange[end] = true),
            _ => return false,
        }
    }
    strange.into_iter().all(|strange| strange)
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path())
}

/// What a process has open, as its links tell it.
fn files(process: &Path) -> impl Iterator<Item = PathBuf> {
    let links = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    links.filter_map(|link| fs::read_link(link.path()).ok())
}

/// Who started a process (`proc(5)`, `Uid`: the real one). The owner of its directory is root for whoever forbids to be looked
/// at, and the effective one for whoever starts `su`.
fn user(process: &Path) -> Option<u32> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    const NOBODY: u32 = 65_534;

    /// Its only holder is a process of this user.
    fn hold(end: impl Into<OwnedFd>, user: u32) -> Child {
        Command::new("sleep").arg("60").stdin(Stdio::from(end.into())).stdout(Stdio::null()).uid(user).spawn().unwrap()
    }

    #[test]
    fn sockets_of_other_users_with_our_name_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kvm-clone.sock");
        assert!(listen_alone_at(&socket) && are_connected_alone_to(&socket), "nobody is there");
        let listener = UnixListener::bind(&socket).unwrap();
        let _client = UnixStream::connect(&socket).unwrap();
        let mut connected = hold(listener.accept().unwrap().0, NOBODY);
        let _unaccepted = UnixStream::connect(&socket).unwrap();
        let mut listening = hold(listener, NOBODY);
        fs::remove_file(&socket).unwrap();
        assert!(listen_alone_at(&socket) && are_connected_alone_to(&socket));

        let ours = UnixListener::bind(&socket).unwrap();
        assert!(!listen_alone_at(&socket) && are_connected_alone_to(&socket));
        let _client = UnixStream::connect(&socket).unwrap();
        let accepted = ours.accept().unwrap();
        assert!(!are_connected_alone_to(&socket));
        drop((ours, accepted));
        assert!(listen_alone_at(&socket) && are_connected_alone_to(&socket));
        for child in [&mut connected, &mut listening] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn the_server_may_be_another_user_who_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(NOBODY), None).unwrap();
        let socket = dir.path().join("kvm-clone.sock");
        let mut qemu = hold(UnixListener::bind(&socket).unwrap(), NOBODY);
        assert!(!listen_alone_at(&socket));
        qemu.kill().unwrap();
        qemu.wait().unwrap();
    }
}
