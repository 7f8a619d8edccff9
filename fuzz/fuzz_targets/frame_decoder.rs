//! A peer that says anything at all: no bytes may panic, allocate without bound, or decode to something that does not
//! encode to what decodes to the same.
//!
//! The first byte of an input chooses what the rest is taken for: a whole stream (0), or one body of the message type
//! with that number, since few random bytes have a fitting check in front of them.

#![no_main]

use kvm_clone_core::wire::control::{FromAgent, ToAgent};
use kvm_clone_core::wire::frame::{Decoder, Encoder, HEADER_LEN, Kind, MAX_BODY, MAX_PAYLOAD, decode};
use kvm_clone_core::wire::lane::{LaneAnswer, LaneCommand, LaneEvent, LaneMessage};
use kvm_clone_core::wire::marker::Marker;
use kvm_clone_core::wire::packed::{PIECE, Unpacker};
use kvm_clone_core::wire::{BANNER_LIMIT, MAGIC, MagicScanner};
use libfuzzer_sys::fuzz_target;
use serde_bound::Message;

/// What every message of the wire can do.
mod serde_bound {
    use kvm_clone_core::wire::frame::{Encoder, Kind};

    pub(crate) trait Message: Sized + PartialEq + std::fmt::Debug {
        fn read(body: &[u8]) -> Option<Self>;
        fn write(&self, encoder: &mut Encoder) -> Vec<u8>;
    }

    macro_rules! messages {
        ($($name:ty),*) => {$(
            impl Message for $name {
                fn read(body: &[u8]) -> Option<Self> {
                    kvm_clone_core::wire::frame::decode(body).ok()
                }
                fn write(&self, encoder: &mut Encoder) -> Vec<u8> {
                    encoder.encode(Kind::Message, self, 0).unwrap()
                }
            }
        )*};
    }

    use super::{FromAgent, LaneAnswer, LaneCommand, LaneEvent, LaneMessage, Marker, ToAgent};
    messages!(ToAgent, FromAgent, LaneMessage, LaneAnswer, LaneCommand, LaneEvent, Marker);
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    match choice {
        0 => stream(rest),
        1 => comes_back::<ToAgent>(rest),
        2 => comes_back::<FromAgent>(rest),
        3 => comes_back::<LaneMessage>(rest),
        4 => comes_back::<LaneCommand>(rest),
        5 => comes_back::<LaneEvent>(rest),
        6 => comes_back::<Marker>(rest),
        7 => comes_back::<LaneAnswer>(rest),
        _ => {}
    }
});

/// A stream as its reader takes it: banner, magic, frames.
fn stream(mut bytes: &[u8]) {
    let mut scanner = MagicScanner::default();
    let mut skipped = 0;
    loop {
        let Some((byte, rest)) = bytes.split_first() else { return };
        bytes = rest;
        skipped += 1;
        assert!(skipped <= BANNER_LIMIT + MAGIC.len() + 1, "the scanner skips without end");
        match scanner.push(*byte) {
            Ok(true) => break,
            Ok(false) => {}
            Err(_) => return,
        }
    }
    let mut decoder = Decoder::default();
    let mut unpacker = Unpacker::default();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() {
        let Ok(header) = decoder.header(head) else { return };
        assert!(header.body_len <= MAX_BODY && header.payload_len <= MAX_PAYLOAD);
        let (body_len, payload_len) = (header.body_len as usize, header.payload_len as usize);
        let Some(body) = rest.get(..body_len) else { return };
        if header.verify(body).is_err() {
            return;
        }
        match header.kind {
            Kind::Message => {
                let _ = (decode::<ToAgent>(body), decode::<FromAgent>(body));
                let _ = (decode::<LaneCommand>(body), decode::<LaneEvent>(body));
            }
            Kind::Relay => drop(decode::<u16>(body)),
            Kind::Lane => drop((decode::<LaneMessage>(body), decode::<LaneAnswer>(body))),
        }
        let Some((payload, next)) = rest[body_len..].split_at_checked(payload_len) else { return };
        if header.kind == Kind::Relay {
            assert!(unpacker.unpack(payload).map_or(0, |piece| piece.len()) <= PIECE);
        }
        bytes = next;
    }
}

fn comes_back<M: Message>(body: &[u8]) {
    let Some(message) = M::read(body) else { return };
    let frame = message.write(&mut Encoder::default());
    let (head, body) = frame.split_first_chunk::<HEADER_LEN>().unwrap();
    let header = Decoder::default().header(head).unwrap();
    header.verify(body).unwrap();
    assert_eq!(M::read(body), Some(message));
}
