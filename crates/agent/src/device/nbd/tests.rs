//! Against the real `qemu-nbd`, and against servers that say the wrong thing.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::io::{Cursor, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;

use super::reply::{Chunk, Content, chunk, option_reply};
use super::*;

const MIB: u64 = 1 << 20;

/// `qemu-nbd` on an image; ended with the value.
struct Server {
    child: Child,
    socket: PathBuf,
    _dir: TempDir,
}

impl Server {
    fn on(dir: TempDir, image: &str, format: &str) -> Self {
        let image = dir.path().join(image).display().to_string();
        Self::with(dir, &["--format", format, &image])
    }

    fn with(dir: TempDir, image: &[&str]) -> Self {
        let socket = dir.path().join("nbd.sock");
        let child = Command::new("qemu-nbd")
            .args(["--read-only", "--persistent", "--shared=8", "--export-name", "vda", "--socket"])
            .arg(&socket)
            .args(image)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, socket, _dir: dir };
        let late = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(&server.socket).is_err() {
            assert!(Instant::now() < late, "qemu-nbd does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    fn open(&self) -> NbdReader {
        NbdReader::open(&self.socket, "vda").unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A raw disk with data at its beginning, around 9 MiB, and at its end, which lies at no boundary.
fn raw_disk() -> (TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let size = 20 * MIB + 512;
    let file = std::fs::File::create(dir.path().join("disk.raw")).unwrap();
    file.set_len(size).unwrap();
    for (offset, byte) in [(0, 1u8), (9 * MIB, 2), (size - 700, 3)] {
        file.write_all_at(&vec![byte; 700], offset).unwrap();
    }
    let bytes = std::fs::read(dir.path().join("disk.raw")).unwrap();
    (dir, bytes)
}

#[test]
fn it_reads_what_qemu_exports() {
    let (dir, bytes) = raw_disk();
    let converted = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"])
        .current_dir(dir.path())
        .status();
    assert!(converted.unwrap().success());
    let server = Server::on(dir, "disk.qcow2", "qcow2");
    let disk = server.open();
    assert_eq!(disk.size(), bytes.len() as u64);
    let mut read = vec![7; bytes.len()];
    disk.read_at(&mut read, 0).unwrap();
    assert!(read == bytes);
    let extents = disk.extents(0, disk.size()).unwrap();
    assert_eq!(extents.first().unwrap().offset, 0);
    assert!(extents.windows(2).all(|pair| pair[0].end() == pair[1].offset));
    assert_eq!(extents.last().unwrap().end(), disk.size());
    assert!(extents::data_len(&extents) < MIB, "{extents:?}");
    for extent in extents.iter().filter(|extent| extent.kind == kvm_clone_core::blocks::ExtentKind::Zero) {
        assert!(bytes[extent.offset as usize..extent.end() as usize].iter().all(|byte| *byte == 0));
    }
    assert_eq!(disk.extents(5 * MIB, 100).unwrap(), [Extent::zero(5 * MIB, 100)]);
}

#[test]
fn several_threads_read_at_once() {
    let (dir, bytes) = raw_disk();
    let server = Server::on(dir, "disk.raw", "raw");
    let disk = server.open();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (disk, bytes) = (&disk, &bytes);
            scope.spawn(move || {
                for offset in (thread * 4096..20 * MIB).step_by(1 << 16) {
                    let mut read = [0; 4096];
                    disk.read_at(&mut read, offset).unwrap();
                    assert!(read == bytes[offset as usize..][..4096]);
                }
            });
        }
    });
}

#[test]
fn beyond_the_end_is_refused_without_asking() {
    let (dir, bytes) = raw_disk();
    let server = Server::on(dir, "disk.raw", "raw");
    let disk = server.open();
    assert!(disk.read_at(&mut [0; 2], bytes.len() as u64 - 1).is_err());
    assert!(disk.extents(0, bytes.len() as u64 + 1).is_err());
}

#[test]
fn an_export_that_is_not_there_and_a_server_that_is_gone() {
    let (dir, _) = raw_disk();
    let mut server = Server::on(dir, "disk.raw", "raw");
    let error = NbdReader::open(&server.socket, "vdb").err().unwrap();
    assert!(error.to_string().contains("no export of that name"), "{error}");
    let disk = server.open();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let error = disk.read_at(&mut [0; 512], MIB).unwrap_err();
    assert_eq!(error.offset, Some(MIB), "{error}");
    assert!(disk.read_at(&mut [0; 512], MIB).is_err(), "nor does the next try hang");
}

/// qemu's own way to make storage fail: an unreadable sector is named by its offset.
#[test]
fn an_unreadable_sector_is_a_failure_of_the_storage() {
    let (dir, _) = raw_disk();
    let rules = dir.path().join("rules");
    let sector = 9 * MIB / 512;
    std::fs::write(&rules, format!("[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"{sector}\"\n"))
        .unwrap();
    let image = format!(
        "driver=raw,file.driver=blkdebug,file.config={},file.image.driver=file,file.image.filename={}",
        rules.display(),
        dir.path().join("disk.raw").display()
    );
    let server = Server::with(dir, &["--image-opts", &image]);
    let disk = server.open();
    let error = disk.read_at(&mut [0; 4096], 9 * MIB).unwrap_err();
    assert!(matches!(error.problem, Problem::Media(_)), "{error:?}");
    assert_eq!(error.offset, Some(9 * MIB));
    assert!(disk.read_at(&mut [0; 512], 0).is_ok(), "the rest can be read");
}

