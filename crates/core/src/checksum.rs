//! Checksums of whole disks, as the common programs compute them, so that a copy can be compared by hand as well.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What a checksum is computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// As `b3sum`.
    Blake3,
    /// As `sha256sum`.
    Sha256,
    /// As `md5sum`: quick, known, and no proof against anybody who means harm.
    Md5,
}

impl Algorithm {
    /// As one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
            Self::Md5 => "md5",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let all = [Self::Blake3, Self::Sha256, Self::Md5];
        all.into_iter().find(|algorithm| algorithm.word() == text).ok_or_else(|| {
            Error::validation(format!("{text:?} is not one of blake3, sha256, md5")).with("checksum", text)
        })
    }
}
