//! The stream of a lane: what SSH gave us as stdin and stdout, or a TCP connection to the other end.
//!
//! The target's agent listens only between the controller's order and the first comer who knows the key, on the address
//! at which SSH reached this host. Strangers are sent away after a moment, and a lane that cannot be joined directly goes
//! over SSH as if nothing had been tried.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use kvm_clone_core::wire::direct::{Meeting, Route, Seal};
use kvm_clone_core::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::sealed::{self, Noise, SealedReader, SealedWriter};

/// Where an end of a lane writes: the source segments, the target digests.
pub(super) type Output = Box<dyn Write + Send>;
/// Where it reads what the other end wrote.
pub(super) type Input = Box<dyn Read + Send>;

/// An end of a direct lane.
type SealedEnd = (SealedWriter<TcpStream>, SealedReader<TcpStream>);

/// How long the way to the other end may take: a firewall that drops packets must not hold a copy up.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// How long a comer may take to prove that it knows the key.
const PROOF_DEADLINE: Duration = Duration::from_secs(2);
/// How long the other end may take to come.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(20);
/// How often it is looked whether anybody waits for the other end still.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// Comers that are looked at: an open port is found by scanners.
const COMERS: usize = 64;
/// Bytes read from SSH at once.
const READ_BUFFER: usize = 256 << 10;

/// Both ends of the SSH connection through which this agent was started.
#[derive(Debug, Default)]
pub(super) struct SshEnds {
    client: Option<IpAddr>,
    server: Option<IpAddr>,
}

impl SshEnds {
    /// Reads `SSH_CONNECTION`: client address, its port, server address, its port (ssh(1)). Addresses with a scope lead
    /// nowhere from another host, and are none.
    pub(super) fn parse(connection: &str) -> Self {
        let mut words = connection.split_whitespace();
        let mut next = || words.next().and_then(|word| word.parse().ok());
        let client = next();
        let _port: Option<IpAddr> = next();
        Self { client, server: next() }
    }
}

/// The direct way, as far as it was opened.
#[derive(Default)]
pub(super) struct Direct {
    connected: Option<SealedEnd>,
    coming: Option<Receiver<SealedEnd>>,
    /// Set when nobody waits for the other end any more.
    closed: Arc<AtomicBool>,
}

impl Direct {
    /// Waits for the other end in the background; says where, or why not.
    pub(super) fn listen(&mut self, ssh: &SshEnds, seal: Seal) -> std::result::Result<Meeting, String> {
        let failed = |error| format!("the target cannot open a port: {error}");
        let listener = bind(ssh.server).map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        listener.set_nonblocking(true).map_err(failed)?;
        let (give, taken) = mpsc::sync_channel(1);
        let closed = Arc::clone(&self.closed);
        std::thread::spawn(move || {
            // The listener goes there and is closed before the other end is handed on: no lane runs beside an open port.
            if let Some(stream) = await_other_end(listener, &seal, &closed) {
                let _ = give.send(stream);
            }
        });
        self.coming = Some(taken);
        Ok(Meeting { addresses: ssh.server.iter().map(ToString::to_string).collect(), port })
    }

    /// Reaches the other end, or says why not.
    pub(super) fn connect(&mut self, ssh: &SshEnds, at: &Meeting, seal: &Seal) -> std::result::Result<(), String> {
        let named = at.addresses.iter().filter_map(|address| address.parse().ok());
        let targets: Vec<IpAddr> =
            if at.addresses.is_empty() { ssh.client.into_iter().collect() } else { named.collect() };
        let mut why = "no address of the target is known".to_owned();
        for address in targets {
            match reach(SocketAddr::new(address, at.port), seal) {
                Ok(stream) => {
                    self.connected = Some(stream);
                    return Ok(());
                }
                Err(error) => why = format!("{address} port {}: {error}", at.port),
            }
        }
        Err(why)
    }

    /// This end of the lane, both ways. A target whose other end is still on its way waits for it for a moment.
    pub(super) fn streams(self, route: Route) -> Result<(Output, Input)> {
        if route == Route::Relay {
            self.closed.store(true, Ordering::Relaxed);
            // Not `Stdout`, which looks for the ends of lines in what it writes.
            let (output, input) = (duplicate(io::stdout().as_fd())?, duplicate(io::stdin().as_fd())?);
            return Ok((Box::new(output), Box::new(BufReader::with_capacity(READ_BUFFER, input))));
        }
        let came = |coming: Receiver<SealedEnd>| coming.recv_timeout(PROOF_DEADLINE).ok();
        let (output, input) = self.connected.or_else(|| self.coming.and_then(came)).ok_or_else(not_joined)?;
        Ok((Box::new(output), Box::new(input)))
    }
}

fn not_joined() -> Error {
    Error::transfer("the direct lane was not joined").transient()
}

fn duplicate(stream: std::os::fd::BorrowedFd<'_>) -> Result<File> {
    let owned = stream.try_clone_to_owned().map_err(|error| Error::internal(format!("duplicating a stream: {error}")));
    owned.map(File::from)
}

/// At the address by which this host was reached; where none is known, at all of them.
fn bind(address: Option<IpAddr>) -> io::Result<TcpListener> {
    match address {
        Some(address) => TcpListener::bind((address, 0)),
        None => {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))
        }
    }
}

fn reach(address: SocketAddr, seal: &Seal) -> io::Result<SealedEnd> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_DEADLINE)?;
    let mut proving = Proving::begin(stream)?;
    let noise = sealed::greet(&mut proving, seal)?;
    sealed_end(proving.end()?, noise)
}

