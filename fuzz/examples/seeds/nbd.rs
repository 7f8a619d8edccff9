//! What an NBD server says. Source: the NBD protocol, <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

use std::path::Path;

use super::seed;

/// Writes the seeds of `nbd`.
pub(super) fn write(dir: &Path) {
    let data = [&8192u64.to_be_bytes()[..], &[9; 4096]].concat();
    let half = [&8192u64.to_be_bytes()[..], &[9; 2048]].concat();
    let hole = [&10240u64.to_be_bytes()[..], &2048u32.to_be_bytes()].concat();
    let extents = [7u32, 65536, 0, 983_040, 3].map(u32::to_be_bytes).concat();
    let words = [&5u32.to_be_bytes()[..], &4u16.to_be_bytes(), b"nope"].concat();
    let at = [&words[..], &9216u64.to_be_bytes()].concat();

    let whole = [&greets()[..], &chunk(1, 1, &data)].concat();
    seed(dir, "handshake-and-data", 0, &whole);
    let refused = [&b"NBDMAGICIHAVEOPT\0\x03"[..], &option(8, (1 << 31) + 1, b"no")].concat();
    seed(dir, "no-structured-replies", 0, &refused);
    seed(dir, "data", 1, &chunk(1, 1, &data));
    seed(dir, "data-and-hole", 1, &[chunk(0, 1, &half), chunk(1, 2, &hole)].concat());
    seed(dir, "error", 1, &chunk(1, (1 << 15) + 1, &words));
    seed(dir, "error-at-an-offset", 1, &chunk(1, (1 << 15) + 2, &at));
    let simple = [&0x6744_6698u32.to_be_bytes()[..], &5u32.to_be_bytes(), &1u64.to_be_bytes()].concat();
    seed(dir, "simple-error", 1, &simple);
    seed(dir, "extents", 2, &chunk(1, 5, &extents));
    seed(dir, "extents-and-end", 2, &[chunk(0, 5, &extents), chunk(1, 0, &[])].concat());
}

/// "Option reply".
fn option(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let head = [option, kind, data.len() as u32].map(u32::to_be_bytes).concat();
    [&0x0003_e889_0455_65a9u64.to_be_bytes()[..], &head, data].concat()
}

/// "Structured reply chunk message", of the first request.
fn chunk(flags: u16, kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
    bytes.extend([flags, kind].map(u16::to_be_bytes).concat());
    bytes.extend(1u64.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A server that agrees to all that is asked, with block sizes.
fn greets() -> Vec<u8> {
    let context = [&7u32.to_be_bytes()[..], b"base:allocation"].concat();
    let export = [&[0, 0][..], &(1u64 << 20).to_be_bytes(), &[1, 0x8d]].concat();
    let sizes = [&[0, 3][..], &[1u32, 4096, 1 << 25].map(u32::to_be_bytes).concat()].concat();
    [
        b"NBDMAGICIHAVEOPT\0\x03".to_vec(),
        option(8, 1, &[]),
        option(10, 4, &context),
        option(10, 1, &[]),
        option(7, 3, &export),
        option(7, 3, &sizes),
        option(7, 1, &[]),
    ]
    .concat()
}
