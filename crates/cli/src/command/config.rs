//! `kvm-clone config`: the settings, and the file they stand in.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kvm_clone_core::{Code, Error, Result};
use serde::Serialize;

use crate::args::{ConfigArgs, ConfigCommand, Global};
use crate::render::Output;
use crate::settings::{HostEntry, Row, Settings, find_file};
use crate::surroundings::Surroundings;

/// A setting and where it came from.
#[derive(Serialize)]
struct Shown {
    value: serde_json::Value,
    origin: String,
}

/// `init` and `path`, which work beside a broken file too.
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
    output.data(&BTreeMap::from([("path", path.display().to_string())]), || format!("{}\n", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn new_file(asked: Option<&Path>, surroundings: &Surroundings) -> Result<PathBuf> {
    asked.map(Path::to_owned).or_else(|| surroundings.user_config()).ok_or_else(|| {
        Error::new(Code::Configuration, "there is no place for a configuration file: HOME is not set")
            .help("Set HOME, or name the file with --config")
    })
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
