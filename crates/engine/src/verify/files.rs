//! The files that a copy has beside its disks, compared with their digests: the variables of its firmware, the state of its TPM.

use kvm_clone_core::Result;
use kvm_clone_core::domain::Lineage;

use super::outcome::{FileState, VerifiedFile};
use super::subject::Subject;
use crate::inventory;
use crate::known::{Word, compare, is_kept};

/// Compares what is there, or should be, with the digests of the machine's last point.
pub(super) async fn with_digests(subject: &Subject, lineage: &Lineage) -> Result<Vec<VerifiedFile>> {
    let (host, mut verified) = (&subject.site.host, Vec::new());
    let there = inventory::present(host, subject.files.iter().map(|file| file.path.clone()).collect()).await?;
    for file in &subject.files {
        let state = if there.contains(&file.path) {
            let seen = inventory::inspect(host, file.image()).await?;
            let size = seen.images.first().map_or(0, |image| image.file.length);
            match compare(host, lineage.operation, file, size).await? {
                Word::Same => FileState::Identical,
                Word::Changed => FileState::Differs,
                Word::Unknown(why) => FileState::Unknown { why },
            }
        } else if is_kept(host, lineage.operation, file).await? {
            FileState::Missing
        } else {
            continue;
        };
        let (name, path) = (file.name.clone(), file.path.clone());
        verified.push(VerifiedFile { name, path, what: file.words(), state });
    }
    Ok(verified)
}
