//! How controller, control agents and lane agents talk. `docs/protocol.md` tells it from both sides.
//!
//! Two kinds of byte stream use the same [`frame`]s:
//! - the *control* stream between controller and control agent (the agent's stdin and stdout) carries [`control`]
//!   messages and the [`packed`] bytes of libvirt's RPC;
//! - a *lane* between a source lane agent and a target lane agent carries [`lane`] messages and blocks. What a lane
//!   agent is to do reaches it through its control agent, as [`lane::LaneCommand`].

pub mod control;
pub mod direct;
pub mod facts;
pub mod frame;
pub mod lane;
pub mod marker;
pub mod packed;
pub mod patience;
pub mod point;
pub mod replica;
pub mod verify;

/// The version of everything in this module. Agents are found by their build's digest, so two versions never meet
/// in one operation; the number is checked all the same.
///
/// 1: the first version.
pub const PROTOCOL_VERSION: u16 = 1;

/// What opens every stream, before the first frame.
///
/// It holds bytes that no login banner, `motd` or shell message has (NUL, 0xFF, a lone CR), so a reader that skips
/// to it cannot be fooled by text.
pub const MAGIC: [u8; 16] = *b"\0\xff\r\x1akvm-clone\x01\xfe\x03";

/// How many bytes of somebody else's chatter may stand before [`MAGIC`].
pub const BANNER_LIMIT: usize = 64 * 1024;

/// Finds [`MAGIC`] in a stream that may open with a banner.
#[derive(Debug, Default)]
pub struct MagicScanner {
    matched: usize,
    skipped: usize,
}

impl MagicScanner {
    /// Takes the next byte; true once the magic is complete.
    ///
    /// # Errors
    /// More than [`BANNER_LIMIT`] bytes came before it.
    pub fn push(&mut self, byte: u8) -> crate::Result<bool> {
        self.skipped += 1;
        if self.skipped > BANNER_LIMIT + MAGIC.len() {
            return Err(crate::Error::connection("the other side did not answer as a kvm-clone agent")
                .help("Make sure that the login shell prints nothing for non-interactive sessions"));
        }
        // The magic's first byte stands nowhere else in it, so a mismatch can only restart at that byte.
        self.matched = match (MAGIC[self.matched] == byte, byte == MAGIC[0]) {
            (true, _) => self.matched + 1,
            (false, true) => 1,
            (false, false) => 0,
        };
        Ok(self.matched == MAGIC.len())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8]) -> Option<usize> {
        let mut scanner = MagicScanner::default();
        bytes.iter().position(|byte| scanner.push(*byte).unwrap())
    }

    #[test]
    fn a_banner_is_skipped() {
        let mut stream = b"Welcome to alpha!\r\n\0\xff\rmotd\0".to_vec();
        stream.extend(MAGIC);
        assert_eq!(scan(&stream), Some(stream.len() - 1));
    }

    #[test]
    fn a_false_start_does_not_hide_the_magic() {
        let mut stream = MAGIC[..15].to_vec();
        stream.extend(MAGIC);
        assert_eq!(scan(&stream), Some(stream.len() - 1));
    }

    #[test]
    fn endless_chatter_is_an_error() {
        let mut scanner = MagicScanner::default();
        assert!((0..BANNER_LIMIT + 100).any(|_| scanner.push(b'x').is_err()));
    }
}
