//! What the user sees: data on stdout, everything else on stderr.

mod bars;
#[cfg(test)]
mod catalogue;
mod document;
mod error;
mod events;
mod operation;
mod output;
mod paint;
mod progress;
mod report;
mod table;
mod verdict;

use std::fmt;
use std::str::FromStr;

use kvm_clone_core::Error;

pub(crate) use document::{ErrorBody, ErrorView};
pub(crate) use operation::{OperationView, operation_line, operation_text, operations_table};
pub(crate) use output::{Output, Screen};
pub(crate) use progress::{Progress, Style};
pub(crate) use report::clone_report;
pub(crate) use table::{machines_list, machines_table};
pub(crate) use verdict::verify_report;

/// How data and errors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            _ => Err(Error::validation(format!("{text:?} is not one of text, json, yaml"))),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Yaml => "yaml",
        })
    }
}

/// Text from a host, fit for a terminal: nothing in it can move the cursor or change colours.
pub(crate) fn harmless(text: &str) -> String {
    let tame = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(tame).collect()
}
