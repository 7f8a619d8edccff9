//! What an NBD server says, read from any byte stream: headers, chunks, and what they may hold.
//!
//! Source: the NBD protocol, <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, whose sections are
//! named below. Every length is checked before anything of that length is kept.

use std::io::{self, Read};

/// "Option haggling": magic of the server's answers.
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// "Structured reply chunk message".
const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// "Simple reply message".
const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// No answer to an option is longer: names are at most 4096 bytes ("Terminology").
const OPTION_LIMIT: u32 = 64 * 1024;
/// Words that come with an error.
const MESSAGE_LIMIT: usize = 4096;
/// No answer about extents is longer: as many as are asked about at once.
pub(super) const EXTENTS_LIMIT: usize = 1 << 20;

/// "Structured reply flags": the last chunk of a reply.
const FLAG_DONE: u16 = 1;
/// "Structured reply types".
const TYPE_NONE: u16 = 0;
const TYPE_OFFSET_DATA: u16 = 1;
const TYPE_OFFSET_HOLE: u16 = 2;
const TYPE_BLOCK_STATUS: u16 = 5;
const TYPE_ERROR: u16 = (1 << 15) + 1;
const TYPE_ERROR_OFFSET: u16 = (1 << 15) + 2;

/// What a server may get wrong, or tell.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The stream failed or ended.
    #[error(transparent)]
    Stream(#[from] io::Error),
    /// It does not keep to the protocol.
    #[error("the server breaks the protocol: {0}")]
    Broken(&'static str),
}

/// What replies are read into.
pub type Result<T, E = ReplyError> = std::result::Result<T, E>;

/// An answer during option haggling.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option that it answers.
    pub option: u32,
    /// "Option reply types".
    pub kind: u32,
    /// What it holds.
    pub data: Vec<u8>,
}

/// Reads an answer to an option.
///
/// # Errors
/// The stream ends, or the answer is none.
pub fn option_reply(stream: &mut impl Read) -> Result<OptionReply> {
    if u64_from(stream)? != OPTION_REPLY_MAGIC {
        return Err(ReplyError::Broken("an answer to an option has the wrong magic"));
    }
    let (option, kind, len) = (u32_from(stream)?, u32_from(stream)?, u32_from(stream)?);
    if len > OPTION_LIMIT {
        return Err(ReplyError::Broken("an answer to an option is too long"));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok(OptionReply { option, kind, data })
}

/// A part of the answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The request that it answers.
    pub cookie: u64,
    /// Whether it is the last one.
    pub done: bool,
    /// What it says.
    pub content: Content,
}

/// What a chunk says.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing; it only ends the answer.
    None,
    /// Bytes of the disk follow in the stream: so many, which lie at this offset. Whoever asked reads them.
    Data {
        /// Where they lie.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// So many zeros lie there.
    Hole {
        /// Where they lie.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Extents of a context: their lengths and flags, in order.
    Extents {
        /// Which context.
        context: u32,
        /// Length and flags of each.
        extents: Vec<(u32, u32)>,
    },
    /// The request failed.
    Failed {
        /// "Error values".
        error: u32,
        /// The server's words.
        message: String,
        /// Where, if it says so.
        offset: Option<u64>,
    },
}

/// Reads the next part of an answer. The bytes of [`Content::Data`] are left in the stream.
///
/// # Errors
/// The stream ends, or what comes is no answer.
pub fn chunk(stream: &mut impl Read) -> Result<Chunk> {
    match u32_from(stream)? {
        CHUNK_MAGIC => {}
        SIMPLE_MAGIC => return simple(stream),
        _ => return Err(ReplyError::Broken("a reply has the wrong magic")),
    }
    let (flags, kind) = (u16_from(stream)?, u16_from(stream)?);
    let (cookie, len) = (u64_from(stream)?, u32_from(stream)?);
    let content = match kind {
        // Without these two rules a server could go on for ever and say nothing.
        TYPE_NONE if len == 0 && flags & FLAG_DONE != 0 => Content::None,
        TYPE_OFFSET_DATA if len > 8 => Content::Data { offset: u64_from(stream)?, len: len - 8 },
        TYPE_OFFSET_HOLE if len == 12 => hole(stream)?,
        TYPE_BLOCK_STATUS => extents(stream, len)?,
        TYPE_ERROR | TYPE_ERROR_OFFSET => failure(stream, len, kind == TYPE_ERROR_OFFSET)?,
        _ => return Err(ReplyError::Broken("a chunk is of no type that was asked for")),
    };
    Ok(Chunk { cookie, done: flags & FLAG_DONE != 0, content })
}

/// With structured replies agreed, simple ones answer only what has no data: here, errors.
fn simple(stream: &mut impl Read) -> Result<Chunk> {
    let (error, cookie) = (u32_from(stream)?, u64_from(stream)?);
    let content = match error {
        0 => Content::None,
        error => Content::Failed { error, message: String::new(), offset: None },
    };
    Ok(Chunk { cookie, done: true, content })
}

fn hole(stream: &mut impl Read) -> Result<Content> {
    let (offset, len) = (u64_from(stream)?, u32_from(stream)?);
    if len == 0 {
        return Err(ReplyError::Broken("a hole is empty"));
    }
    Ok(Content::Hole { offset, len })
}

fn extents(stream: &mut impl Read, len: u32) -> Result<Content> {
    let len = len as usize;
    if len < 12 || !(len - 4).is_multiple_of(8) || len > EXTENTS_LIMIT {
        return Err(ReplyError::Broken("a list of extents has an impossible length"));
    }
    let context = u32_from(stream)?;
    let mut extents = Vec::with_capacity((len - 4) / 8);
    for _ in 0..(len - 4) / 8 {
        extents.push((u32_from(stream)?, u32_from(stream)?));
    }
    Ok(Content::Extents { context, extents })
}

fn failure(stream: &mut impl Read, len: u32, with_offset: bool) -> Result<Content> {
    let fixed = if with_offset { 14 } else { 6 };
    let words = (len as usize).checked_sub(fixed).filter(|words| *words <= MESSAGE_LIMIT);
    let words = words.ok_or(ReplyError::Broken("an error has an impossible length"))?;
    let error = u32_from(stream)?;
    if usize::from(u16_from(stream)?) != words {
        return Err(ReplyError::Broken("an error's words have another length"));
    }
    let mut message = vec![0; words];
    stream.read_exact(&mut message)?;
    let offset = if with_offset { Some(u64_from(stream)?) } else { None };
    Ok(Content::Failed { error, message: String::from_utf8_lossy(&message).into_owned(), offset })
}

pub(super) fn u16_from(stream: &mut impl Read) -> Result<u16> {
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

pub(super) fn u32_from(stream: &mut impl Read) -> Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

pub(super) fn u64_from(stream: &mut impl Read) -> Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
