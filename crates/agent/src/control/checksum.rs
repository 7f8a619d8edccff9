//! The checksum of a whole disk, read in order as a guest would read it.

use kvm_clone_core::Result;
use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::wire::lane::ImageSpec;
use md5::Md5;
use sha2::{Digest, Sha256};

use super::progress::Progress;
use crate::buffer::Buffer;
use crate::lane::open_reader;

/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// Reads the disk from its beginning to its end; holes are zeroes that need no reading. Ends early where programs are told
/// to stop.
pub(super) fn compute(image: &ImageSpec, algorithm: Algorithm, progress: &Progress) -> Result<String> {
    let mut state = State::new(algorithm);
    let device = open_reader(image)?;
    let (zeroes, mut buffer) = (vec![0; PIECE], Buffer::zeroed(PIECE));
    let mut offset = 0;
    while offset < device.size() {
        progress.go_on("the checksum")?;
        let len = (PIECE as u64).min(device.size() - offset);
        let piece = usize::try_from(len).unwrap_or(PIECE);
        let extents = device.extents(offset, len)?;
        if kvm_clone_core::blocks::extents::data_len(&extents) == 0 {
            state.update(&zeroes[..piece]);
        } else {
            device.read_at(&mut buffer[..piece], offset)?;
            state.update(&buffer[..piece]);
            device.drop_cache(offset, len);
        }
        progress.add(len);
        offset += len;
    }
    Ok(state.finish())
}

enum State {
    Blake3(Box<blake3::Hasher>),
    Sha256(Sha256),
    Md5(Md5),
}

impl State {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Blake3 => Self::Blake3(Box::default()),
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Md5 => Self::Md5(Md5::new()),
        }
    }

    fn update(&mut self, data: &[u8]) {
        match self {
            Self::Blake3(state) => drop(state.update(data)),
            Self::Sha256(state) => state.update(data),
            Self::Md5(state) => state.update(data),
        }
    }

    fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Blake3(state) => state.finalize().to_hex().to_string(),
            Self::Sha256(state) => hex(&state.finalize()),
            Self::Md5(state) => hex(&state.finalize()),
        }
    }
}
