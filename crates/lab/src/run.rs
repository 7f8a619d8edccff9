//! Running programs, writing files and waiting: the lab's few primitives, each with an error that says what failed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{LabError, Result};

/// A program of the machine itself, with an empty standard input and untranslated messages.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    command
}

/// Runs a command to its end; its standard output, or an error that carries its standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let words = words(command);
    let output = command.output().map_err(|source| LabError::Start { program: words.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Command { command: words, status: output.status, stderr })
}

/// Runs a program of the machine with fixed words.
pub(crate) fn run(argv: &[&str]) -> Result<String> {
    let (name, arguments) = argv.split_first().ok_or_else(|| LabError::Refused("no command was given".to_owned()))?;
    output(program(name).args(arguments))
}

fn words(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    // A whole script among the words would bury the message.
    words.extend(command.get_args().map(|word| word.to_string_lossy().chars().take(200).collect()));
    words.join(" ")
}

/// Asks again until there is an answer; after `limit`, an error that says what was seen instead.
pub(crate) fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
    seen: impl FnOnce() -> String,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() > limit {
            return Err(LabError::Late { what: what.to_owned(), waited: limit, seen: seen() });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(LabError::file("make directory", path))
}

pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    fs::write(path, content).map_err(LabError::file("write", path))?;
    chmod(path, mode)
}

pub(crate) fn append(path: &Path, content: &str) -> Result<()> {
    let mut text = if path.exists() { read(path)? } else { String::new() };
    text.push_str(content);
    fs::write(path, text).map_err(LabError::file("write", path))
}

pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(LabError::file("read", path))
}

pub(crate) fn chmod(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(LabError::file("change mode of", path))
}

pub(crate) fn symlink(to: &str, path: &Path) -> Result<()> {
    std::os::unix::fs::symlink(to, path).map_err(LabError::file("make link", path))
}