fn sealed_end(stream: TcpStream, noise: Noise) -> io::Result<SealedEnd> {
    let reader = SealedReader::new(stream.try_clone()?, Arc::clone(&noise));
    Ok((SealedWriter::new(stream, noise), reader))
}

/// The first comer who knows the key. The port closes with it, when nobody waits any more, or after a while.
#[allow(clippy::needless_pass_by_value, reason = "the port is closed when this returns")]
fn await_other_end(listener: TcpListener, seal: &Seal, closed: &AtomicBool) -> Option<SealedEnd> {
    let began = Instant::now();
    let mut comers = 0;
    while began.elapsed() < ACCEPT_DEADLINE && comers < COMERS && !closed.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                comers += 1;
                if let Ok(joined) = admit(stream, seal) {
                    return Some(joined);
                }
            }
            // Until somebody comes, or it is to be looked whether anybody waits still.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&LOOK_EVERY));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    None
}

fn admit(stream: TcpStream, seal: &Seal) -> io::Result<SealedEnd> {
    stream.set_nonblocking(false)?;
    let mut proving = Proving::begin(stream)?;
    let noise = sealed::admit(&mut proving, seal)?;
    sealed_end(proving.end()?, noise)
}

/// A connection whose other end is not proven yet: however slowly it talks, it may not hold us up for longer than
/// [`PROOF_DEADLINE`] in all. Later the controller watches over progress.
struct Proving {
    stream: TcpStream,
    until: Instant,
}

impl Proving {
    fn begin(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, until: Instant::now() + PROOF_DEADLINE })
    }

    fn end(self) -> io::Result<TcpStream> {
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)?;
        Ok(self.stream)
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Proving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Proving {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kvm_clone_core::wire::direct::{Cipher, LaneKey};

    use super::*;

    fn seal(byte: u8) -> Seal {
        Seal { key: LaneKey::new([byte; 32]), cipher: Cipher::AesGcm }
    }

    fn listening(direct: &mut Direct) -> Meeting {
        let at = direct.listen(&SshEnds::parse("192.0.2.9 50000 127.0.0.1 22"), seal(1)).unwrap();
        assert_eq!(at.addresses, ["127.0.0.1"]);
        at
    }

    #[test]
    fn strangers_do_not_keep_the_other_end_out() {
        let (mut target, mut source) = (Direct::default(), Direct::default());
        let at = listening(&mut target);
        let port = at.port;
        // One who talks something else, one who says nothing and leaves, one with another key.
        TcpStream::connect(("127.0.0.1", port)).unwrap().write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
        assert!(Direct::default().connect(&SshEnds::default(), &at, &seal(2)).is_err());
        source.connect(&SshEnds::default(), &at, &seal(1)).unwrap();
        let (near, far) = (source.streams(Route::Direct).unwrap(), target.streams(Route::Direct).unwrap());
        let ((mut blocks, mut answers), (mut digests, mut input)) = (near, far);
        blocks.write_all(b"blocks").and_then(|()| blocks.flush()).unwrap();
        digests.write_all(b"digests").and_then(|()| digests.flush()).unwrap();
        let mut answer = [0; 7];
        answers.read_exact(&mut answer).unwrap();
        drop((blocks, answers));
        let mut text = String::new();
        input.read_to_string(&mut text).unwrap();
        assert_eq!((&text[..], &answer), ("blocks", b"digests"));
        // The port is closed once the other end has come.
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    }

    #[test]
    fn without_an_address_the_host_is_sought_from_which_ssh_came() {
        let mut target = Direct::default();
        let at = Meeting { addresses: Vec::new(), ..listening(&mut target) };
        let ssh = SshEnds::parse("127.0.0.1 40000 192.0.2.1 22");
        Direct::default().connect(&ssh, &at, &seal(1)).unwrap();
        let why = Direct::default().connect(&SshEnds::parse(""), &at, &seal(1)).unwrap_err();
        assert!(why.contains("no address"), "{why}");
    }

    #[test]
    fn one_who_talks_too_slowly_is_sent_away() {
        let mut target = Direct::default();
        let at = listening(&mut target);
        let mut slow = TcpStream::connect(("127.0.0.1", at.port)).unwrap();
        let began = Instant::now();
        // Always a little before a deadline that began anew with every byte.
        while slow.write_all(&[0]).is_ok() && slow.peer_addr().is_ok() && began.elapsed() < PROOF_DEADLINE * 5 {
            std::thread::sleep(PROOF_DEADLINE / 4);
        }
        assert!(began.elapsed() < PROOF_DEADLINE * 4, "it held the port for {:?}", began.elapsed());
    }

    #[test]
    fn a_closed_way_says_why() {
        let mut target = Direct::default();
        let at = listening(&mut target);
        drop(target.streams(Route::Relay).unwrap());
        let closing = Instant::now();
        while TcpStream::connect(("127.0.0.1", at.port)).is_ok() {
            assert!(closing.elapsed() < PROOF_DEADLINE * 4, "the port stays open after the lane took the other way");
        }
        let why = Direct::default().connect(&SshEnds::default(), &at, &seal(1)).unwrap_err();
        assert!(why.contains("127.0.0.1 port"), "{why}");
        assert!(Direct::default().streams(Route::Direct).is_err());
        // An address that this host does not have.
        let why = Direct::default().listen(&SshEnds::parse("192.0.2.9 1 192.0.2.1 22"), seal(1)).unwrap_err();
        assert!(why.contains("cannot open a port"), "{why}");
    }
}
