//! A byte stream sealed by the Noise protocol (<https://noiseprotocol.org/noise.html>), pattern `NNpsk0`: both ends prove
//! that they know one key, agree on fresh ones, and from then on nothing can be read, changed, left out, repeated or
//! reordered on the way without the reader's notice. The crate `snow` speaks it, with the ciphers of `ring`.
//!
//! On the wire each message is its length, two bytes in network order, and so many bytes of ciphertext (section 13 of the
//! specification leaves the framing to the application).

use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::Arc;

use kvm_clone_core::wire::direct::{Cipher, Seal};
use snow::{Builder, HandshakeState, StatelessTransportState};

/// The longest Noise message (section 3), its tag included.
const MESSAGE: usize = 65_535;
/// Bytes that a message is longer than what it holds (section 5.1).
const TAG: usize = 16;
/// Bytes of the message's length.
const LENGTH: usize = 2;
/// Messages written to the network at once.
const BATCH: usize = 4;
/// Bytes read from the network at once; no message is longer.
const READ_AHEAD: usize = BATCH * (MESSAGE + LENGTH);
/// Both ends must mean the same by what follows.
const PROLOGUE: &[u8] = b"kvm-clone lane 1";

/// What both ends agreed on. Each direction has a key of its own, and counts its messages by itself, so that one thread
/// can write while another one reads. The counts are no part of the messages: one that is left out, repeated or moved is
/// opened under another number than it was sealed under, which fails.
pub(crate) type Noise = Arc<StatelessTransportState>;

/// Proves to the other end that we know the key, and has it prove the same.
pub(crate) fn greet(stream: &mut (impl Read + Write), seal: &Seal) -> io::Result<Noise> {
    let mut noise = builder(seal)?.build_initiator().map_err(broken)?;
    say(stream, &mut noise)?;
    hear(stream, &mut noise)?;
    noise.into_stateless_transport_mode().map(Arc::new).map_err(broken)
}

/// Has the other end prove that it knows the key, and proves the same to it.
pub(crate) fn admit(stream: &mut (impl Read + Write), seal: &Seal) -> io::Result<Noise> {
    let mut noise = builder(seal)?.build_responder().map_err(broken)?;
    hear(stream, &mut noise)?;
    say(stream, &mut noise)?;
    noise.into_stateless_transport_mode().map(Arc::new).map_err(broken)
}

/// The end that sends in one direction. There is one for each end of a connection. What was written is on its way only after a flush.
pub(crate) struct SealedWriter<S> {
    stream: S,
    noise: Noise,
    /// The number of the next message.
    next: u64,
    sealed: Vec<u8>,
    filled: usize,
}

impl<S> SealedWriter<S> {
    /// Seals what is written to `stream`, over which the ends agreed.
    pub(crate) fn new(stream: S, noise: Noise) -> Self {
        Self { stream, noise, next: 0, sealed: vec![0; READ_AHEAD], filled: 0 }
    }
}

impl<S: Write> SealedWriter<S> {
    fn send(&mut self) -> io::Result<()> {
        let filled = std::mem::take(&mut self.filled);
        self.stream.write_all(&self.sealed[..filled])
    }
}

impl<S: Write> Write for SealedWriter<S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(MESSAGE - TAG);
        if taken == 0 {
            return Ok(0);
        }
        if self.sealed.len() - self.filled < LENGTH + taken + TAG {
            self.send()?;
        }
        let (length, message) = self.sealed[self.filled..].split_at_mut(LENGTH);
        let written = self.noise.write_message(self.next, &data[..taken], message).map_err(broken)?;
        self.next += 1;
        length.copy_from_slice(&prefix(written)?);
        self.filled += LENGTH + written;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()?;
        self.stream.flush()
    }
}

/// The end that receives in one direction. There is one for each end of a connection.
pub(crate) struct SealedReader<S> {
    stream: S,
    noise: Noise,
    /// The number of the next message.
    next: u64,
    sealed: Vec<u8>,
    /// Where in `sealed` lies what has come and was not opened yet.
    waiting: Range<usize>,
    plain: Vec<u8>,
    /// Where in `plain` lies what was not taken yet.
    left: Range<usize>,
}

impl<S: Read> SealedReader<S> {
    /// Opens what comes from `stream`, over which the ends agreed.
    pub(crate) fn new(stream: S, noise: Noise) -> Self {
        Self { stream, noise, next: 0, sealed: vec![0; READ_AHEAD], waiting: 0..0, plain: vec![0; MESSAGE], left: 0..0 }
    }

