//! Names that users write, checked once at the edge and trusted inside.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The name of a machine that we make.
///
/// 1–64 of `A–Z a–z 0–9 . _ -`, not starting with `-` or `.`, and not a word that means something else on the
/// command line. It is safe as a part of a file name and as an argument.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

const RESERVED: [&str; 3] = ["localhost", "none", "all"];

impl VmName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::validation(format!("{text:?} is not a machine name: {why}"))
                .with("name", text)
                .help("Use 1 to 64 of A-Z a-z 0-9 . _ - and start with a letter, a digit or _"))
        };
        if text.is_empty() || text.len() > 64 {
            return refuse("it must have 1 to 64 characters");
        }
        if text.starts_with(['-', '.']) {
            return refuse("it must not start with - or .");
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
            return refuse("it holds a character outside A-Z a-z 0-9 . _ -");
        }
        if RESERVED.contains(&text.to_ascii_lowercase().as_str()) {
            return refuse("this word is reserved");
        }
        Ok(Self(text.to_owned()))
    }
}

/// The name of a machine that is there already, which may break the rule for new names but is still bounded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SourceName(String);

impl SourceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SourceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > 255 || text.chars().any(char::is_control) || text.starts_with('-') {
            return Err(Error::validation(format!("{text:?} cannot be the name of a machine"))
                .with("name", text)
                .help("kvm-clone list HOST shows the machines of a host"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The target device of a disk as the guest's definition names it: `vda`, `sdb`, `hdc`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskTarget(String);

impl DiskTarget {
    /// The device as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DiskTarget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fits = (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !fits {
            return Err(Error::validation(format!("{text:?} is not a disk's target device")).with("disk", text));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The name of a storage pool or network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceName(String);

impl ResourceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ResourceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |c: char| c.is_control() || "/\\<>\"'&".contains(c);
        if text.is_empty() || text.len() > 128 || text.chars().any(bad) {
            return Err(Error::validation(format!("{text:?} is not the name of a pool or network")).with("name", text));
        }
        Ok(Self(text.to_owned()))
    }
}

macro_rules! text_type {
    ($($type:ident)*) => { $(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> { text.parse() }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String { name.0 }
        }
    )* };
}
text_type!(VmName SourceName DiskTarget ResourceName);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_that_keep_the_rule_pass() {
        for name in ["web1", "a", "_x", "A.b-c_9", &"x".repeat(64)] {
            assert_eq!(name.parse::<VmName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_break_the_rule_are_refused() {
        for name in ["", "-x", ".x", "a b", "a/b", "é", "all", "None", "LOCALHOST", "a\n", &"x".repeat(65)] {
            assert_eq!(name.parse::<VmName>().unwrap_err().code.number(), 1007, "{name:?}");
        }
    }

    #[test]
    fn source_machines_may_have_odd_names() {
        assert!("my machine (old)".parse::<SourceName>().is_ok());
        assert!("a\0b".parse::<SourceName>().is_err());
    }
}