/// Head of a chunk, as a server writes it.
fn head(kind: u16, cookie: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&1u16.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

fn answers(reply: Vec<u8>) -> DeviceError {
    answered(reply).unwrap_err()
}

/// What is read at 8192 from a server that agrees to everything as it should, and answers the first request with these
/// bytes.
fn answered(reply: Vec<u8>) -> Result<[u8; 4096]> {
    let dir = tempfile::tempdir().unwrap();
    let (socket, server) = agreeing(dir.path(), reply);
    let disk = NbdReader::open(&socket, "vda").unwrap();
    let mut read = [0; 4096];
    let outcome = disk.read_at(&mut read, 8192);
    drop(disk);
    server.join().unwrap();
    outcome.map(|()| read)
}

/// A server for one client, until that one goes.
fn agreeing(dir: &Path, reply: Vec<u8>) -> (PathBuf, std::thread::JoinHandle<()>) {
    let socket = dir.join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
        let option = |option: u32, kind: u32, data: &[u8]| {
            let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            bytes.extend_from_slice(&option.to_be_bytes());
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(data);
            bytes
        };
        let mut export = vec![0, 0];
        export.extend_from_slice(&MIB.to_be_bytes());
        export.extend_from_slice(&[0, 1]);
        for bytes in [option(8, 1, &[]), option(10, 1, &[]), option(7, 3, &export), option(7, 1, &[]), reply] {
            stream.write_all(&bytes).unwrap();
        }
        // Everything that is asked is swallowed until the client goes.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    (socket, server)
}

/// Whoever is about to stop the server takes the name away.
#[test]
fn a_reader_hangs_up_when_the_socket_loses_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, server) = agreeing(dir.path(), Vec::new());
    let disk = NbdReader::open(&socket, "vda").unwrap();
    std::fs::remove_file(&socket).unwrap();
    server.join().unwrap();
    assert!(disk.read_at(&mut [0; 512], 0).is_err());
    assert!(disk.read_at(&mut [0; 512], 0).is_err(), "and calls no more");
}

#[test]
fn replies_that_cannot_be_are_errors() {
    let data = |offset: u64, len: usize| {
        let mut bytes = head(1, 1, 8 + len as u32);
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.resize(bytes.len() + len, 9);
        bytes
    };
    let not_done = |mut chunk: Vec<u8>| {
        chunk[5] = 0;
        chunk
    };
    let hole =
        |offset: u64, len: u32| [head(2, 1, 12), offset.to_be_bytes().to_vec(), len.to_be_bytes().to_vec()].concat();
    for (what, reply) in [
        ("less than asked", data(8192, 100)),
        ("bytes before what was asked", data(4096, 4096)),
        ("bytes behind what was asked", data(8193, 4096)),
        ("another request's answer", head(0, 2, 0)),
        ("no magic", vec![0; 20]),
        ("an unknown type", head(9, 1, 0)),
        ("a hole too many", [not_done(data(8192, 4096)), hole(8192, 4096)].concat()),
        ("one half twice", [not_done(data(8192, 2048)), data(8192, 2048)].concat()),
        ("an empty hole", not_done(hole(8192, 0))),
        ("nothing, and not done", not_done(head(0, 1, 0))),
    ] {
        let error = answers(reply);
        assert!(matches!(error.problem, Problem::Corrupt(_)), "{what}: {error:?}");
    }
}

#[test]
fn pieces_may_come_in_any_order() {
    let piece = |offset: u64, byte: u8, done: u8| {
        let mut bytes = head(1, 1, 8 + 1024);
        bytes[5] = done;
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.resize(bytes.len() + 1024, byte);
        bytes
    };
    let reply = [piece(9216, 2, 0), piece(8192, 1, 0), piece(11264, 4, 0), piece(10240, 3, 1)].concat();
    let read = answered(reply).unwrap();
    assert!(read.chunks(1024).zip(1..).all(|(part, byte)| part.iter().all(|told| *told == byte)));
}

#[test]
fn an_error_keeps_the_servers_words() {
    let mut reply = head((1 << 15) + 1, 1, 6 + 4);
    reply.extend_from_slice(&22u32.to_be_bytes());
    reply.extend_from_slice(&4u16.to_be_bytes());
    reply.extend_from_slice(b"nope");
    let error = answers(reply);
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("nope"), "{error:?}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        let mut all = if magic { 0x668e_33efu32.to_be_bytes().to_vec() } else { Vec::new() };
        all.extend_from_slice(&bytes);
        let _ = option_reply(&mut Cursor::new(&all));
        if let Ok(Chunk { content: Content::Extents { extents, .. }, .. }) = chunk(&mut Cursor::new(&all)) {
            prop_assert!(extents.len() * 8 <= all.len());
        }
    }
}