    /// Where the next message lies in `sealed`, whole; none at the end of the stream between two messages.
    fn message(&mut self) -> io::Result<Option<Range<usize>>> {
        if !self.wait_for(LENGTH)? {
            return Ok(None);
        }
        let start = self.waiting.start;
        let length = usize::from(u16::from_be_bytes([self.sealed[start], self.sealed[start + 1]]));
        self.wait_for(LENGTH + length)?;
        let start = self.waiting.start + LENGTH;
        self.waiting.start = start + length;
        Ok(Some(start..start + length))
    }

    /// Reads until so many bytes wait; false at the end of the stream where none do.
    fn wait_for(&mut self, count: usize) -> io::Result<bool> {
        while self.waiting.len() < count {
            if self.sealed.len() - self.waiting.start < count || self.waiting.is_empty() {
                self.sealed.copy_within(self.waiting.clone(), 0);
                self.waiting = 0..self.waiting.len();
            }
            match self.stream.read(&mut self.sealed[self.waiting.end..]) {
                Ok(0) if self.waiting.is_empty() => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.waiting.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl<S: Read> Read for SealedReader<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left.is_empty() {
            let Some(message) = self.message()? else { return Ok(0) };
            let (sealed, number) = (&self.sealed[message], self.next);
            self.next += 1;
            // What has room is opened where it is wanted.
            if buffer.len() >= sealed.len() {
                return self.noise.read_message(number, sealed, buffer).map_err(broken);
            }
            self.left = 0..self.noise.read_message(number, sealed, &mut self.plain).map_err(broken)?;
        }
        let taken = buffer.len().min(self.left.len());
        let from = self.left.start;
        buffer[..taken].copy_from_slice(&self.plain[from..from + taken]);
        self.left.start += taken;
        Ok(taken)
    }
}

fn builder(seal: &Seal) -> io::Result<Builder<'_>> {
    let name = match seal.cipher {
        Cipher::AesGcm => "Noise_NNpsk0_25519_AESGCM_SHA256",
        Cipher::ChaChaPoly => "Noise_NNpsk0_25519_ChaChaPoly_SHA256",
    };
    let pattern = name.parse().map_err(broken)?;
    Builder::new(pattern).prologue(PROLOGUE).and_then(|builder| builder.psk(0, seal.key.bytes())).map_err(broken)
}

fn say(stream: &mut impl Write, noise: &mut HandshakeState) -> io::Result<()> {
    let mut message = [0; LENGTH + 256];
    let written = noise.write_message(&[], &mut message[LENGTH..]).map_err(broken)?;
    message[..LENGTH].copy_from_slice(&prefix(written)?);
    stream.write_all(&message[..LENGTH + written])?;
    stream.flush()
}

fn hear(stream: &mut impl Read, noise: &mut HandshakeState) -> io::Result<()> {
    let (mut length, mut message) = ([0; LENGTH], [0; 256]);
    stream.read_exact(&mut length)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > message.len() {
        return Err(broken("no greeting"));
    }
    stream.read_exact(&mut message[..length])?;
    noise.read_message(&message[..length], &mut []).map(drop).map_err(broken)
}

fn prefix(length: usize) -> io::Result<[u8; LENGTH]> {
    u16::try_from(length).map(u16::to_be_bytes).map_err(broken)
}

fn broken(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the sealed stream is broken: {}", error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use kvm_clone_core::wire::direct::LaneKey;

    use super::*;

    fn seal(byte: u8, cipher: Cipher) -> Seal {
        Seal { key: LaneKey::new([byte; 32]), cipher }
    }

    type End = (SealedWriter<UnixStream>, SealedReader<UnixStream>);

    fn end(stream: UnixStream, noise: &Noise) -> End {
        let reading = stream.try_clone().unwrap();
        (SealedWriter::new(stream, Arc::clone(noise)), SealedReader::new(reading, Arc::clone(noise)))
    }

    /// Who greets, and who lets in.
    fn pair(greeter: Seal, host: Seal) -> (io::Result<End>, io::Result<End>) {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let accepting = thread::spawn(move || admit(&mut far, &host).map(|noise| end(far, &noise)));
        let connected = greet(&mut near, &greeter).map(|noise| end(near, &noise));
        (connected, accepting.join().unwrap())
    }

    /// What arrives of a good stream of which the bytes on the wire were changed, in the way there or in the way back.
    fn received(back: bool, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<Vec<u8>> {
        let (greeter, host) = pair(seal(1, Cipher::AesGcm), seal(1, Cipher::AesGcm));
        let (greeter, host) = (greeter?, host?);
        let (from, to) = if back { (host.0.noise, greeter.1.noise) } else { (greeter.0.noise, host.1.noise) };
        let mut wire = SealedWriter::new(Vec::new(), from);
        wire.write_all(&content(200_000)).unwrap();
        wire.flush().unwrap();
        change(&mut wire.stream);
        let mut all = Vec::new();
        SealedReader::new(&wire.stream[..], to).read_to_end(&mut all).map(|_| all)
    }

    fn content(length: usize) -> Vec<u8> {
        (0..=250).cycle().take(length).collect()
    }

    #[test]
    fn what_is_sent_arrives_in_pieces_of_any_size() {
        for cipher in [Cipher::AesGcm, Cipher::ChaChaPoly] {
            let (greeter, host) = pair(seal(7, cipher), seal(7, cipher));
            let (mut writer, mut reader) = (greeter.unwrap().0, host.unwrap().1);
            let sizes = [1, 2, 100, 65_518, 65_519, 65_520, 70_000, 300_000, 1_000_000];
            let sending = thread::spawn(move || {
                for size in sizes {
                    writer.write_all(&content(size)).unwrap();
                    writer.flush().unwrap();
                }
            });
            for size in sizes {
                let mut arrived = vec![0; size];
                let (head, tail) = arrived.split_at_mut(size / 3);
                reader.read_exact(head).unwrap();
                reader.read_exact(tail).unwrap();
                assert!(arrived == content(size), "{size} bytes");
            }
            sending.join().unwrap();
            assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0, "the end");
        }
    }

    #[test]
    fn both_ends_write_at_the_same_time() {
        let (greeter, host) = pair(seal(7, Cipher::AesGcm), seal(7, Cipher::AesGcm));
        // More than the socket holds: who did not read while it writes would wait for ever.
        let length = 8 << 20;
        let ends = [greeter.unwrap(), host.unwrap()].map(|(mut writer, mut reader)| {
            let writing = thread::spawn(move || writer.write_all(&content(length)).and_then(|()| writer.flush()));
            let reading = thread::spawn(move || {
                let mut arrived = vec![0; length];
                reader.read_exact(&mut arrived).map(|()| arrived == content(length))
            });
            (writing, reading)
        });
        for (writing, reading) in ends {
            writing.join().unwrap().unwrap();
            assert!(reading.join().unwrap().unwrap());
        }
    }

    #[test]
    fn what_one_end_said_is_not_taken_from_the_other() {
        let (greeter, host) = pair(seal(7, Cipher::AesGcm), seal(7, Cipher::AesGcm));
        let (mut own, host) = (SealedWriter::new(Vec::new(), greeter.unwrap().0.noise), host.unwrap());
        own.write_all(b"digests").and_then(|()| own.flush()).unwrap();
        let mut told = [0; 7];
        SealedReader::new(&own.stream[..], host.1.noise).read_exact(&mut told).unwrap();
        assert_eq!(&told, b"digests");
        assert!(SealedReader::new(&own.stream[..], own.noise).read_exact(&mut told).is_err(), "sent back");
    }

    #[test]
    fn another_key_or_cipher_is_not_let_in() {
        let good = seal(1, Cipher::AesGcm);
        for other in [seal(2, Cipher::AesGcm), seal(1, Cipher::ChaChaPoly)] {
            let (writer, reader) = pair(other, good.clone());
            assert!(writer.is_err() && reader.is_err());
        }
    }

    #[test]
    fn changes_on_the_way_are_noticed() {
        for back in [false, true] {
            let received = |change: fn(&mut Vec<u8>)| received(back, change);
            assert_eq!(received(|_| {}).unwrap(), content(200_000));
            assert!(received(|wire| wire[100] ^= 1).is_err());
            assert!(received(|wire| wire[0] ^= 1).is_err());
            assert!(received(|wire| drop(wire.drain(..MESSAGE + LENGTH))).is_err(), "left out");
            assert!(received(|wire| wire.extend_from_within(..MESSAGE + LENGTH)).is_err(), "repeated");
            assert!(received(|wire| wire[..2 * (MESSAGE + LENGTH)].rotate_left(MESSAGE + LENGTH)).is_err(), "swapped");
            assert!(received(|wire| wire.truncate(wire.len() - 1)).is_err(), "cut in a message");
            // An end between two messages is found by who knows what must come last.
            assert!(received(|wire| wire.truncate(MESSAGE + LENGTH)).unwrap().len() < 200_000);
        }
    }
}
