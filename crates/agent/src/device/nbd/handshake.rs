//! Opening a connection: "Fixed newstyle negotiation" of the NBD protocol.

use std::io::{Read, Write};

use super::reply::{OptionReply, ReplyError, Result, option_reply, u16_from, u32_from, u64_from};

/// "Magic values": `NBDMAGIC` and `IHAVEOPT`.
const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTIONS_MAGIC: u64 = 0x4948_4156_454f_5054;
/// "Flag fields": fixed newstyle, no zeroes; the same numbers on both sides.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
/// "Option types".
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;
/// "Option reply types".
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERROR: u32 = 1 << 31;
const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
/// "`NBD_INFO_EXPORT`" and "`NBD_INFO_BLOCK_SIZE`".
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
/// "Transmission flags": several connections see the same disk.
const SEND_DF: u16 = 1 << 7;
const CAN_MULTI_CONN: u16 = 1 << 8;
/// What all servers take where they do not say: "Block size constraints".
const DEFAULT_MAXIMUM: u32 = 32 << 20;
/// More answers to one option than any server gives.
const ANSWERS: usize = 64;

/// What allocation is asked for by: "Metadata contexts", `base:allocation`.
const ALLOCATION: &str = "base:allocation";

/// An export, as its server describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Whether several connections may be opened.
    pub many: bool,
    /// Whether it can be asked not to cut answers into pieces.
    pub whole: bool,
    /// The most bytes of one request.
    pub maximum: u32,
    /// The number of the allocation context, where the server has one.
    pub allocation: Option<u32>,
}

/// Agrees with a server on an export and structured replies.
///
/// # Errors
/// It speaks another protocol, has no such export, or no structured replies.
pub fn negotiate(stream: &mut (impl Read + Write), export: &str) -> Result<ExportInfo> {
    if u64_from(stream)? != MAGIC || u64_from(stream)? != OPTIONS_MAGIC {
        return Err(ReplyError::Broken("it does not greet as an NBD server"));
    }
    let flags = u16_from(stream)?;
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(ReplyError::Broken("it only knows an old form of the protocol"));
    }
    let mine = u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES));
    stream.write_all(&mine.to_be_bytes())?;
    ask(stream, OPT_STRUCTURED_REPLY, &[])?;
    if answer(stream, OPT_STRUCTURED_REPLY)?.kind != REP_ACK {
        return Err(ReplyError::Broken("it has no structured replies"));
    }
    let allocation = allocation_context(stream, export)?;
    let mut info = go(stream, export)?;
    info.allocation = allocation;
    Ok(info)
}

fn ask(stream: &mut impl Write, option: u32, data: &[u8]) -> Result<()> {
    let mut request = Vec::with_capacity(16 + data.len());
    request.extend_from_slice(&OPTIONS_MAGIC.to_be_bytes());
    request.extend_from_slice(&option.to_be_bytes());
    request.extend_from_slice(&len_of(data).to_be_bytes());
    request.extend_from_slice(data);
    Ok(stream.write_all(&request)?)
}

fn len_of(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&len_of(text.as_bytes()).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn answer(stream: &mut impl Read, option: u32) -> Result<OptionReply> {
    let reply = option_reply(stream)?;
    if reply.option == option { Ok(reply) } else { Err(ReplyError::Broken("it answers another option")) }
}

/// "`NBD_OPT_SET_META_CONTEXT`": none where the server does not know of contexts.
fn allocation_context(stream: &mut (impl Read + Write), export: &str) -> Result<Option<u32>> {
    let mut data = Vec::new();
    text(&mut data, export);
    data.extend_from_slice(&1u32.to_be_bytes());
    text(&mut data, ALLOCATION);
    ask(stream, OPT_SET_META_CONTEXT, &data)?;
    let mut context = None;
    for _ in 0..ANSWERS {
        let reply = answer(stream, OPT_SET_META_CONTEXT)?;
        match reply.kind {
            REP_ACK => return Ok(context),
            REP_META_CONTEXT if reply.data.get(4..) == Some(ALLOCATION.as_bytes()) => {
                context = reply.data.first_chunk().map(|id| u32::from_be_bytes(*id));
            }
            REP_META_CONTEXT => return Err(ReplyError::Broken("it offers a context that was not asked for")),
            // An export that is not there says so again, in better words, when it is opened.
            kind if kind & REP_ERROR != 0 => return Ok(None),
            _ => return Err(ReplyError::Broken("it answers a question about contexts with something else")),
        }
    }
    Err(ReplyError::Broken("it does not stop answering"))
}

/// "`NBD_OPT_GO`".
fn go(stream: &mut (impl Read + Write), export: &str) -> Result<ExportInfo> {
    let mut data = Vec::new();
    text(&mut data, export);
    data.extend_from_slice(&1u16.to_be_bytes());
    data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    ask(stream, OPT_GO, &data)?;
    let mut export = None;
    let mut maximum = DEFAULT_MAXIMUM;
    for _ in 0..ANSWERS {
        let reply = answer(stream, OPT_GO)?;
        match reply.kind {
            REP_ACK => {
                let (size, flags) = export.ok_or(ReplyError::Broken("it does not say how large the disk is"))?;
                return Ok(ExportInfo {
                    size,
                    many: flags & CAN_MULTI_CONN != 0,
                    whole: flags & SEND_DF != 0,
                    maximum,
                    allocation: None,
                });
            }
            REP_INFO => take_info(&reply.data, &mut export, &mut maximum)?,
            REP_ERR_UNKNOWN => return Err(ReplyError::Broken("it has no export of that name")),
            _ => return Err(ReplyError::Broken("it does not open the export")),
        }
    }
    Err(ReplyError::Broken("it does not stop answering"))
}

fn take_info(mut data: &[u8], export: &mut Option<(u64, u16)>, maximum: &mut u32) -> Result<()> {
    match u16_from(&mut data)? {
        INFO_EXPORT => *export = Some((u64_from(&mut data)?, u16_from(&mut data)?)),
        INFO_BLOCK_SIZE => {
            let (_minimum, _preferred, most) = (u32_from(&mut data)?, u32_from(&mut data)?, u32_from(&mut data)?);
            // 0xffffffff means that there is no limit.
            *maximum = most.clamp(512, DEFAULT_MAXIMUM);
        }
        _ => {}
    }
    Ok(())
}
