//! Verification: the disks of a stopped machine, and the files beside them, compared with the digests of its last point, or with those of another machine.
//!
//! 1. [`subject`] finds the machines, takes their locks, and looks at their disks;
//! 2. [`compare`] compares two disks, or a disk and its manifest, group by group of blocks;
//! 3. the machines are looked at again: what was written to meanwhile proves nothing.
//!
//! Nothing is made anywhere, so there is nothing to undo.

mod compare;
mod files;
mod outcome;
mod subject;

use std::time::Instant;

use kvm_clone_core::blocks::BlockSize;
use kvm_clone_core::blocks::compare::Differences;
use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::event::{Event, Phase};
use kvm_clone_core::name::{DiskTarget, SourceName};
use kvm_clone_core::wire::verify::{DigestQuery, Digested};
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use crate::client::HostSpec;
use crate::clone::{Events, random_key};
use crate::inventory::Site;
use crate::known::{KeptDigests, kept_digests};
use crate::outcome::Checksum;
use crate::phases::Phases;
use crate::step::sum;
pub(crate) use compare::with_digests;
use compare::{Bytes, Digests, by_digests};
pub use outcome::{Against, FileState, Method, VerifiedDisk, VerifiedFile, VerifiedSide, VerifyResult};
use subject::{Subject, SubjectDisk};

/// What is to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyRequest {
    /// The host of the machine.
    pub host: HostSpec,
    /// The machine.
    pub machine: SourceName,
    /// The machine that it is compared with; none compares it with the digests of its last point.
    pub against: Option<(HostSpec, SourceName)>,
    /// Whether the bytes themselves are compared, not their digests. Only between two machines.
    pub full: bool,
    /// What whole disks are summed up with: they are read once more.
    pub checksum: Option<Algorithm>,
}

impl VerifyRequest {
    /// Refuses what cannot be, before any connection.
    pub(crate) fn check(&self) -> Result<()> {
        if self.full && self.against.is_none() {
            return Err(Error::validation(
                "the digests of a point are all that is known of it: there are no bytes to compare with",
            )
            .with("argument", "--full")
            .help("Compare with another machine: --against HOST VM --full")
            .help("Or leave out --full: every block is read, and its digest compared"));
        }
        Ok(())
    }
}

/// Compares. `begun` is when the operation began, with its phases until now.
pub(crate) async fn verify(
    request: &VerifyRequest,
    site: Site,
    other: Option<Site>,
    begun: (Instant, Phases),
    events: Events,
) -> Result<VerifyResult> {
    let (started, mut phases) = begun;
    let operation = Uuid::now_v7();
    phases.enter(Phase::Prepare, &events);
    let other = other.zip(request.against.as_ref().map(|(_, name)| name));
    let (ours, theirs) = subject::take(operation, (site, &request.machine), other).await?;
    let work = Verifying { request, ours, theirs, events: events.clone() };
    phases.enter(Phase::Compare, &events);
    let compared = work.compare().await;
    phases.enter(Phase::Finish, &events);
    let Compared { against, disks, files } = subject::if_unchanged(compared, &work.ours, work.theirs.as_ref()).await?;
    Ok(VerifyResult {
        operation_id: operation,
        success: disks.iter().all(|disk| disk.identical) && files.iter().all(VerifiedFile::is_well),
        vm_name: work.ours.name.clone(),
        host: work.ours.site.host.name.clone(),
        against,
        method: if request.full { Method::Bytes } else { Method::Digests },
        duration: started.elapsed().as_secs_f64(),
        bytes_compared: disks.iter().map(|disk| disk.bytes_compared).sum(),
        bytes_differing: disks.iter().map(|disk| disk.bytes_differing).sum(),
        disks,
        files,
        phases: phases.close(0),
        timestamp: jiff::Timestamp::now().to_string(),
    })
}

struct Verifying<'a> {
    request: &'a VerifyRequest,
    ours: Subject,
    theirs: Option<Subject>,
    events: Events,
}

/// What comparing came to.
struct Compared {
    against: Against,
    disks: Vec<VerifiedDisk>,
    files: Vec<VerifiedFile>,
}

