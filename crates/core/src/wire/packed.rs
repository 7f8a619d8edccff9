//! libvirt's RPC, packed for the way: raw DEFLATE (RFC 1951), one run over a whole connection, ended at a byte after each
//! piece so that nothing of it waits for the next one.
//!
//! What libvirt tells is XML, the same definitions again and again. Packed it is a tenth, which is what a far host's `list`
//! and a sync that finds nothing to do consist of.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use crate::error::{Error, Result};

/// The longest piece, in bytes, before it is packed.
pub const PIECE: usize = 64 << 10;

/// The sending end of one direction of a relayed connection.
#[derive(Debug)]
pub struct Packer(Compress);

impl Default for Packer {
    fn default() -> Self {
        // Raw: the connection below finds damage. More effort gains little on so short runs.
        Self(Compress::new(Compression::fast(), false))
    }
}

impl Packer {
    /// Packs the next piece of at most [`PIECE`] bytes.
    ///
    /// # Errors
    /// None that a stream in order can have.
    pub fn pack(&mut self, piece: &[u8]) -> Result<Vec<u8>> {
        let mut packed = Vec::new();
        let begun = self.0.total_in();
        let (mut taken, mut was_full) = (0, false);
        loop {
            // Room for all that a piece can become.
            packed.reserve(2 * PIECE);
            let packing = self.0.compress_vec(&piece[taken..], &mut packed, FlushCompress::Sync);
            packing.map_err(|error| Error::internal(format!("packing what libvirt is told: {error}")))?;
            taken = usize::try_from(self.0.total_in() - begun).unwrap_or(usize::MAX);
            let is_full = packed.len() == packed.capacity();
            // Right after it ran out of room, a call hands out what waited and goes no further: another one has to follow.
            if taken >= piece.len() && !is_full && !was_full {
                packed.shrink_to_fit();
                return Ok(packed);
            }
            was_full = is_full;
        }
    }
}

/// The receiving end of one direction of a relayed connection.
#[derive(Debug)]
pub struct Unpacker(Decompress);

impl Default for Unpacker {
    fn default() -> Self {
        Self(Decompress::new(false))
    }
}

impl Unpacker {
    /// The next piece, of what [`Packer::pack`] made of it.
    ///
    /// # Errors
    /// It is no such thing, or longer than a piece may be.
    pub fn unpack(&mut self, packed: &[u8]) -> Result<Vec<u8>> {
        // One byte more than can be: who fills it has sent too much.
        let mut piece = Vec::with_capacity(PIECE + 1);
        let begun = self.0.total_in();
        let unpacking = self.0.decompress_vec(packed, &mut piece, FlushDecompress::Sync);
        let all = self.0.total_in() - begun == packed.len() as u64;
        match unpacking {
            Ok(_) if all && piece.len() <= PIECE => Ok(piece),
            _ => Err(Error::transfer("what libvirt said arrived broken")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_said_before_costs_next_to_nothing() {
        let definition = "<disk type='file' device='disk'><source file='/var/lib/images/a'/></disk>".repeat(20);
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
        for round in 0..3 {
            let packed = packer.pack(definition.as_bytes()).unwrap();
            assert!(packed.len() < if round == 0 { 200 } else { 50 }, "{} bytes", packed.len());
            assert_eq!(unpacker.unpack(&packed).unwrap(), definition.as_bytes());
        }
    }

    /// What cannot be packed, or hardly where only so many values are used.
    fn noise(seed: u64, len: usize, values: u8) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes.iter().map(|byte| byte % values.max(1)).collect()
    }

    #[test]
    fn what_can_hardly_be_packed_is_all_there_at_once() {
        for values in [64, 128, 200, 255] {
            let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
            for len in (57_000..=PIECE).step_by(61).chain([PIECE]) {
                let piece = noise(len as u64, len, values);
                assert_eq!(unpacker.unpack(&packer.pack(&piece).unwrap()).unwrap(), piece, "{len} of {values}");
            }
        }
    }

    #[test]
    fn a_piece_that_unpacks_to_more_than_one_is_refused() {
        let packed = Packer::default().pack(&vec![0; PIECE + 1]).unwrap();
        assert!(packed.len() < 1000);
        assert_eq!(Unpacker::default().unpack(&packed).unwrap_err().code.number(), 1006);
    }

    #[test]
    fn what_is_not_packed_is_refused() {
        assert!(Unpacker::default().unpack(&[0xff; 40]).is_err());
    }

    proptest! {
        #[test]
        fn pieces_come_back_whole_and_at_once(
            pieces in prop::collection::vec((any::<u8>(), any::<u64>(), 0..=PIECE), 1..6),
        ) {
            let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
            for (byte, seed, len) in pieces {
                // Half of them can be packed, half cannot.
                let piece = if byte % 2 == 0 { vec![byte; len] } else { noise(seed, len, byte) };
                let packed = packer.pack(&piece).unwrap();
                prop_assert_eq!(unpacker.unpack(&packed).unwrap(), piece);
            }
        }
    }
}
