//! Files that a machine has beside its disks, carried as they are: the variables of its firmware, the state of its TPM,
//! the media in its drives.

mod media;
mod nvram;
mod tpm;

use serde::Serialize;
use uuid::Uuid;

use super::check::Checks;
use super::request::{Existing, Update};
use super::{Facts, Replaced};
use crate::error::{Code, Error};
use crate::inventory::ImageFacts;
pub use media::is_copied_medium;
pub use tpm::tpm_files;

/// A file that will be copied byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FilePlan {
    /// What it is.
    pub what: FileKind,
    /// What it is called where progress is told, and no disk is.
    pub name: String,
    /// Its path at the source.
    pub source_path: String,
    /// The file that the copy becomes.
    pub path: String,
    /// Its length.
    pub size: u64,
    /// Bytes of data, at most.
    pub allocated: u64,
    /// The pool that holds it, where it is one's.
    pub pool: Option<String>,
    /// Whether it takes the place of what the replica has under this path, right after the definition of its new point.
    pub renews: bool,
}

/// What a file is to its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// Variables of UEFI firmware.
    Nvram,
    /// State of an emulated TPM.
    Tpm,
    /// What is in a CD-ROM or floppy drive.
    Medium,
}

/// A directory that will be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DirectoryPlan {
    /// Its path.
    pub path: String,
    /// Whether only the emulator of the TPM may enter it.
    pub private: bool,
}

/// What becomes of a machine's files.
#[derive(Default)]
pub(super) struct Files {
    pub(super) carried: Vec<FilePlan>,
    pub(super) directories: Vec<DirectoryPlan>,
    /// Files of the replica's TPM that the source's has not.
    pub(super) dropped_state: Vec<String>,
    /// The path of the copy's own variables, whether there are any yet or not.
    pub(super) nvram: Option<String>,
}

pub(super) fn place(facts: &Facts<'_>, uuid: Uuid, replaces: Option<&Replaced>, checks: &mut Checks) -> Files {
    // A definition that stays as it is names no other files either.
    if matches!(facts.request.existing, Existing::Update(Update { disks_only: true, .. })) {
        return Files::default();
    }
    let mut files = nvram::place(facts, replaces, checks);
    tpm::place(facts, uuid, &mut files, checks);
    files.carried.extend(media::place(facts, replaces, checks));
    files
}

/// Every path that [`place`] may choose or wants to know of.
pub(super) fn candidates(facts: &Facts<'_>) -> Vec<String> {
    [nvram::candidates(facts), tpm::candidates(facts), media::candidates(facts)].concat()
}

fn carried(what: FileKind, name: &str, file: &ImageFacts, path: String) -> FilePlan {
    let source_path = file.path.clone();
    let size = file.file.length;
    FilePlan { what, name: name.to_owned(), source_path, path, size, allocated: size, pool: None, renews: false }
}

fn taken(facts: &Facts<'_>, path: &str, owner: &str) -> Error {
    Error::new(Code::VmExists, format!("{path} is there already{owner}; it is never overwritten"))
        .with("path", path)
        .with("host", &facts.target.host_name)
}
