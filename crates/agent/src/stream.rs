//! Frames over blocking readers and writers.

use std::io::{self, ErrorKind, IoSlice, Read, Write};

use kvm_clone_core::wire::frame::{Decoder, Encoder, HEADER_LEN, Header, Kind};
use kvm_clone_core::wire::{MAGIC, MagicScanner};
use kvm_clone_core::{Error, Result};
use serde::Serialize;

/// Reads frames from one direction of a stream.
pub(crate) struct FrameReader<R> {
    input: R,
    decoder: Decoder,
    body: Vec<u8>,
}

impl<R: Read> FrameReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, decoder: Decoder::default(), body: Vec::new() }
    }

    /// Skips what a shell may have printed, up to and with the magic.
    pub(crate) fn expect_magic(&mut self) -> Result<()> {
        let mut scanner = MagicScanner::default();
        let mut byte = [0];
        loop {
            self.input.read_exact(&mut byte).map_err(|error| ended(&error))?;
            if scanner.push(byte[0])? {
                return Ok(());
            }
        }
    }

    /// The next header and its verified body; none at a clean end between two frames. The payload follows by
    /// [`Self::payload`].
    pub(crate) fn next(&mut self) -> Result<Option<(Header, &[u8])>> {
        let mut bytes = [0; HEADER_LEN];
        if !self.fill_or_end(&mut bytes)? {
            return Ok(None);
        }
        let header = self.decoder.header(&bytes)?;
        self.body.resize(header.body_len as usize, 0);
        self.input.read_exact(&mut self.body).map_err(|error| ended(&error))?;
        header.verify(&self.body)?;
        Ok(Some((header, &self.body)))
    }

    /// Fills `buffer` with the payload of the frame just read; its length must be the header's.
    pub(crate) fn payload(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.input.read_exact(buffer).map_err(|error| ended(&error))
    }

    fn fill_or_end(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(ended(&ErrorKind::UnexpectedEof.into())),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ended(&error)),
            }
        }
        Ok(true)
    }
}

/// Writes frames to one direction of a stream.
pub(crate) struct FrameWriter<W> {
    output: W,
    encoder: Encoder,
}

impl<W: Write> FrameWriter<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output, encoder: Encoder::default() }
    }

    pub(crate) fn magic(&mut self) -> Result<()> {
        self.output.write_all(&MAGIC).and_then(|()| self.output.flush()).map_err(|error| ended(&error))
    }

    /// Writes one frame; returns its length in bytes.
    pub(crate) fn send<M: Serialize>(&mut self, kind: Kind, message: &M, payload: &[u8]) -> Result<u64> {
        let head = self.encoder.encode(kind, message, payload.len())?;
        write_both(&mut self.output, &head, payload).map_err(|error| ended(&error))?;
        Ok((head.len() + payload.len()) as u64)
    }
}

/// Writes two buffers in as few calls as the stream allows.
fn write_both(output: &mut impl Write, head: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < head.len() {
        match output.write_vectored(&[IoSlice::new(&head[written..]), IoSlice::new(payload)]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    output.write_all(&payload[written - head.len()..])?;
    output.flush()
}

fn ended(error: &io::Error) -> Error {
    let why = match error.kind() {
        ErrorKind::UnexpectedEof => "it ended in the middle of a frame".to_owned(),
        ErrorKind::BrokenPipe => "the other side closed it".to_owned(),
        _ => error.to_string(),
    };
    Error::transfer(format!("the stream between the agents broke: {why}"))
        .help("The connection or an agent died; run the command again")
        .transient()
}
