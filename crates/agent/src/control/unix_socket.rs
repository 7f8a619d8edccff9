//! Who is at a unix socket, asked of the kernel. Connecting would tell as well, but a server that is about to stop must not
//! get another client (see [`super::point`]).

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Every unix socket of this network namespace (`proc(5)`).
const SOCKETS: &str = "/proc/net/unix";
/// `__SO_ACCEPTCON` in the flags: it listens.
const LISTENS: u32 = 1 << 16;

/// The server's ends of a socket with a name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    /// Somebody listens there, whether its name is still in the file system or not.
    pub(super) listening: bool,
    /// Connections that the server has not closed, whether it has accepted them or not.
    pub(super) connected: usize,
}

/// What there is at a socket now.
pub(super) fn ends(socket: &Path) -> io::Result<Ends> {
    Ok(find(&fs::read(SOCKETS)?, socket))
}

/// The numbers by which `/proc/PID/fd` calls the server's ends of a socket that programs hold (`sockfs` inodes): of those that
/// listen, or of connections. One that nobody has accepted has none.
pub(super) fn inodes(socket: &Path, listening: bool) -> io::Result<Vec<u64>> {
    let sockets = fs::read(SOCKETS)?;
    let wanted = lines(&sockets, socket).filter(|[_, _, _, flags, ..]| listens(flags) == listening);
    Ok(wanted.filter_map(|[.., inode]| inode.parse().ok()).filter(|inode| *inode != 0).collect())
}

fn find(sockets: &[u8], name: &Path) -> Ends {
    let mut ends = Ends::default();
    for [_, _, _, flags, ..] in lines(sockets, name) {
        if listens(flags) {
            ends.listening = true;
        } else {
            ends.connected += 1;
        }
    }
    ends
}

fn listens(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & LISTENS != 0)
}

/// Lines of `address: references protocol flags type state inode name`, without the name, which may have spaces.
fn lines<'a>(sockets: &'a [u8], name: &Path) -> impl Iterator<Item = [&'a str; 7]> {
    sockets.split(|byte| *byte == b'\n').filter_map(|line| {
        let before = line.strip_suffix(name.as_os_str().as_bytes())?;
        let fields: Vec<&str> = std::str::from_utf8(before).ok()?.split_whitespace().collect();
        fields.try_into().ok()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn who_is_there_is_told_without_a_connection() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("with a space.sock");
        assert_eq!(ends(&socket).unwrap(), Ends::default());
        let listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(ends(&socket).unwrap(), Ends { listening: true, connected: 0 });
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody came");

        let client = UnixStream::connect(&socket).unwrap();
        assert_eq!(ends(&socket).unwrap().connected, 1, "before it is accepted");
        let (accepted, _) = listener.accept().unwrap();
        fs::remove_file(&socket).unwrap();
        assert_eq!(ends(&socket).unwrap(), Ends { listening: true, connected: 1 }, "without a name");
        drop(client);
        assert_eq!(ends(&socket).unwrap().connected, 1, "until the server has closed its end");
        drop((listener, accepted));
        assert_eq!(ends(&socket).unwrap(), Ends::default());
    }

    #[test]
    fn names_that_only_end_alike_are_others() {
        let sockets = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1 /x/run/a.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 2 y /run/a.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 3\n";
        assert_eq!(find(sockets, Path::new("/run/a.sock")), Ends::default());
        assert!(find(sockets, Path::new("/x/run/a.sock")).listening);
    }
}
