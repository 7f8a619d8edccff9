//! Disks that a server exports by NBD on a unix socket: qemu, of a running machine or of an image that only qemu reads.
//!
//! A client of our own: no crate has structured replies, allocation and several connections at once. The protocol's
//! source is named in [`reply`].

pub mod connection;
pub mod handshake;
mod line;
pub mod reply;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use kvm_clone_core::blocks::{Extent, extents};

use super::{DeviceError, Problem, ReadDevice, Result, check_range};
use connection::Connection;
use handshake::ExportInfo;
use line::{Line, Lines};

/// Connections at most: as many as a lane agent has readers, and one that asks for extents.
const CONNECTIONS: usize = 3;

/// An export that is read.
pub struct NbdReader {
    socket: PathBuf,
    export: String,
    info: ExportInfo,
    lines: Lines,
    pool: Mutex<Pool>,
    returned: Condvar,
}

/// Connections that nobody uses now, and how many there are in all.
struct Pool {
    idle: Vec<Connection<Line>>,
    open: usize,
}

/// A new connection on which the export is agreed.
fn agree(lines: &Lines, socket: &Path, export: &str) -> Result<(Connection<Line>, ExportInfo)> {
    let line = lines.connect().map_err(|error| DeviceError::io(socket, "connect to the NBD server", error))?;
    Connection::over(line, socket, export)
}

impl NbdReader {
    /// Opens an export.
    ///
    /// # Errors
    /// Where nobody listens, there is no such export, or the server is of no use.
    pub fn open(socket: &Path, export: &str) -> Result<Self> {
        let lines = Lines::to(socket);
        let (connection, info) = agree(&lines, socket, export)?;
        let pool = Mutex::new(Pool { idle: vec![connection], open: 1 });
        Ok(Self { socket: socket.to_owned(), export: export.to_owned(), info, lines, pool, returned: Condvar::new() })
    }

    /// Uses a connection that is idle, or a new one while there are few. One that failed is not used again: answers to
    /// what was asked may still stand in it.
    fn with<T>(&self, work: impl FnOnce(&mut Connection<Line>) -> Result<T>) -> Result<T> {
        let mut connection = self.take()?;
        let outcome = work(&mut connection);
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        match &outcome {
            Ok(_) => pool.idle.push(connection),
            Err(_) => pool.open -= 1,
        }
        drop(pool);
        self.returned.notify_one();
        outcome
    }

    fn take(&self) -> Result<Connection<Line>> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(connection) = pool.idle.pop() {
                return Ok(connection);
            }
            if pool.open == 0 || (self.info.many && pool.open < CONNECTIONS) {
                pool.open += 1;
                break;
            }
            pool = self.returned.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
        drop(pool);
        let opened = agree(&self.lines, &self.socket, &self.export).and_then(|(connection, info)| {
            if info == self.info {
                return Ok(connection);
            }
            Err(DeviceError::corrupt(&self.socket, "the export changed between two connections"))
        });
        if opened.is_err() {
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).open -= 1;
            self.returned.notify_one();
        }
        opened
    }
}

impl ReadDevice for NbdReader {
    fn size(&self) -> u64 {
        self.info.size
    }

    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        check_range(&self.socket, self.info.size, offset, len)?;
        let Some(context) = self.info.allocation else { return Ok(vec![Extent::data(offset, len)]) };
        let mut found = Vec::new();
        let mut at = offset;
        while at < offset + len {
            // A request's length has 32 bits; a server answers for as much of it as it likes.
            let ask = u32::try_from(offset + len - at).unwrap_or(1 << 31);
            let told = self.with(|connection| connection.block_status(at, ask, context))?;
            for extent in told {
                let Some(extent) = extent.within(at, offset + len) else { continue };
                at = extent.end();
                extents::push(&mut found, extent);
            }
        }
        Ok(found)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.socket, self.info.size, offset, buf.len() as u64)?;
        let piece = self.info.maximum as usize;
        self.with(|connection| {
            let mut at = offset;
            for part in buf.chunks_mut(piece) {
                connection.read(part, at)?;
                at += part.len() as u64;
            }
            Ok(())
        })
    }

    /// The server's cache is the server's.
    fn drop_cache(&self, _offset: u64, _len: u64) {}
}

/// An error of the protocol's as one of a disk's.
fn failed(socket: &Path, doing: &'static str, error: reply::ReplyError) -> DeviceError {
    match error {
        reply::ReplyError::Stream(error) => DeviceError::io(socket, doing, error),
        reply::ReplyError::Broken(what) => {
            DeviceError::new(socket, Problem::Corrupt(format!("the NBD server breaks the protocol: {what}")))
        }
    }
}
