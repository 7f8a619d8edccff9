//! Files that a machine has beside its disks, carried as they are: the variables of its firmware.

use serde::Serialize;

use super::check::Checks;
use super::{Facts, Replaced};
use crate::error::{Code, Error};
use crate::inventory::ImageFacts;
use crate::name::VmName;

/// A file that will be copied byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FilePlan {
    /// What it is.
    pub what: FileKind,
    /// Its path at the source.
    pub source_path: String,
    /// The file that the copy becomes.
    pub path: String,
    /// Its length.
    pub size: u64,
}

/// What a file is to its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// Variables of UEFI firmware.
    Nvram,
}

impl FileKind {
    /// As one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nvram => "nvram",
        }
    }
}

/// What becomes of a machine's files.
#[derive(Default)]
pub(super) struct Files {
    pub(super) carried: Vec<FilePlan>,
    /// The path of the copy's own variables, whether there are any yet or not.
    pub(super) nvram: Option<String>,
}

pub(super) fn place(facts: &Facts<'_>, replaces: Option<&Replaced>, checks: &mut Checks) -> Files {
    let Some((old, [plain, other])) = nvram_paths(facts) else { return Files::default() };
    let path = if belongs_to_replaced(facts, &plain, replaces) { other } else { plain };
    if let Err(error) = is_free(facts, &path).and_then(|()| has_directory(facts, &path)) {
        checks.fail("nvram", error);
        return Files::default();
    }
    let chain = facts.source.files.get(&old).map_or(&[][..], Vec::as_slice);
    let carried = match chain {
        [] => {
            checks.ok("nvram", "the firmware has no variables yet; libvirt makes them at the first start");
            Vec::new()
        }
        [file] if file.regular_file => {
            checks.ok("nvram", format!("the firmware's variables become {path}"));
            vec![carried(file, &path)]
        }
        _ => {
            let error = Error::unsupported(format!("the firmware's variables {old} are no plain file by itself"));
            checks.fail("nvram", error.with("path", &old).help("Make one file of them: qemu-img convert"));
            Vec::new()
        }
    };
    Files { carried, nvram: Some(path) }
}

/// Every path that [`place`] may choose.
pub(super) fn candidates(facts: &Facts<'_>) -> Vec<String> {
    nvram_paths(facts).map(|(_, paths)| paths.to_vec()).unwrap_or_default()
}

fn carried(file: &ImageFacts, path: &str) -> FilePlan {
    FilePlan { what: FileKind::Nvram, source_path: file.path.clone(), path: path.to_owned(), size: file.file.length }
}

/// The source's path, and two names for the copy's: in the same directory, which is libvirt's own as a rule, as libvirt
/// would name it; and one for where the machine that is replaced has that.
fn nvram_paths(facts: &Facts<'_>) -> Option<(String, [String; 2])> {
    let old = facts.domain.nvram()?.path?;
    let (dir, file) = old.rsplit_once('/')?;
    let extension = file.rsplit_once('.').map_or("fd", |(_, extension)| extension).to_owned();
    let name: &VmName = facts.new_name;
    let [.., a, b, c, d] = facts.fresh.operation.into_bytes();
    let plain = format!("{dir}/{name}_VARS.{extension}");
    let other = format!("{dir}/{name}-{a:02x}{b:02x}{c:02x}{d:02x}_VARS.{extension}");
    Some((old.clone(), [plain, other]))
}

fn belongs_to_replaced(facts: &Facts<'_>, path: &str, replaces: Option<&Replaced>) -> bool {
    let replaced = facts.target.machines.iter().find(|machine| Some(machine.uuid) == replaces.map(|r| r.uuid));
    replaced.is_some_and(|machine| machine.uses.contains(path))
}

fn is_free(facts: &Facts<'_>, path: &str) -> Result<(), Error> {
    let used = facts.target.machines.iter().find(|machine| machine.uses.contains(path));
    if used.is_none() && !facts.target.paths_present.contains(path) {
        return Ok(());
    }
    let owner = used.map(|machine| format!(" and belongs to machine {}", machine.name)).unwrap_or_default();
    Err(Error::new(Code::VmExists, format!("the file {path} is there already{owner}; it is never overwritten"))
        .with("path", path)
        .with("host", &facts.target.host_name)
        .help("Move the file away, or choose another name with --new-name"))
}

fn has_directory(facts: &Facts<'_>, path: &str) -> Result<(), Error> {
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    if facts.target.paths_present.contains(dir) {
        return Ok(());
    }
    Err(Error::insufficient(format!("the target has no directory {dir} for the firmware's variables"))
        .with("path", dir)
        .with("host", &facts.target.host_name)
        .help(format!("Make it: install -d -m 0711 {dir}")))
}
