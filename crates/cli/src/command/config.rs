//! `kvm-clone config`: the settings, and the file they stand in.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kvm_clone_core::{Code, Error, Result};
use serde::Serialize;

use crate::args::{ConfigArgs, ConfigCommand, Global};
use crate::render::Output;
use crate::settings::{HostEntry, Row, Settings, find_file, set_in_file, unset_in_file};
use crate::surroundings::Surroundings;

/// A setting and where it came from.
#[derive(Serialize)]
struct Shown {
    value: serde_json::Value,
    origin: String,
}

/// Everything but `show`: this works beside a broken environment too, and `path` and `init` beside a broken file.
pub(crate) fn without_settings(
    args: &ConfigArgs,
    global: &Global,
    surroundings: &Surroundings,
    output: &Output,
) -> Result<ExitCode> {
    let asked = global.config.as_deref();
    if args.command == ConfigCommand::Init {
        let path = new_file(asked, surroundings)?;
        write(&path, &template()?)?;
        output.note(&format!("{} is written; every setting in it is a comment with its default", path.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let path = match asked {
        Some(path) => path.to_owned(),
        None => match find_file(None, surroundings)? {
            Some(path) => path,
            None => new_file(None, surroundings)?,
        },
    };
    match &args.command {
        ConfigCommand::Set { key, value } => {
            replace(&path, &set_in_file(&path, &present(&path)?, key, value)?)?;
            output.note(&format!("{} has {key} now", path.display()));
            return Ok(ExitCode::SUCCESS);
        }
        ConfigCommand::Unset { key } => {
            let (text, was_there) = unset_in_file(&path, &present(&path)?, key)?;
            if was_there {
                replace(&path, &text)?;
            }
            let now = if was_there { "has no longer" } else { "did not have" };
            output.note(&format!("{} {now} {key}", path.display()));
            return Ok(ExitCode::SUCCESS);
        }
        ConfigCommand::Init | ConfigCommand::Show | ConfigCommand::Path => {}
    }
    output.data(&BTreeMap::from([("path", path.display().to_string())]), || format!("{}\n", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn new_file(asked: Option<&Path>, surroundings: &Surroundings) -> Result<PathBuf> {
    asked.map(Path::to_owned).or_else(|| surroundings.user_config()).ok_or_else(|| {
        Error::new(Code::Configuration, "there is no place for a configuration file: HOME is not set")
            .help("Set HOME, or name the file with --config")
    })
}

/// The file's text; one that is not there yet is empty.
fn present(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(unwritable(path, &error)),
    }
}

/// Puts a new text in the file's place at once: whoever reads it meanwhile finds the old one or the new one.
fn replace(path: &Path, text: &str) -> Result<()> {
    let failed = |error: std::io::Error| unwritable(path, &error);
    // Where the path is a link, the file that it leads to is the one to be changed.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let new = dir.join(format!(".kvm-clone-config-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&new)?;
        if let Ok(facts) = std::fs::metadata(&path) {
            file.set_permissions(facts.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&new);
        failed(error)
    })
}

fn unwritable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(Code::Configuration, format!("{} cannot be changed: {error}", path.display()))
        .with("file", path.display())
        .help("Name a file of your own with --config")
}

fn write(path: &Path, text: &str) -> Result<()> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::new(Code::Configuration, format!("{} is there already and stays as it is", path.display()))
                .help("Edit it, or name another file with --config")
        }
        _ => Error::new(Code::Configuration, format!("{} cannot be written: {error}", path.display())),
    };
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

const HOSTS: &str = "
# Hosts by names of your own; in place of NAME.
#[hosts.NAME]
# [user@]host[:port]; NAME itself where it is missing
#address = \"root@192.0.2.10\"
#user = \"root\"
#port = 22
# false: the agent runs as the user who logs in, with that user's own libvirt
#sudo = true
# The pool for copies that come here
#pool = \"default\"
# Networks of sources, and what they are called here; none unplugs
#networks = { lan = \"default\", dmz = \"none\" }
";

/// A file in which every setting stands as a comment.
fn template() -> Result<String> {
    let mut text =
        "# Settings of kvm-clone. The environment (KVM_CLONE_SECTION_KEY) and options win over them.\n".to_owned();
    let mut section = "";
    for row in Settings::defaults()?.rows() {
        if row.section != section {
            section = row.section;
            text += &format!("\n[{section}]\n");
        }
        text += &format!("# {}\n#{}\n", row.about, assignment(&row));
    }
    Ok(text + HOSTS)
}

/// A number where it is one, nothing where it is unset, else a text.
fn value(row: &Row) -> serde_json::Value {
    match row.value.parse::<u64>() {
        Ok(number) => number.into(),
        Err(_) if row.value.is_empty() => serde_json::Value::Null,
        Err(_) => row.value.as_str().into(),
    }
}

/// `key = value` as TOML.
fn assignment(row: &Row) -> String {
    let number = row.value.parse::<u64>().is_ok();
    let value = if number { row.value.clone() } else { toml_edit::Value::from(row.value.as_str()).to_string() };
    format!("{} = {value}", row.key)
}

/// Every setting with its origin.
pub(crate) fn show(settings: &Settings, output: &Output) -> Result<ExitCode> {
    let rows = settings.rows();
    let mut all: BTreeMap<&str, BTreeMap<&str, Shown>> = BTreeMap::new();
    for row in &rows {
        let shown = Shown { value: value(row), origin: row.origin.to_string() };
        all.entry(row.section).or_default().insert(row.key, shown);
    }
    let document = Document { settings: all, hosts: &settings.hosts };
    output.data(&document, || text(&rows, &settings.hosts))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    settings: BTreeMap<&'a str, BTreeMap<&'a str, Shown>>,
    hosts: &'a BTreeMap<String, HostEntry>,
}

/// As TOML, with the origins as comments.
fn text(rows: &[Row], hosts: &BTreeMap<String, HostEntry>) -> String {
    let mut text = String::new();
    let mut section = "";
    for row in rows {
        if row.section != section {
            text += if section.is_empty() { "" } else { "\n" };
            section = row.section;
            text += &format!("[{section}]\n");
        }
        let unset = if row.value.is_empty() { "#" } else { "" };
        text += &format!("{:<36} # {}\n", format!("{unset}{}", assignment(row)), row.origin);
    }
    for (name, entry) in hosts {
        text += &format!("\n{}", host(name, entry));
    }
    text
}

fn host(name: &str, entry: &HostEntry) -> String {
    let mut table = toml_edit::Table::new();
    let mut set = |key: &str, value: Option<toml_edit::Value>| {
        if let Some(value) = value {
            table[key] = toml_edit::Item::Value(value);
        }
    };
    set("address", entry.address.as_ref().map(|address| address.to_string().into()));
    set("user", entry.user.as_ref().map(Into::into));
    set("port", entry.port.map(|port| i64::from(port).into()));
    set("sudo", entry.sudo.map(Into::into));
    set("pool", entry.pool.as_ref().map(Into::into));
    let networks: toml_edit::InlineTable =
        entry.networks.iter().map(|(old, new)| (old.as_str(), new.as_str())).collect();
    set("networks", (!entry.networks.is_empty()).then(|| networks.into()));
    format!("[hosts.{}]\n{table}", toml_edit::Key::new(name).display_repr())
}