impl Verifying<'_> {
    async fn compare(&self) -> Result<Compared> {
        match &self.theirs {
            None => self.with_digests().await,
            Some(theirs) => self.with_machine(theirs).await,
        }
    }

    /// Each disk with its manifest, then the files beside them. All manifests are looked at before any disk is read.
    async fn with_digests(&self) -> Result<Compared> {
        let lineage = self.ours.lineage.as_ref().ok_or_else(|| no_copy(&self.ours))?;
        let mut kept = Vec::new();
        for disk in &self.ours.disks {
            let found = kept_digests(&self.ours.site.host, lineage.operation, &disk.target, disk.size).await?;
            kept.push(found.and_then(|kept| fits(disk, kept)).map_err(|why| no_digests(&self.ours, disk, &why))?);
        }
        for (disk, kept) in self.ours.disks.iter().zip(&kept) {
            self.begin(&disk.target, kept.size);
        }
        let mut verified = Vec::new();
        for (disk, kept) in self.ours.disks.iter().zip(kept) {
            let control = &self.ours.site.host.control;
            let progress = self.progress(&disk.target, kept.size);
            let found = with_digests(control, &disk.image, &kept, &progress).await;
            let found = found.map_err(|error| error.with("disk", &disk.target))?;
            let KeptDigests { manifest, size, .. } = kept;
            let sides =
                (Some(self.side(&self.ours, disk).await?), Some(VerifiedSide { path: manifest, size, checksum: None }));
            verified.push(VerifiedDisk::compared(&disk.target, sides, size, found));
        }
        let (operation_id, point) = (lineage.operation, lineage.point.clone());
        let files = files::with_digests(&self.ours, lineage).await?;
        Ok(Compared { against: Against::Digests { operation_id, point }, disks: verified, files })
    }

    /// Disks of the same target device with each other. Files beside the disks are each machine's own.
    async fn with_machine(&self, theirs: &Subject) -> Result<Compared> {
        let key = random_key()?;
        let pairs = subject::pairs(&self.ours, theirs);
        for (disk, pair) in &pairs {
            self.begin(disk, common(pair));
        }
        let mut verified = Vec::new();
        for (target, pair) in pairs {
            let size = common(&pair);
            let found = match pair {
                (Some(our_disk), Some(their_disk)) => {
                    let progress = self.progress(&target, size);
                    let found = if self.request.full {
                        let bytes = |of: &Subject, disk: &SubjectDisk| Bytes::of(&of.site.host.control, &disk.image);
                        compare::by_bytes(&bytes(&self.ours, our_disk), &bytes(theirs, their_disk), size, &progress)
                            .await
                    } else {
                        let digests = |of: &Subject, disk: &SubjectDisk| Digests {
                            control: of.site.host.control.clone(),
                            query: DigestQuery {
                                of: Digested::Disk(disk.image.clone()),
                                key: key.clone(),
                                block: BlockSize::default(),
                                size,
                            },
                        };
                        by_digests(&digests(&self.ours, our_disk), &digests(theirs, their_disk), size, &progress).await
                    };
                    found.map_err(|error| error.with("disk", &target))?
                }
                _ => Differences::default(),
            };
            let sides = tokio::try_join!(self.side_of(&self.ours, pair.0), self.side_of(theirs, pair.1))?;
            verified.push(VerifiedDisk::compared(&target, sides, size, found));
        }
        let (host, vm_name) = (theirs.site.host.name.clone(), theirs.name.clone());
        Ok(Compared { against: Against::Machine { host, vm_name }, disks: verified, files: Vec::new() })
    }

    fn begin(&self, disk: &DiskTarget, size: u64) {
        (self.events)(Event::Disk { disk: disk.clone(), bytes_total: size });
    }

    fn progress(&self, disk: &DiskTarget, size: u64) -> impl Fn(u64) {
        let (events, disk) = (self.events.clone(), disk.clone());
        move |done| events(Event::Progress { disk: disk.clone(), bytes_done: done, bytes_total: size })
    }

    async fn side_of(&self, subject: &Subject, disk: Option<&SubjectDisk>) -> Result<Option<VerifiedSide>> {
        match disk {
            Some(disk) => self.side(subject, disk).await.map(Some),
            None => Ok(None),
        }
    }

    async fn side(&self, subject: &Subject, disk: &SubjectDisk) -> Result<VerifiedSide> {
        let checksum = match self.request.checksum {
            None => None,
            Some(algorithm) => {
                let summed = sum(&subject.site.host, disk.image.clone(), algorithm).await;
                let value = summed.map_err(|error| error.with("disk", &disk.target))?;
                Some(Checksum { algorithm: algorithm.word(), value })
            }
        };
        Ok(VerifiedSide { path: disk.image.path.clone(), size: disk.size, checksum })
    }
}

/// Bytes that both disks have.
fn common(pair: &(Option<&SubjectDisk>, Option<&SubjectDisk>)) -> u64 {
    match pair {
        (Some(ours), Some(theirs)) => ours.size.min(theirs.size),
        _ => 0,
    }
}

/// Digests of a disk that has as much as they tell of.
fn fits(disk: &SubjectDisk, kept: KeptDigests) -> Result<KeptDigests, String> {
    if disk.size >= kept.size {
        return Ok(kept);
    }
    Err(format!("the disk has {} bytes, its digests are of {}", disk.size, kept.size))
}

fn no_copy(subject: &Subject) -> Error {
    let (name, host) = (&subject.name, &subject.site.host.name);
    Error::unsupported(format!(
        "machine {name} on {host} was not copied by kvm-clone: there are no digests to compare it with"
    ))
    .with("vm", name)
    .with("host", host)
    .help(format!("Compare it with another machine: kvm-clone verify {host} {name} --against HOST VM"))
}

fn no_digests(subject: &Subject, disk: &SubjectDisk, why: &str) -> Error {
    let (name, host, target) = (&subject.name, &subject.site.host.name, &disk.target);
    let source =
        subject.lineage.as_ref().map_or(String::new(), |source| format!("{} {}", source.host_name, source.name));
    Error::unsupported(format!("disk {target} of {name} on {host} cannot be verified: {why}"))
        .with("vm", name)
        .with("host", host)
        .with("disk", target)
        .help(format!("Compare it with its source: kvm-clone verify {host} {name} --against {source}"))
        .help("A disk that was added to the copy since has no digests, nor has one whose image was carried with its snapshots")
}
