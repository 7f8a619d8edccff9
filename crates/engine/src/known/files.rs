//! What a replica has beside its disks: the variables of its firmware, the state of its TPM. What a sync takes away from it must be
//! what it was at its last point, as the replica's disks must.

use std::collections::BTreeMap;

use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::domain::{Domain, Lineage, TpmState};
use kvm_clone_core::inventory::ImageFormat;
use kvm_clone_core::name::DiskTarget;
use kvm_clone_core::plan::{ClonePlan, FileKind, ReplicaPlan};
use kvm_clone_core::wire::facts::Identity;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use super::{untold, whole_digests};
use crate::host::Host;
use crate::inventory::{self, Site};
use crate::step::sum;
use crate::verify::with_digests;

/// What is known of a replica's files beside its disks.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownFiles {
    /// What identifies those that will become others, by their paths.
    pub(crate) identities: BTreeMap<String, Vec<Identity>>,
    /// SHA-256 of what they hold, in hexadecimal.
    pub(crate) content: BTreeMap<String, String>,
    /// Those that stay as they are, and whose digests hold for the new point too.
    pub(crate) kept: Vec<DiskTarget>,
}

/// A file that a machine has beside its disks, and that its copies get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnFile {
    /// The name of its digests.
    pub(crate) name: DiskTarget,
    pub(crate) what: FileKind,
    pub(crate) path: String,
}

impl OwnFile {
    /// As an agent reads it. Users without rights may write to the directory.
    pub(crate) fn image(&self) -> ImageSpec {
        ImageSpec::new(&self.path, ImageFormat::Raw).without_link()
    }

    /// What it is, in words.
    pub(crate) const fn words(&self) -> &'static str {
        match self.what {
            FileKind::Nvram => "the variables of its firmware",
            FileKind::Tpm => "the state of its TPM",
            FileKind::Medium => "a medium",
        }
    }
}

/// The files of a copy that syncs renew: its firmware's variables, and the state of its TPM where that is its source's.
///
/// # Errors
/// A name that none can have, which is an error of ours.
pub(crate) fn own_files(host: &Host, domain: &Domain, machine: Uuid, lineage: &Lineage) -> Result<Vec<OwnFile>> {
    let (nvram_dir, tpm_dir) = (&host.facts.nvram_dir, &host.facts.tpm_dir);
    let nvram = domain.nvram_file(nvram_dir).map(|(path, _)| ("nvram", FileKind::Nvram, path));
    let tpm = domain.tpm().filter(|_| lineage.policy.tpm == TpmState::Copied);
    let state = tpm.into_iter().flat_map(|tpm| tpm.state_files(tpm_dir, machine));
    let state = state.map(|(name, path)| (name, FileKind::Tpm, path));
    let all = nvram.into_iter().chain(state);
    all.map(|(name, what, path)| Ok(OwnFile { name: name.parse()?, what, path })).collect()
}

/// What is known of one file by its digests.
pub(crate) enum Word {
    /// It is what it was at its last point.
    Same,
    /// It is not.
    Changed,
    /// Nobody can tell.
    Unknown(String),
}

/// Compares a file that is there with the digests of a point.
pub(crate) async fn compare(host: &Host, operation: Uuid, file: &OwnFile, size: u64) -> Result<Word> {
    let kept = match whole_digests(host, operation, &file.name).await? {
        Ok(kept) if kept.size == size => kept,
        Ok(_) => return Ok(Word::Changed),
        Err(why) => return Ok(Word::Unknown(why)),
    };
    let differing = with_digests(&host.control, &file.image(), &kept, &|_| ()).await?.bytes();
    Ok(if differing == 0 { Word::Same } else { Word::Changed })
}

/// Whether there are digests of what a file held at a point.
pub(crate) async fn is_kept(host: &Host, operation: Uuid, file: &OwnFile) -> Result<bool> {
    Ok(whole_digests(host, operation, &file.name).await?.is_ok())
}

