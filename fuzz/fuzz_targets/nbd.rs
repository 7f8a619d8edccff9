//! An NBD server that says anything at all: no bytes may panic, allocate without bound, or keep the client for longer than
//! they last; and what a read gives is what this server told, never what was in the buffer before.
//!
//! The first byte of an input chooses what the rest is taken for: all that a server says (0), or what it answers to a read
//! (1) or to a question about extents (2) after it has agreed to everything as it should.

#![no_main]

use std::io::{Cursor, Read, Write};
use std::path::Path;

use kvm_clone_agent::device::nbd::connection::Connection;
use libfuzzer_sys::fuzz_target;

const OFFSET: u64 = 8192;
const LEN: usize = 4096;

/// The bytes that a server says; what it is told goes nowhere.
struct Server<'a>(Cursor<&'a [u8]>);

impl Read for Server<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Server<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    match choice {
        0 => {
            reads(bytes);
            tells_extents(bytes);
        }
        1 => reads(&[&agrees(), bytes].concat()),
        2 => tells_extents(&[&agrees(), bytes].concat()),
        _ => {}
    }
});

fn reads(bytes: &[u8]) {
    let read = |before: u8| {
        let mut buf = vec![before; LEN];
        let (mut connection, info) = Connection::over(Server(Cursor::new(bytes)), Path::new("/s"), "vda").ok()?;
        assert!(info.maximum >= 512);
        connection.read(&mut buf, OFFSET).ok().map(|()| buf)
    };
    assert_eq!(read(0x5a), read(0xa5), "bytes that nobody told");
}

fn tells_extents(bytes: &[u8]) {
    let Ok((mut connection, info)) = Connection::over(Server(Cursor::new(bytes)), Path::new("/s"), "vda") else {
        return;
    };
    let Ok(extents) = connection.block_status(OFFSET, 1 << 20, info.allocation.unwrap_or(7)) else { return };
    assert!(!extents.is_empty() && extents.len() * 8 <= bytes.len());
    let mut at = OFFSET;
    for extent in extents {
        assert!(extent.offset == at && extent.len > 0, "{extent:?} does not lie at {at}");
        at = extent.end();
    }
}

/// All that a server says that has an export of 1 MiB, structured replies, and an allocation context of number 7.
fn agrees() -> Vec<u8> {
    let option = |option: u32, kind: u32, data: &[u8]| {
        let head = [option, kind, data.len() as u32].map(u32::to_be_bytes).concat();
        [&0x0003_e889_0455_65a9u64.to_be_bytes()[..], &head, data].concat()
    };
    let context = [&7u32.to_be_bytes()[..], b"base:allocation"].concat();
    let export = [&[0, 0][..], &(1u64 << 20).to_be_bytes(), &[0, 1]].concat();
    [
        b"NBDMAGICIHAVEOPT\0\x03".to_vec(),
        option(8, 1, &[]),
        option(10, 4, &context),
        option(10, 1, &[]),
        option(7, 3, &export),
        option(7, 1, &[]),
    ]
    .concat()
}
