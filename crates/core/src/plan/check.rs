//! Checks: what a plan looked at, and how it found it.

use serde::Serialize;

use crate::error::Error;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All is well.
    Ok,
    /// It can be done, but the user should know.
    Warn,
    /// It cannot be done.
    Fail,
}

/// Something that a plan looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was looked at: `name`, `space`, …
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub message: String,
    /// What the user can do.
    pub help: Option<String>,
    #[serde(skip)]
    error: Option<Error>,
}

impl Check {
    /// The error of a check that failed.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }
}

/// Checks in the making.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub(super) list: Vec<Check>,
    pub(super) warnings: Vec<String>,
}

impl Checks {
    pub(super) fn ok(&mut self, name: &'static str, message: impl Into<String>) {
        self.list.push(Check { name, outcome: Outcome::Ok, message: message.into(), help: None, error: None });
    }

    pub(super) fn warn(&mut self, name: &'static str, message: impl Into<String>, help: Option<&str>) {
        let message = message.into();
        self.warnings.push(message.clone());
        self.list.push(Check { name, outcome: Outcome::Warn, message, help: help.map(str::to_owned), error: None });
    }

    pub(super) fn fail(&mut self, name: &'static str, error: Error) {
        let message = error.message.clone();
        let help = error.help.first().cloned();
        self.list.push(Check { name, outcome: Outcome::Fail, message, help, error: Some(error) });
    }

    /// Adds the failures, or that all is well.
    pub(super) fn all(&mut self, name: &'static str, failures: Vec<Error>, ok: impl Into<String>) {
        if failures.is_empty() {
            return self.ok(name, ok);
        }
        failures.into_iter().for_each(|error| self.fail(name, error));
    }
}