/// Looks at the replica's files beside its disks.
///
/// # Errors
/// [`kvm_clone_core::Code::Conflict`] where one that will become another was changed since the last point, or where nobody can tell,
/// unless changes are to be discarded anyway.
pub(super) async fn look(
    source: &Host,
    site: &Site,
    (plan, replica): (&ClonePlan, &ReplicaPlan),
    discard: bool,
) -> Result<KnownFiles> {
    let (host, mut known) = (&site.host, KnownFiles::default());
    let domain = Domain::parse(&replica.before)?;
    let Some(lineage) = domain.lineage() else { return Ok(known) };
    let files = own_files(host, &domain, replica.uuid, &lineage)?;
    let there = inventory::present(host, files.iter().map(|file| file.path.clone()).collect()).await?;
    for file in files {
        if !becomes_another(plan, &file) {
            if !is_copied(plan, &file) && is_kept(host, replica.operation, &file).await? {
                known.kept.push(file.name);
            }
            continue;
        }
        if !there.contains(&file.path) {
            continue;
        }
        let seen = inventory::inspect(host, file.image()).await?;
        if !discard {
            let size = seen.images.first().map_or(0, |image| image.file.length);
            refuse(source, host, (plan, replica), &file, size).await?;
        }
        if file.what == FileKind::Tpm {
            known.content.insert(file.path.clone(), sum(host, file.image(), Algorithm::Sha256).await?);
        }
        known.identities.insert(file.path, seen.identities);
    }
    Ok(known)
}

/// Whether the replica loses what a file of it holds.
fn becomes_another(plan: &ClonePlan, file: &OwnFile) -> bool {
    let is_removed = plan.replaces.as_ref().is_some_and(|replaced| replaced.files.contains(&file.path));
    let is_renewed = plan.files.iter().any(|planned| planned.renews && planned.path == file.path);
    is_removed || is_renewed || plan.dropped_state.contains(&file.path)
}

/// Whether the new point has a file of this name, whose digests are new.
fn is_copied(plan: &ClonePlan, file: &OwnFile) -> bool {
    plan.files.iter().any(|planned| planned.name == file.name.as_str())
}

async fn refuse(
    source: &Host,
    host: &Host,
    (plan, replica): (&ClonePlan, &ReplicaPlan),
    file: &OwnFile,
    size: u64,
) -> Result<()> {
    let error = match compare(host, replica.operation, file, size).await? {
        Word::Same => return Ok(()),
        Word::Changed => changed(host, replica, file),
        Word::Unknown(why) => {
            // What is overwritten with itself is not lost.
            let planned = plan.files.iter().find(|planned| planned.name == file.name.as_str());
            if let Some(planned) = planned.filter(|planned| planned.size == size) {
                let theirs = ImageSpec::new(&planned.source_path, ImageFormat::Raw).without_link();
                let sums = tokio::try_join!(
                    sum(source, theirs, Algorithm::Sha256),
                    sum(host, file.image(), Algorithm::Sha256)
                )?;
                if sums.0 == sums.1 {
                    return Ok(());
                }
            }
            untold(host, replica, &format!("{} ({})", file.words(), file.path), &why)
        }
    };
    Err(error.with("path", &file.path))
}

fn changed(host: &Host, replica: &ReplicaPlan, file: &OwnFile) -> Error {
    let message = format!(
        "{}, {} of replica {}, was changed since its point of {}",
        file.path,
        file.words(),
        replica.name,
        replica.point
    );
    Error::conflict(message)
        .with("vm", &replica.name)
        .with("host", &host.name)
        .help("Somebody started the replica, most likely")
        .help("--discard-target-changes throws it away")
}

/// The names of digests that a copy may have beside those of its disks.
pub(crate) const OWN_FILES: [&str; 4] = ["nvram", "tpm", "tpmvolatile", "tpmsave"];
