//! Frames over asynchronous streams: the controller's side of `core::wire::frame`.

use kvm_clone_core::wire::MagicScanner;
use kvm_clone_core::wire::frame::{Decoder, Encoder, HEADER_LEN, Header, Kind};
use kvm_clone_core::{Error, Result};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::transport::{Reading, Writing};

/// Reads frames.
pub(crate) struct FrameReader {
    input: tokio::io::BufReader<Reading>,
    decoder: Decoder,
}

impl FrameReader {
    pub(crate) fn new(input: Reading) -> Self {
        Self { input: tokio::io::BufReader::with_capacity(64 * 1024, input), decoder: Decoder::default() }
    }

    /// Skips what a shell may have printed. False: the stream ended before the agent spoke.
    pub(crate) async fn expect_magic(&mut self) -> Result<bool> {
        let mut scanner = MagicScanner::default();
        loop {
            let Ok(byte) = self.input.read_u8().await else { return Ok(false) };
            if scanner.push(byte)? {
                return Ok(true);
            }
        }
    }

    /// The next frame with its body and payload; none at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<(Header, Vec<u8>, Vec<u8>)>> {
        let mut bytes = [0; HEADER_LEN];
        if self.input.read_exact(&mut bytes).await.is_err() {
            return Ok(None);
        }
        let header = self.decoder.header(&bytes)?;
        let mut body = vec![0; header.body_len as usize];
        let mut payload = vec![0; header.payload_len as usize];
        let ended = |_| Error::connection("the agent's stream ended in the middle of a frame").transient();
        self.input.read_exact(&mut body).await.map_err(ended)?;
        header.verify(&body)?;
        self.input.read_exact(&mut payload).await.map_err(ended)?;
        Ok(Some((header, body, payload)))
    }
}

/// Writes frames.
pub(crate) struct FrameWriter {
    output: Writing,
    encoder: Encoder,
}

impl FrameWriter {
    pub(crate) fn new(output: Writing) -> Self {
        Self { output, encoder: Encoder::default() }
    }

    pub(crate) async fn magic(&mut self) -> Result<()> {
        let sent = async {
            self.output.write_all(&kvm_clone_core::wire::MAGIC).await?;
            self.output.flush().await
        };
        sent.await.map_err(lost)
    }

    pub(crate) async fn send<M: Serialize>(&mut self, kind: Kind, message: &M, payload: &[u8]) -> Result<()> {
        let mut frame = self.encoder.encode(kind, message, payload.len())?;
        frame.extend_from_slice(payload);
        let sent = async {
            self.output.write_all(&frame).await?;
            self.output.flush().await
        };
        sent.await.map_err(lost)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is the argument of map_err")]
fn lost(error: std::io::Error) -> Error {
    Error::connection(format!("the agent's stream broke: {error}")).transient()
}
