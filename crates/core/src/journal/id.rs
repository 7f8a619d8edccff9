//! An operation's id as users write it: the whole of it, or so much of its beginning or end as tells it from all others.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::error::{Error, Result};

/// Fewer characters are a slip of the fingers, not a choice.
const FEWEST: usize = 4;
/// As long as an id in its usual form.
const MOST: usize = 36;

/// The beginning or the end of an operation's id. Operations of one minute begin alike; their ends differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdPart(String);

impl IdPart {
    /// It as text: hexadecimal digits and hyphens, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an id begins or ends with it.
    #[must_use]
    pub fn is_of(&self, id: Uuid) -> bool {
        let id = id.to_string();
        id.starts_with(&self.0) || id.ends_with(&self.0)
    }
}

impl From<Uuid> for IdPart {
    fn from(id: Uuid) -> Self {
        Self(id.to_string())
    }
}

impl fmt::Display for IdPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for IdPart {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let part = text.to_ascii_lowercase();
        let fits = (FEWEST..=MOST).contains(&part.len());
        if fits && part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
            return Ok(Self(part));
        }
        Err(Error::validation(format!("{text:?} is no operation's id, and no beginning or end of one"))
            .with("id", text)
            .help("kvm-clone status --all shows every operation with its id"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_told_by_its_beginning_and_by_its_end() {
        let id: Uuid = "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b".parse().unwrap();
        for part in ["0199", "0199A1B2-c3", "4a5b", "0c1d2e3f4a5b", "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"] {
            assert!(part.parse::<IdPart>().unwrap().is_of(id), "{part}");
        }
        for part in ["c3d4", "0199b", "ffff"] {
            assert!(!part.parse::<IdPart>().unwrap().is_of(id), "{part}");
        }
    }

    #[test]
    fn what_cannot_be_part_of_an_id_is_refused() {
        for text in ["", "019", "web1", "0199%", "0199_", "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b0"] {
            assert!(text.parse::<IdPart>().is_err(), "{text}");
        }
    }
}
