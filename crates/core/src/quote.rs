//! Words of commands that a help shows: a person may copy them into a shell.

use std::fmt::Display;

/// The word as a shell takes it for one word, quoted only where that is needed.
#[must_use]
pub fn quoted(word: impl Display) -> String {
    let word = word.to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word;
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_shell_would_take_apart_is_quoted() {
        for plain in ["default", "/srv/a,b.qcow2", "web_1", "größe"] {
            assert_eq!(quoted(plain), plain);
        }
        assert_eq!(quoted("my pool"), "'my pool'");
        assert_eq!(quoted("it's; rm"), r"'it'\''s; rm'");
        assert_eq!(quoted(""), "''");
    }
}
