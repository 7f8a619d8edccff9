//! Changing the configuration file's text: what stands in it otherwise, comments included, stays.

use std::path::Path;

use kvm_clone_core::{Code, Error, Result};
use toml_edit::{DocumentMut, Item, Key, Table, TableLike, Value};

use super::{Origin, Refusal, Settings, file, inventory, unknown_key, unknown_section};

/// The file's text with one setting changed; nothing is taken that the file could not be read with.
pub(crate) fn set(path: &Path, text: &str, key: &str, value: &str) -> Result<String> {
    let words = split(key)?;
    let mut document = parse(path, text)?;
    put(document.as_table_mut(), &words, value).ok_or_else(|| no_key(key))?;
    checked(path, document.to_string()).map_err(|mut error| {
        // The fault is in what is to be set, which stands on no line, unless the file had one before.
        if checked(path, text.to_owned()).is_ok() {
            error.context.remove("line");
            error.context.remove("file");
        }
        error
    })
}

/// The file's text without a setting, and whether it was there.
pub(crate) fn unset(path: &Path, text: &str, key: &str) -> Result<(String, bool)> {
    let words = split(key)?;
    known(&words)?;
    let mut document = parse(path, text)?;
    let was_there = remove(document.as_table_mut(), &words);
    Ok((checked(path, document.to_string())?, was_there))
}

/// A word that is no setting is told from one that is not set.
fn known(words: &[String]) -> Result<()> {
    let [section, key, ..] = words else { return Err(no_key("")) };
    if section == "hosts" {
        return words.get(2).map_or(Ok(()), |key| inventory::known(&words.join("."), key));
    }
    match Settings::defaults()?.set(section, key, "", Origin::Default) {
        Err(Refusal::Section) => Err(unknown_section(section)),
        Err(Refusal::Key) => Err(unknown_key(section, key)),
        Ok(()) | Err(Refusal::Value(_)) => Ok(()),
    }
}

/// `section.key`, `hosts.NAME.key` or `hosts.NAME.networks.OLD`, with quotes where a name has dots.
fn split(key: &str) -> Result<Vec<String>> {
    let words = Key::parse(key).map_err(|_| no_key(key))?;
    let words: Vec<String> = words.iter().map(|word| word.get().to_owned()).collect();
    let wanted = if words.first().is_some_and(|first| first == "hosts") { 3..=4 } else { 2..=2 };
    if wanted.contains(&words.len()) { Ok(words) } else { Err(no_key(key)) }
}

fn no_key(key: &str) -> Error {
    Error::validation(format!("{key:?} does not name a setting"))
        .with("key", key)
        .help("Write SECTION.KEY, as in transfer.parallel, or hosts.NAME.KEY; kvm-clone config show has them all")
}

fn parse(path: &Path, text: &str) -> Result<DocumentMut> {
    text.parse::<DocumentMut>().map_err(|error| {
        Error::new(Code::Configuration, format!("the configuration file is not TOML: {}", error.message()))
            .with("file", path.display())
            .help("Correct it first; nothing was changed")
    })
}

/// The text, if it is a configuration file.
fn checked(path: &Path, text: String) -> Result<String> {
    file::take(&mut Settings::defaults()?, path, &text)?;
    Ok(text)
}

fn put(root: &mut Table, words: &[String], value: &str) -> Option<()> {
    let (key, sections) = words.split_last()?;
    let mut table: &mut dyn TableLike = root;
    for (depth, section) in sections.iter().enumerate() {
        // `[hosts]` itself is written only where it has something of its own.
        let mut new = Table::new();
        new.set_implicit(depth + 1 < sections.len());
        table = table.entry(section).or_insert(Item::Table(new)).as_table_like_mut()?;
    }
    let mut value = typed(value);
    match table.get_mut(key) {
        Some(old) => {
            // A comment behind the old value stays behind the new one.
            if let Some(old) = old.as_value() {
                *value.decor_mut() = old.decor().clone();
            }
            *old = Item::Value(value);
        }
        None => drop(table.insert(key, Item::Value(value))),
    }
    Some(())
}

fn remove(root: &mut Table, words: &[String]) -> bool {
    let Some((key, sections)) = words.split_last() else { return false };
    let mut table: &mut dyn TableLike = root;
    for section in sections {
        match table.get_mut(section).and_then(Item::as_table_like_mut) {
            Some(inner) => table = inner,
            None => return false,
        }
    }
    table.remove(key).is_some()
}

/// A number or a truth where the text is exactly one.
fn typed(text: &str) -> Value {
    match (text.parse::<i64>(), text) {
        (Ok(number), text) if number.to_string() == text => number.into(),
        (_, "true") => true.into(),
        (_, "false") => false.into(),
        (_, text) => text.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FILE: &str =
        "# ours\n[transfer]\n# why two\nparallel = 2 # for the old switch\n\n[hosts.\"a.b\"]\nport = 23\n";

    fn set(text: &str, key: &str, value: &str) -> Result<String> {
        super::set(Path::new("/c.toml"), text, key, value)
    }

    fn unset(text: &str, key: &str) -> Result<(String, bool)> {
        super::unset(Path::new("/c.toml"), text, key)
    }

    #[test]
    fn a_changed_value_leaves_everything_around_it() {
        assert_eq!(set(FILE, "transfer.parallel", "8").unwrap(), FILE.replace("= 2 ", "= 8 "));
        assert_eq!(set(FILE, "hosts.\"a.b\".port", "24").unwrap(), FILE.replace("23", "24"));
    }

    #[test]
    fn a_new_value_finds_its_section_or_makes_it() {
        assert_eq!(set("", "ssh.user", "ops").unwrap(), "[ssh]\nuser = \"ops\"\n");
        let both = set(FILE, "transfer.verify", "media").unwrap();
        assert!(both.contains("# for the old switch\nverify = \"media\"\n"), "{both}");
        let host = set("", "hosts.beta.networks.lan", "br0").unwrap();
        assert_eq!(host, "[hosts.beta.networks]\nlan = \"br0\"\n");
        assert_eq!(set("", "hosts.beta.sudo", "false").unwrap(), "[hosts.beta]\nsudo = false\n");
    }

    #[test]
    fn what_is_no_setting_or_no_value_is_refused() {
        let refused = [
            ("transfer.lanes", "8", 1001),
            ("transfer.parallel", "64", 1001),
            ("sssh.port", "22", 1001),
            ("hosts.alpha.prot", "22", 1001),
            ("hosts.local.port", "22", 1001),
            ("transfer", "8", 1007),
            ("hosts.alpha", "8", 1007),
            ("transfer.parallel.more", "8", 1007),
            ("", "8", 1007),
        ];
        for (key, value, code) in refused {
            assert_eq!(set(FILE, key, value).unwrap_err().code.number(), code, "{key}");
        }
        assert_eq!(set("[transfer\n", "ssh.port", "22").unwrap_err().code.number(), 1001);
    }

    #[test]
    fn unsetting_takes_one_line_away() {
        let (text, was_there) = unset(FILE, "transfer.parallel").unwrap();
        assert!(was_there && !text.contains("parallel") && text.contains("# ours\n[transfer]\n"), "{text}");
        assert_eq!(unset(FILE, "ssh.port").unwrap(), (FILE.to_owned(), false));
        for unknown in ["transfer.lanes", "sssh.port", "hosts.x.prot"] {
            assert!(unset(FILE, unknown).is_err(), "{unknown}");
        }
    }
}
