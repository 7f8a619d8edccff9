//! libvirt's client library on one side, the agent's relay on the other: a private unix socket joins them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvm_clone_core::wire::packed::{PIECE, Packer, Unpacker};
use kvm_clone_core::{Error, Result};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::control::Control;
use super::private::private_dir;

/// A socket at which the host's libvirt answers, for one connection.
pub(crate) struct Relay {
    dir: Arc<TempDir>,
    /// Ends it with the last use of this connection to libvirt.
    _end: DropGuard,
}

/// So long the library may take to close its connection, once nobody uses it. A call that hangs must not keep the agent, and its
/// locks, for longer.
const CLOSING: Duration = Duration::from_secs(5);

impl Relay {
    /// Opens libvirt on the host and listens for the one who will talk to it.
    pub(crate) async fn open(control: &Control) -> Result<Self> {
        let (stream, mut arriving) = control.open_relay().await?;
        let dir = private_dir()?;
        let listener = UnixListener::bind(dir.path().join("libvirt.sock"))
            .map_err(|error| Error::internal(format!("listening for libvirt: {error}")))?;
        let (control, dir) = (control.clone(), Arc::new(dir));
        let (alive, end) = (Arc::clone(&dir), CancellationToken::new());
        let ended = end.clone();
        tokio::spawn(async move {
            let _alive = alive;
            let passing = async {
                if let Ok((socket, _)) = listener.accept().await {
                    drop(listener);
                    pass(&control, stream, socket, &mut arriving).await;
                }
            };
            let hangs = async {
                ended.cancelled().await;
                tokio::time::sleep(CLOSING).await;
            };
            tokio::select! {
                () = passing => {}
                () = hangs => {}
            }
            control.close_relay(stream).await;
        });
        Ok(Self { dir, _end: end.drop_guard() })
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("libvirt.sock")
    }
}

async fn pass(control: &Control, stream: u16, socket: UnixStream, arriving: &mut tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let (mut reading, mut writing) = socket.into_split();
    let up = async {
        let mut buffer = vec![0; PIECE];
        let mut packer = Packer::default();
        while let Ok(count @ 1..) = reading.read(&mut buffer).await {
            let Ok(packed) = packer.pack(&buffer[..count]) else { break };
            if control.relay(stream, packed).await.is_err() {
                break;
            }
        }
    };
    let down = async {
        let mut unpacker = Unpacker::default();
        while let Some(packed) = arriving.recv().await {
            let bytes = match unpacker.unpack(&packed) {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::warn!("{error}");
                    break;
                }
            };
            if writing.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    // Either side's end is the end of both.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
