//! A login without waits for nothing.
//!
//! Nagle's algorithm holds a small packet back until the one before it is acknowledged (RFC 896), and whoever receives that one
//! waits up to 40 ms before acknowledging it, in case there is something to send along (RFC 1122, 4.2.3.2). OpenSSH turns the
//! algorithm off, but at both ends only once a session runs (`ssh_packet_set_interactive`). Until then it meets itself twice:
//! our request for a login waits behind our `SSH_MSG_NEWKEYS`, and the server's consent to the first session behind its list of
//! host keys. That is 80 of 200 ms in a local network.
//!
//! The program that logs in is a child of ours, hence Linux gives us its socket (`pidfd_getfd`, since 5.6). Nothing is read
//! from it or written to it, and where it cannot be had (a proxy's pipe, an old kernel, a strict `ptrace_scope`) the login takes
//! its time as ever.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::getpeername;
use rustix::net::sockopt::{set_tcp_nodelay, set_tcp_quickack};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// How often the socket is looked after.
const TICK: Duration = Duration::from_millis(2);

/// The connection of a process that logs in. It has to go when the first session runs: held here, the connection would outlive
/// the process.
#[derive(Debug)]
pub(super) struct Undelayed {
    pid: Option<Pid>,
    socket: Option<OwnedFd>,
}

impl Undelayed {
    /// Of this process; of none, nothing is done.
    pub(super) fn of(pid: Option<u32>) -> Self {
        let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        Self { pid, socket: None }
    }

    /// Waits for something that goes over the connection, without waits for nothing.
    pub(super) async fn during<T>(&mut self, awaited: impl Future<Output = T>) -> T {
        let mut awaited = std::pin::pin!(awaited);
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                outcome = &mut awaited => {
                    self.tend();
                    return outcome;
                }
                _ = ticks.tick() => self.tend(),
            }
        }
    }

    /// Has what came acknowledged at once, and what goes go at once. Again and again: Linux falls back into waiting.
    fn tend(&mut self) {
        if self.socket.is_none() {
            self.socket = self.pid.and_then(prompt_socket);
        }
        if let Some(socket) = &self.socket {
            let _ = set_tcp_quickack(socket, true);
        }
    }
}

/// The TCP connection of a process, which from now on sends at once; none as long as there is none. `/proc` answers from memory, so
/// no thread waits for it.
fn prompt_socket(pid: Pid) -> Option<OwnedFd> {
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let files = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).ok()?;
    let numbers = files.flatten().filter_map(|file| file.file_name().to_str()?.parse().ok());
    let mut files = numbers.filter_map(|number| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok());
    // One that is not connected yet may be given up for another address of the host.
    files.find(|file| getpeername(file).is_ok() && set_tcp_nodelay(file, true).is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command, Stdio};

    use rustix::net::sockopt::tcp_nodelay;

    use super::*;

    /// A process that has nothing but this file open.
    fn holder(file: impl Into<OwnedFd>) -> Child {
        Command::new("sleep").arg("60").stdin(Stdio::from(file.into())).stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn the_connection_of_a_child_sends_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut child = holder(ours.try_clone().unwrap());
        assert!(!tcp_nodelay(&ours).unwrap());
        Undelayed::of(Some(child.id())).tend();
        assert!(tcp_nodelay(&ours).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_is_no_connection_is_left_alone() {
        let (ours, _other) = UnixStream::pair().unwrap();
        let mut child = holder(ours);
        let mut tended = Undelayed::of(Some(child.id()));
        tended.tend();
        assert!(tended.socket.is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        tended.tend();
        assert!(tended.socket.is_none(), "it is gone");
        Undelayed::of(None).tend();
    }
}
