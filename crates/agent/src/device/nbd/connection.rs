//! One connection to an NBD server, over any byte stream: one request at a time.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use kvm_clone_core::blocks::Extent;

use super::handshake::{ExportInfo, negotiate};
use super::reply::{Chunk, Content, ReplyError, chunk};
use super::{DeviceError, Result, failed};

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

/// Which bytes of a request were told already: ranges that do not meet, from start to end.
#[derive(Default)]
struct Told(BTreeMap<usize, usize>);

impl Told {
    /// Adds a range that is not empty; false where a part of it was told before.
    fn take(&mut self, range: Range<usize>) -> bool {
        let before = self.0.range(..range.end).next_back().map(|(start, end)| (*start, *end));
        let start = match before {
            Some((_, end)) if end > range.start => return false,
            Some((start, end)) if end == range.start => start,
            _ => range.start,
        };
        self.0.insert(start, range.end);
        true
    }

    fn covers(&self, len: usize) -> bool {
        let end = self.0.iter().try_fold(0, |at, (start, end)| (*start == at).then_some(*end));
        end == Some(len)
    }
}

/// A connection on which an export is agreed.
pub struct Connection<S: Read + Write> {
    stream: BufReader<S>,
    path: PathBuf,
    cookie: u64,
    read_flags: u16,
}

impl<S: Read + Write> Connection<S> {
    /// Agrees on an export with the server at the other end of a stream; `socket` is its name in errors.
    ///
    /// # Errors
    /// As [`negotiate`].
    pub fn over(mut stream: S, socket: &Path, export: &str) -> Result<(Self, ExportInfo)> {
        let info = negotiate(&mut stream, export).map_err(|error| failed(socket, "open the NBD export", error))?;
        let stream = BufReader::with_capacity(BUFFER, stream);
        let read_flags = if info.whole { FLAG_DF } else { 0 };
        Ok((Self { stream, path: socket.to_owned(), cookie: 0, read_flags }, info))
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
        let failed = failed_at(&self.path, offset);
        self.stream.get_mut().write_all(&request).map_err(|error| failed(error.into()))
    }

    /// The next part of the answer; a failure that it tells is an error of ours.
    fn next(&mut self, offset: u64) -> Result<Chunk> {
        let failed = failed_at(&self.path, offset);
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

    /// Fills `buf` with what is at `offset`. Every byte must be told exactly once: a buffer is used again, and what was in it
    /// before must not pass for this disk's.
    ///
    /// # Errors
    /// The server fails, hangs up, or tells anything else.
    pub fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = u32::try_from(buf.len()).map_err(|_| self.broken(offset, "a request is too long"))?;
        self.ask(CMD_READ, offset, len)?;
        let mut told = Told::default();
        loop {
            let chunk = self.next(offset)?;
            match chunk.content {
                Content::Data { offset: at, len } | Content::Hole { offset: at, len } => {
                    let start = at.checked_sub(offset).and_then(|start| usize::try_from(start).ok());
                    let range = start.and_then(|start| Some(start..start.checked_add(len as usize)?));
                    let place = range.clone().and_then(|range| buf.get_mut(range));
                    let (Some(place), Some(range)) = (place, range) else {
                        return Err(self.broken(at, "it tells bytes that were not asked for"));
                    };
                    if !told.take(range) {
                        return Err(self.broken(at, "it tells bytes twice"));
                    }
                    if matches!(chunk.content, Content::Data { .. }) {
                        let failed = failed_at(&self.path, offset);
                        self.stream.read_exact(place).map_err(|error| failed(error.into()))?;
                    } else {
                        place.fill(0);
                    }
                }
                Content::None => {}
                _ => return Err(self.broken(offset, "it answers a read with something else")),
            }
            if chunk.done {
                break;
            }
        }
        if told.covers(buf.len()) { Ok(()) } else { Err(self.broken(offset, "it tells less than was asked for")) }
    }

    /// Extents from `offset` on, at least one, and perhaps fewer bytes or more than were asked for.
    ///
    /// # Errors
    /// As [`Connection::read`].
    pub fn block_status(&mut self, offset: u64, len: u32, context: u32) -> Result<Vec<Extent>> {
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

/// What makes an error of the protocol's, on the way to what lies at an offset, one of this disk's.
fn failed_at(path: &Path, offset: u64) -> impl Fn(ReplyError) -> DeviceError + use<> {
    let path = path.to_owned();
    move |error| failed(&path, "read from the NBD server", error).at(offset)
}

impl<S: Read + Write> Drop for Connection<S> {
    /// "`NBD_CMD_DISC`": the server need not take the end of the stream for a failure.
    fn drop(&mut self) {
        let _ = self.ask(CMD_DISC, 0, 0);
    }
}
