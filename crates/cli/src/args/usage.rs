//! What ends the command before it began: help that was asked for, or a command line that cannot be.

use std::error::Error as _;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use kvm_clone_core::Error;

use crate::exit;
use crate::render::{Format, Output};
use crate::surroundings::Surroundings;

/// Why nothing was begun.
pub(crate) enum Stop {
    /// Help or the version was asked for.
    Page(clap::Error),
    /// The command line cannot be.
    Refused(Error, Format),
}

impl Stop {
    /// Says it, and with which exit status.
    pub(crate) fn show(&self, surroundings: &Surroundings) -> ExitCode {
        match self {
            // A reader that went away has seen enough.
            Self::Page(page) => page.print().map_or(ExitCode::SUCCESS, |()| ExitCode::SUCCESS),
            Self::Refused(error, format) => {
                Output::new(*format, surroundings).error(error);
                exit::status(error.code)
            }
        }
    }
}

/// What clap found, in this program's words.
pub(super) fn stop(error: clap::Error, words: &[OsString]) -> Stop {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Page(error),
        _ => Stop::Refused(validation(&error), wanted_format(words)),
    }
}

fn validation(error: &clap::Error) -> Error {
    let mut refused = match error.source().and_then(|source| source.downcast_ref::<Error>()) {
        Some(source) => {
            let mut refused = Error { code: kvm_clone_core::Code::Validation, ..source.clone() };
            if let Some(argument) = error.get(ContextKind::InvalidArg) {
                refused.message = format!("{argument}: {}", refused.message);
                refused = refused.with("argument", argument);
            }
            refused
        }
        None => plain(&error.render().to_string()),
    };
    if let Some(usage) = error.get(ContextKind::Usage) {
        let usage = usage.to_string();
        let line: Vec<&str> = usage.trim_start_matches("Usage:").split_whitespace().collect();
        refused = refused.help(format!("Usage: {}", line.join(" ")));
    }
    refused.help("kvm-clone COMMAND --help explains every option")
}

/// clap's own text: the first paragraph says what is wrong, lines that begin with `tip:` help.
fn plain(text: &str) -> Error {
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.trim_start_matches("error: ").split_whitespace().collect();
    let error = Error::validation(words.join(" "));
    text.lines().filter_map(|line| line.trim().strip_prefix("tip: ")).fold(error, Error::help)
}

/// The `--output` of a command line that could not be read as a whole.
fn wanted_format(words: &[OsString]) -> Format {
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).take_while(|word| *word != "--").collect();
    let joined = |word: &&str| {
        let value = word.strip_prefix("--output=").or_else(|| word.strip_prefix("-o"))?;
        value.trim_start_matches('=').parse().ok()
    };
    let apart = words.windows(2).find_map(|pair| match pair {
        ["-o" | "--output", value] => value.parse().ok(),
        _ => None,
    });
    apart.or_else(|| words.iter().find_map(joined)).unwrap_or(Format::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_found_in_a_broken_line() {
        let find = |line: &str| wanted_format(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in ["x -o json", "x --output=json", "x -ojson", "x clone --output json -z"] {
            assert_eq!(find(line), Format::Json, "{line}");
        }
        for line in ["x", "x -o", "x -o xml", "x -- -o json"] {
            assert_eq!(find(line), Format::Text, "{line}");
        }
    }
}
