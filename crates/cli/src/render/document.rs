//! Data as JSON and YAML.

use std::collections::BTreeMap;

use kvm_clone_core::{Error, Result};
use serde::Serialize;

/// As JSON, to be read by people too.
pub(super) fn json<T: Serialize>(data: &T) -> Result<String> {
    let text = serde_json::to_string_pretty(data).map_err(|error| unfit(&error.to_string()))?;
    Ok(text + "\n")
}

/// As YAML.
pub(super) fn yaml<T: Serialize>(data: &T) -> Result<String> {
    serde_norway::to_string(data).map_err(|error| unfit(&error.to_string()))
}

/// As one line of JSON.
pub(super) fn line<T: Serialize>(data: &T) -> String {
    serde_json::to_string(data).unwrap_or_else(|error| format!("{{\"unwritable\":{:?}}}", error.to_string()))
}

fn unfit(why: &str) -> Error {
    Error::internal(format!("the result cannot be written: {why}"))
}

/// An error as users read it; the names are a contract.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorView {
    error: ErrorBody,
    operation_id: Option<String>,
    timestamp: String,
}

/// The error itself.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorBody {
    code: u16,
    kind: &'static str,
    message: String,
    context: BTreeMap<String, String>,
    help: Vec<String>,
    transient: bool,
}

impl ErrorView {
    /// This error, which happened just now.
    pub(crate) fn now(error: &Error) -> Self {
        Self::at(error, &jiff::Timestamp::now().to_string())
    }

    /// This error, which happened then.
    pub(crate) fn at(error: &Error, timestamp: &str) -> Self {
        let mut body = ErrorBody::of(error);
        let operation_id = body.context.remove("operation_id");
        Self { error: body, operation_id, timestamp: timestamp.to_owned() }
    }
}

impl ErrorBody {
    /// This error.
    pub(crate) fn of(error: &Error) -> Self {
        Self {
            code: error.code.number(),
            kind: error.code.kind(),
            message: error.message.clone(),
            context: error.context.clone(),
            help: error.ways_out().into_iter().map(str::to_owned).collect(),
            transient: error.transient,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_written_as_promised() {
        let error = Error::transfer("cut").with("operation_id", "0199").with("host", "beta").help("again").transient();
        let value = serde_json::to_value(ErrorView::now(&error)).unwrap();
        let expected = serde_json::json!({
            "code": 1006, "kind": "transfer", "message": "cut", "context": {"host": "beta"}, "help": ["again"],
            "transient": true
        });
        assert_eq!(value["error"], expected);
        assert_eq!(value["operation_id"], "0199");
        assert!(value["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }
}
