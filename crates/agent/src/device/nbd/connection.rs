//! One connection to an NBD server: one request at a time.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvm_clone_core::blocks::Extent;

use super::handshake::{ExportInfo, negotiate};
use super::reply::{Chunk, Content, ReplyError, chunk};
use super::{DeviceError, Result, failed};

/// A server that is silent for so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Enough for the head of a chunk; data is read past it into its place.
const BUFFER: usize = 4096;
/// "Request message".
const REQUEST_MAGIC: u32 = 0x2560_9513;
/// "Request types".
const CMD_READ: u16 = 0;
const CMD_DISC: u16 = 2;
const CMD_BLOCK_STATUS: u16 = 7;
/// "Command flags": not in pieces. qemu (7.2) tells the error of an unreadable sector only then, and else hangs up.
const FLAG_DF: u16 = 1 << 2;
/// "`base:allocation` metadata context": reads as zeroes.
const STATE_ZERO: u32 = 2;
/// "Error values": those of Linux that stand for something to whoever has to react.
const KNOWN_ERRORS: [i32; 7] = [1, 5, 12, 22, 28, 95, 108];

pub(super) struct Connection {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    cookie: u64,
    read_flags: u16,
}

impl Connection {
    pub(super) fn open(socket: &Path, export: &str) -> Result<(Self, ExportInfo)> {
        let open = || -> std::io::Result<UnixStream> {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let mut stream = open().map_err(|error| DeviceError::io(socket, "connect to the NBD server", error))?;
        let info = negotiate(&mut stream, export).map_err(|error| failed(socket, "open the NBD export", error))?;
        let stream = BufReader::with_capacity(BUFFER, stream);
        let read_flags = if info.whole { FLAG_DF } else { 0 };
        Ok((Self { stream, path: socket.to_owned(), cookie: 0, read_flags }, info))
    }

    fn failed(&self, offset: u64) -> impl Fn(ReplyError) -> DeviceError + use<> {
        let path = self.path.clone();
        move |error| failed(&path, "read from the NBD server", error).at(offset)
    }

    fn broken(&self, offset: u64, what: &'static str) -> DeviceError {
        failed(&self.path, "read", ReplyError::Broken(what)).at(offset)
    }

    /// "Request message".
    fn ask(&mut self, command: u16, offset: u64, len: u32) -> Result<()> {
        self.cookie += 1;
        let mut request = [0; 28];
        request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        let flags = if command == CMD_READ { self.read_flags } else { 0 };
        request[4..6].copy_from_slice(&flags.to_be_bytes());
        request[6..8].copy_from_slice(&command.to_be_bytes());
        request[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        request[16..24].copy_from_slice(&offset.to_be_bytes());
        request[24..].copy_from_slice(&len.to_be_bytes());
        let failed = self.failed(offset);
        self.stream.get_mut().write_all(&request).map_err(|error| failed(error.into()))
    }

    /// The next part of the answer; a failure that it tells is an error of ours.
    fn next(&mut self, offset: u64) -> Result<Chunk> {
        let failed = self.failed(offset);
        let chunk = chunk(&mut self.stream).map_err(failed)?;
        if chunk.cookie != self.cookie {
            return Err(self.broken(offset, "it answers what was not asked"));
        }
        if let Content::Failed { error, message, offset: at } = chunk.content {
            return Err(self.told(error, &message, at.unwrap_or(offset)));
        }
        Ok(chunk)
    }

    /// An error that the server tells.
    fn told(&self, error: u32, message: &str, offset: u64) -> DeviceError {
        let number = i32::try_from(error).ok().filter(|number| KNOWN_ERRORS.contains(number)).unwrap_or(22);
        let system = std::io::Error::from_raw_os_error(number);
        let mut told = DeviceError::io(&self.path, "read: the NBD server refuses", system).at(offset);
        if let (false, super::Problem::Io { source, .. }) = (message.is_empty(), &mut told.problem) {
            *source = std::io::Error::other(message.to_owned());
        }
        told
    }

    /// Fills `buf` with what is at `offset`. Every byte must be told exactly once.
    pub(super) fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = u32::try_from(buf.len()).map_err(|_| self.broken(offset, "a request is too long"))?;
        self.ask(CMD_READ, offset, len)?;
        let mut told = 0u64;
        loop {
            let chunk = self.next(offset)?;
            let place = match chunk.content {
                Content::Data { offset: at, len } | Content::Hole { offset: at, len } => {
                    let start = at.checked_sub(offset).and_then(|start| usize::try_from(start).ok());
                    let place = start.and_then(|start| buf.get_mut(start..start.checked_add(len as usize)?));
                    told += u64::from(len);
                    Some(place.ok_or_else(|| self.broken(at, "it tells bytes that were not asked for"))?)
                }
                Content::None => None,
                _ => return Err(self.broken(offset, "it answers a read with something else")),
            };
            match (place, chunk.content) {
                (Some(place), Content::Data { .. }) => {
                    let failed = self.failed(offset);
                    self.stream.read_exact(place).map_err(|error| failed(error.into()))?;
                }
                (Some(place), _) => place.fill(0),
                (None, _) => {}
            }
            if chunk.done {
                break;
            }
        }
        // "`NBD_CMD_READ`": chunks must not overlap, so their sum says whether all is there.
        if told == u64::from(len) {
            Ok(())
        } else {
            Err(self.broken(offset, "it tells less or more than was asked for"))
        }
    }

    /// Extents from `offset` on, at least one, and perhaps fewer bytes or more than were asked for.
    pub(super) fn block_status(&mut self, offset: u64, len: u32, context: u32) -> Result<Vec<Extent>> {
        self.ask(CMD_BLOCK_STATUS, offset, len)?;
        let mut found = Vec::new();
        loop {
            let chunk = self.next(offset)?;
            match chunk.content {
                Content::Extents { context: told, extents } if told == context && found.is_empty() => {
                    let mut at = offset;
                    for (len, flags) in extents {
                        let zero = flags & STATE_ZERO != 0;
                        let len = u64::from(len);
                        found.push(if zero { Extent::zero(at, len) } else { Extent::data(at, len) });
                        at = at.saturating_add(len);
                    }
                }
                Content::None => {}
                _ => return Err(self.broken(offset, "it answers a question about extents with something else")),
            }
            if chunk.done {
                break;
            }
        }
        // An extent without length would have us ask for ever.
        if found.is_empty() || found.iter().any(|extent| extent.len == 0) {
            return Err(self.broken(offset, "it tells no extents"));
        }
        Ok(found)
    }
}

impl Drop for Connection {
    /// "`NBD_CMD_DISC`": the server need not take the end of the stream for a failure.
    fn drop(&mut self) {
        let _ = self.ask(CMD_DISC, 0, 0);
    }
}
