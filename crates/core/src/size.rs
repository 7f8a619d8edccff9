//! Amounts of bytes, as users write and read them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What sizes of qcow2 disks are made of; qemu shows every disk in whole ones.
pub const SECTOR: u64 = 512;

/// The size of so many bytes in whole sectors, in bytes.
#[must_use]
pub const fn whole_sectors(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR)
}

/// An amount of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

impl FromStr for ByteSize {
    type Err = Error;

    /// Reads `100`, `64K`, `1.5G`, with or without a trailing `B` or `iB`; units are powers of 1024.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            Error::validation(format!("{text:?} is not a size"))
                .with("size", text)
                .help("Write a number with K, M, G or T behind it (powers of 1024), for example 100M")
        };
        let upper = text.trim().to_ascii_uppercase();
        let body = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
        let unit = UNITS.iter().find(|(letter, _)| body.ends_with(*letter));
        let (number, shift) =
            unit.map_or((body, 0), |(letter, shift)| (body.trim_end_matches(*letter).trim_end(), *shift));
        let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if !plain || number.len() > 20 {
            return Err(refuse());
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| refuse())? };
        let mut bytes = whole.checked_mul(1 << shift).ok_or_else(refuse)?;
        if !fraction.is_empty() {
            let digits: u64 = fraction.get(..fraction.len().min(6)).unwrap_or("").parse().map_err(|_| refuse())?;
            let scale = 10u64.pow(u32::try_from(fraction.len().min(6)).map_err(|_| refuse())?);
            bytes = bytes.checked_add((digits << shift) / scale).ok_or_else(refuse)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((letter, shift)) = UNITS.iter().rev().find(|(_, shift)| self.0 >> shift > 0) else {
            return write!(f, "{} B", self.0);
        };
        let tenths = (u128::from(self.0) * 10) >> shift;
        write!(f, "{}.{} {letter}iB", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [("0", 0), ("64K", 65536), ("1.5G", 3 << 29), ("100MiB", 100 << 20), ("2tb", 2 << 40)] {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "K", "-1", "1e3", "1..2G", "99999999999999999999T", "10X", "18446744073709551615G"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (8 << 30, "8.0 GiB")] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
