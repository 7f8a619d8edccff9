//! The configuration file: where it is, and what stands in it.

use std::path::{Path, PathBuf};

use kvm_clone_core::{Code, Error, Result};
use toml_edit::{Document, Item, Table, Value};

use super::{Origin, Refusal, Settings, bad_value, inventory, unknown_key, unknown_section};
use crate::surroundings::Surroundings;

const SYSTEM: &str = "/etc/kvm-clone/config.toml";

/// The file to be read: the one asked for, else the user's, else the system's, else none.
pub(crate) fn find(asked: Option<&Path>, surroundings: &Surroundings) -> Result<Option<PathBuf>> {
    if let Some(path) = asked {
        if !path.is_file() {
            let error = Error::new(Code::Configuration, format!("there is no configuration file {}", path.display()));
            return Err(error.with("file", path.display()).help("kvm-clone config init -c FILE makes one"));
        }
        return Ok(Some(path.to_owned()));
    }
    let candidates = surroundings.user_config().into_iter().chain([PathBuf::from(SYSTEM)]);
    Ok(candidates.into_iter().find(|path| path.is_file()))
}

/// The file's text.
pub(super) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        Error::new(Code::Configuration, format!("the configuration file cannot be read: {error}"))
            .with("file", path.display())
    })
}

/// A file in which lines can be named.
pub(super) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    /// The line in which a part of the file begins.
    fn line(&self, span: Option<std::ops::Range<usize>>) -> usize {
        let before = span.and_then(|span| self.text.get(..span.start)).unwrap_or_default();
        before.matches('\n').count() + 1
    }

    /// Where a value came from.
    pub(super) fn origin(&self, table: &Table, key: &str) -> Origin {
        Origin::File { path: self.path.to_owned(), line: self.key_line(table, key) }
    }

    fn key_line(&self, table: &Table, key: &str) -> usize {
        self.line(table.get_key_value(key).and_then(|(key, item)| key.span().or_else(|| item.span())))
    }

    /// An error of this file, at this key.
    pub(super) fn at(&self, error: Error, table: &Table, key: &str) -> Error {
        error.with("file", self.path.display()).with("line", self.key_line(table, key))
    }
}

/// Takes over everything that a file says.
pub(super) fn take(settings: &mut Settings, path: &Path, text: &str) -> Result<()> {
    let source = Source { path, text };
    let document = Document::parse(text).map_err(|error| {
        Error::new(Code::Configuration, format!("the configuration file is not TOML: {}", error.message()))
            .with("file", path.display())
            .with("line", source.line(error.span()))
    })?;
    let root = document.as_table();
    for (section, item) in root {
        let Some(table) = item.as_table() else {
            return Err(source.at(unknown_section(section), root, section));
        };
        if section == "hosts" {
            settings.hosts = inventory::read(&source, table)?;
        } else {
            take_section(settings, &source, section, root, table)?;
        }
    }
    Ok(())
}

fn take_section(
    settings: &mut Settings,
    source: &Source<'_>,
    section: &str,
    root: &Table,
    table: &Table,
) -> Result<()> {
    if let Err(Refusal::Section) = settings.set(section, "", "", Origin::Default) {
        return Err(source.at(unknown_section(section), root, section));
    }
    for (key, item) in table {
        let name = format!("{section}.{key}");
        let text = scalar(&name, item).map_err(|error| source.at(error, table, key))?;
        let error = match settings.set(section, key, &text, source.origin(table, key)) {
            Ok(()) => continue,
            Err(Refusal::Section | Refusal::Key) => unknown_key(section, key),
            Err(Refusal::Value(error)) => bad_value(&name, &error),
        };
        return Err(source.at(error, table, key));
    }
    Ok(())
}

/// A value as text; settings are words, numbers and true or false.
pub(super) fn scalar(name: &str, item: &Item) -> Result<String> {
    match item.as_value() {
        Some(Value::String(text)) => Ok(text.value().clone()),
        Some(Value::Integer(number)) => Ok(number.value().to_string()),
        Some(Value::Boolean(truth)) => Ok(truth.value().to_string()),
        _ => Err(Error::new(Code::Configuration, format!("{name} takes a text, a whole number, or true or false"))
            .with("key", name)),
    }
}
