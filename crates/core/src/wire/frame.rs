//! The frame: one unit on any of our streams.
//!
//! ```text
//! offset  size  field
//!      0     2  mark 0x6b 0x63
//!      2     1  kind
//!      3     1  reserved, 0
//!      4     4  sequence number, little endian, from 0, one more with each frame of a stream and direction
//!      8     4  length of the body, little endian
//!     12     4  length of the payload, little endian
//!     16    16  check: BLAKE3 over bytes 0..16 and the body, truncated
//!     32        body: a postcard message
//!               payload: raw bytes, covered by digests inside the body
//! ```
//!
//! The check finds what a bug or a broken peer does to lengths and messages; the sequence number finds lost, repeated
//! and reordered frames. It is not a secret: SSH keeps strangers out.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Bytes of a header.
pub const HEADER_LEN: usize = 32;
/// The longest body that is accepted.
pub const MAX_BODY: u32 = 4 << 20;
/// The longest payload that is accepted.
pub const MAX_PAYLOAD: u32 = 4 << 20;

const MARK: [u8; 2] = *b"kc";

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message between controller and control agent, or control agent and lane agent.
    Message = 1,
    /// Relayed bytes of a libvirt connection: the body is the [`super::control::StreamId`], the payload the bytes, [`super::packed`].
    Relay = 2,
    /// A message of a lane, with blocks as its payload.
    Lane = 3,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Message, Self::Relay, Self::Lane].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A decoded header; its lengths are within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame holds.
    pub kind: Kind,
    /// Length of the body in bytes, at most [`MAX_BODY`].
    pub body_len: u32,
    /// Length of the payload in bytes, at most [`MAX_PAYLOAD`].
    pub payload_len: u32,
    check: [u8; 16],
    prefix: [u8; 16],
}

impl Header {
    /// Whether `body` is what the sender put into this frame.
    ///
    /// # Errors
    /// The check does not fit.
    pub fn verify(&self, body: &[u8]) -> Result<()> {
        if check(&self.prefix, body) == self.check { Ok(()) } else { Err(broken("its check does not fit")) }
    }
}

/// Makes the headers of one direction of one stream, in order.
#[derive(Debug, Default)]
pub struct Encoder {
    sequence: u32,
}

impl Encoder {
    /// Header and body of the next frame, ready to be written before a payload of `payload_len` bytes.
    ///
    /// # Errors
    /// The body or the payload is longer than a frame may be.
    pub fn encode<M: Serialize>(&mut self, kind: Kind, message: &M, payload_len: usize) -> Result<Vec<u8>> {
        let empty = vec![0; HEADER_LEN];
        let mut frame = postcard::to_extend(message, empty).map_err(|e| Error::internal(format!("encoding: {e}")))?;
        let body_len = bounded(frame.len() - HEADER_LEN, MAX_BODY)?;
        let payload_len = bounded(payload_len, MAX_PAYLOAD)?;
        frame[..2].copy_from_slice(&MARK);
        frame[2] = kind as u8;
        frame[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        frame[8..12].copy_from_slice(&body_len.to_le_bytes());
        frame[12..16].copy_from_slice(&payload_len.to_le_bytes());
        let check = check(&frame[..16], &frame[HEADER_LEN..]);
        frame[16..HEADER_LEN].copy_from_slice(&check);
        self.sequence = self.sequence.wrapping_add(1);
        Ok(frame)
    }
}

/// Reads the headers of one direction of one stream, in order.
#[derive(Debug, Default)]
pub struct Decoder {
    sequence: u32,
}

impl Decoder {
    /// The next header, with every length checked before anything is allocated for it.
    ///
    /// # Errors
    /// It is not a header, not the next one, or announces more than a frame may hold.
    pub fn header(&mut self, bytes: &[u8; HEADER_LEN]) -> Result<Header> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..2] != MARK || bytes[3] != 0 {
            return Err(broken("it does not begin as one"));
        }
        let kind = Kind::from_byte(bytes[2]).ok_or_else(|| broken("its kind is unknown"))?;
        if word(4) != self.sequence {
            return Err(broken("it is not the next one").with("expected", self.sequence).with("got", word(4)));
        }
        let (body_len, payload_len) = (word(8), word(12));
        if body_len > MAX_BODY || payload_len > MAX_PAYLOAD {
            return Err(broken("it is longer than a frame may be").with("length", u64::from(body_len.max(payload_len))));
        }
        self.sequence = self.sequence.wrapping_add(1);
        let (mut prefix, mut check) = ([0; 16], [0; 16]);
        prefix.copy_from_slice(&bytes[..16]);
        check.copy_from_slice(&bytes[16..]);
        Ok(Header { kind, body_len, payload_len, check, prefix })
    }
}

/// The message in a verified body.
///
/// # Errors
/// The bytes are no such message, or more than one.
pub fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(broken("bytes are left over behind its message")),
        Err(_) => Err(broken("its message cannot be read")),
    }
}

fn check(prefix: &[u8], body: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(prefix).update(body);
    let mut check = [0; 16];
    hasher.finalize_xof().fill(&mut check);
    check
}

fn bounded(len: usize, max: u32) -> Result<u32> {
    u32::try_from(len).ok().filter(|len| *len <= max).ok_or_else(|| Error::internal(format!("a frame of {len} bytes")))
}

fn broken(why: &str) -> Error {
    Error::transfer(format!("a frame arrived broken: {why}"))
        .help("Nothing was made at the target; run the command again, and report it if it happens twice")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(frame: &[u8]) -> &[u8; HEADER_LEN] {
        frame[..HEADER_LEN].try_into().unwrap()
    }

    #[test]
    fn frames_come_back_as_they_went() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        for text in ["", "one", "two"] {
            let frame = encoder.encode(Kind::Message, &text.to_owned(), 7).unwrap();
            let read = decoder.header(header(&frame)).unwrap();
            let body = &frame[HEADER_LEN..];
            assert_eq!((read.body_len as usize, read.payload_len), (body.len(), 7));
            read.verify(body).unwrap();
            assert_eq!(decode::<String>(body).unwrap(), text);
        }
    }

    #[test]
    fn a_frame_out_of_order_is_found() {
        let mut encoder = Encoder::default();
        let first = encoder.encode(Kind::Lane, &1u8, 0).unwrap();
        let second = encoder.encode(Kind::Lane, &2u8, 0).unwrap();
        let mut decoder = Decoder::default();
        assert!(decoder.header(header(&second)).is_err());
        decoder.header(header(&first)).unwrap();
        assert_eq!(decoder.header(header(&first)).unwrap_err().code.number(), 1006);
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_found(position in 0usize..40, bit in 0u8..8) {
            let mut frame = Encoder::default().encode(Kind::Lane, &[7u8; 8], 0).unwrap();
            let position = position % frame.len();
            frame[position] ^= 1 << bit;
            let result = Decoder::default().header(header(&frame)).and_then(|h| h.verify(&frame[HEADER_LEN..]));
            prop_assert!(result.is_err());
        }

        #[test]
        fn no_bytes_make_it_panic_or_allocate(bytes in prop::array::uniform32(any::<u8>())) {
            if let Ok(header) = Decoder::default().header(&bytes) {
                prop_assert!(header.body_len <= MAX_BODY && header.payload_len <= MAX_PAYLOAD);
            }
        }
    }
}
