//! Connections that hang up by themselves once the server's socket has lost its name: so whoever is about to stop the
//! server sends its readers away. qemu waits for its clients when its server stops (`qmp_nbd_server_stop`), and for one
//! that still negotiates, Debian 12's (7.2) waits for ever, with the guest standing still.

use std::io::{Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// A server that is silent for so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the name.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A connection to a server.
pub(super) struct Line(Arc<UnixStream>);

impl Read for Line {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        (&*self.0).read(buf)
    }
}

impl Write for Line {
    fn write(&mut self, buf: &[u8]) -> Result<usize> {
        (&*self.0).write(buf)
    }

    fn flush(&mut self) -> Result<()> {
        (&*self.0).flush()
    }
}

/// Every connection of one reader, and the thread that watches the name for them.
pub(super) struct Lines {
    socket: PathBuf,
    open: Arc<Mutex<Vec<Weak<UnixStream>>>>,
    /// The thread ends when this is gone.
    _watched: SyncSender<()>,
}

impl Lines {
    pub(super) fn to(socket: &Path) -> Self {
        let open = Arc::default();
        let (watched, ended) = sync_channel(0);
        let (name, lines) = (socket.to_owned(), Arc::clone(&open));
        std::thread::spawn(move || watch(&name, &lines, &ended));
        Self { socket: socket.to_owned(), open, _watched: watched }
    }

    /// A new connection. It is watched before anything is said on it.
    pub(super) fn connect(&self) -> Result<Line> {
        let stream = Arc::new(UnixStream::connect(&self.socket)?);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|line| line.strong_count() > 0);
        open.push(Arc::downgrade(&stream));
        Ok(Line(stream))
    }
}

/// Goes on after the first time: a connection may just have been made.
fn watch(socket: &Path, open: &Mutex<Vec<Weak<UnixStream>>>, ended: &Receiver<()>) {
    while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        if socket.exists() {
            continue;
        }
        for line in open.lock().unwrap_or_else(PoisonError::into_inner).drain(..).filter_map(|line| line.upgrade()) {
            // The server may have been faster.
            let _ = line.shutdown(Shutdown::Both);
        }
    }
}
