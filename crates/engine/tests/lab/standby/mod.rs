//! What the tests of syncs share: a machine with a replica on another host, changes at the source, and what the replica holds
//! as its definition says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_clone_core::Result;
use kvm_clone_core::plan::{Candidates, CloneRequest, SyncRequest, Update};
use kvm_clone_engine::{Client, CloneResult, CloneSettings, Prepared, Recovery, VerifyRequest, VerifyResult};
use kvm_clone_lab::{DiskSpec, Fill, FsKind, Host, HostSpec, Lab, Machine, MachineSpec, define_machine};
use tokio_util::sync::CancellationToken;

use crate::common::{self, MIB, silent, spec};
use crate::oracle::digest::digest;
use crate::oracle::{IMAGES, SILENCE, await_dead_man, definitions, keep_what_is_synced};

/// The replica's name.
pub const NAME: &str = "standby";

/// Disks by target device, with a digest of what a guest would read.
pub type Contents = BTreeMap<String, String>;

/// The machine `web1` on alpha, and its replica `standby` on beta.
pub struct Standby {
    pub lab: Arc<Lab>,
    pub alpha: Host,
    pub beta: Host,
    pub source: Machine,
}

impl Standby {
    /// A machine with a qcow2 disk and a raw one, and its replica; none where there can be no lab.
    pub async fn new(test: &str) -> Option<Self> {
        Self::of(test, Self::machine()).await
    }

    fn machine() -> MachineSpec {
        MachineSpec::named("web1")
            .disk(DiskSpec::qcow2("vda", 32 * MIB).fill(Fill::Random { seed: 1, bytes: 4 * MIB }))
            .disk(DiskSpec::raw("vdb", 8 * MIB).fill(Fill::Random { seed: 2, bytes: 2 * MIB }))
    }

    /// Its images lie on storage that can be filled up.
    pub async fn on_small_storage(test: &str, kind: FsKind) -> Option<Self> {
        let standby = Self::unreplicated(test, Self::machine())?;
        standby.beta.small_filesystem(IMAGES, kind, 96 * MIB).unwrap();
        standby.clone().await;
        Some(standby)
    }

    /// Of its host a power cut leaves only what was synced.
    pub async fn on_what_was_synced(test: &str) -> Option<Self> {
        let standby = Self::unreplicated(test, Self::machine())?;
        keep_what_is_synced(&standby.beta, 96);
        standby.clone().await;
        Some(standby)
    }

    pub async fn of(test: &str, machine: MachineSpec) -> Option<Self> {
        let standby = Self::unreplicated(test, machine)?;
        standby.clone().await;
        Some(standby)
    }

    /// Without its replica.
    pub fn unreplicated(test: &str, machine: MachineSpec) -> Option<Self> {
        if !kvm_clone_lab::available(test) {
            return None;
        }
        let lab = Lab::new().unwrap();
        let mut hosts = lab.hosts(vec![HostSpec::named("alpha"), HostSpec::named("beta")]).unwrap();
        let (beta, alpha) = (hosts.pop().unwrap(), hosts.pop().unwrap());
        let source = define_machine(&alpha, machine).unwrap();
        beta.provide_guest().unwrap();
        Some(Self { lab: Arc::new(lab), alpha, beta, source })
    }

    pub async fn clone(&self) {
        let request = CloneRequest { new_name: Some(NAME.parse().unwrap()), ..CloneRequest::default() };
        let client = self.client().await;
        common::clone_with(&client, "alpha", "beta", "web1", request, &CloneSettings::default()).await.unwrap();
    }

    pub async fn client(&self) -> Client {
        let mut options = common::options(&self.lab);
        options.silence = SILENCE;
        Client::new(options).await.unwrap()
    }

    pub async fn prepare(&self, asked: &SyncRequest) -> Result<Prepared> {
        let client = self.client().await;
        client.prepare_sync(&spec("alpha"), &spec("beta"), &"web1".parse()?, asked, Recovery::Act, silent()).await
    }

    pub async fn sync(&self) -> Result<CloneResult> {
        self.sync_with(&SyncRequest::default(), &CloneSettings::default()).await
    }

    pub async fn sync_with(&self, asked: &SyncRequest, settings: &CloneSettings) -> Result<CloneResult> {
        let prepared = self.prepare(asked).await?;
        prepared.execute(settings, silent(), CancellationToken::new()).await
    }

    /// Recovers both hosts; nothing may go wrong.
    pub async fn recover(&self, about: &str) {
        let client = self.client().await;
        for host in ["alpha", "beta"] {
            let left = client.recover(&spec(host), Recovery::Act).await.unwrap();
            assert!(left.iter().all(|entry| entry.error.is_none()), "{about}: {left:?}");
        }
    }

    /// Waits until the agents of a dead controller have ended by themselves.
    pub fn await_dead_man(&self) {
        await_dead_man([&self.alpha, &self.beta]);
    }

    /// Compares the replica with the digests of its point.
    pub async fn verify(&self) -> Result<VerifyResult> {
        self.client().await.verify(&verification(), silent()).await
    }

    /// Writes to a disk of the source, as its guest might have.
    pub fn write(&self, target: &str, commands: &[&str]) {
        write(&self.alpha, self.source.name(), target, commands);
    }

    pub fn source_contents(&self) -> Contents {
        contents(&self.alpha, "web1")
    }

    pub fn replica_contents(&self) -> Contents {
        contents(&self.beta, NAME)
    }

    /// The replica is the source, under its definition, and nothing of ours is left but what may stay.
    pub fn assert_synced(&self) {
        assert_eq!(self.replica_contents(), self.source_contents());
        common::assert_nothing_left(&self.beta);
        common::assert_nothing_left(&self.alpha);
        let files = self.beta.shell("ls -A /var/lib/libvirt/images").unwrap();
        assert!(!files.contains("overlay"), "overlays are left: {files}");
        for image in images(&self.beta, NAME).values() {
            let info = self.beta.exec(&["qemu-img", "info", "--output=json", "-U", &image.0]).unwrap();
            assert!(!info.contains("backing-filename"), "{info}");
        }
    }
}

/// The replica is compared with the digests of its point.
pub fn verification() -> VerifyRequest {
    VerifyRequest { host: spec("beta"), machine: NAME.parse().unwrap(), against: None, full: false, checksum: None }
}

pub fn discarding() -> CloneSettings {
    CloneSettings { discard_target_changes: true, ..CloneSettings::default() }
}

pub fn full() -> SyncRequest {
    SyncRequest { update: Update { candidates: Candidates::All, ..Update::default() }, ..SyncRequest::default() }
}

/// Path and format of each disk of a machine, as its definition says.
pub fn images(host: &Host, machine: &str) -> BTreeMap<String, (String, String)> {
    let domain = kvm_clone_core::domain::Domain::parse(&definitions(host)[machine]).unwrap();
    let image = |disk: &kvm_clone_core::domain::DiskElement| {
        (disk.target.to_string(), (disk.source.clone().unwrap(), disk.format().to_string()))
    };
    domain.data_disks().map(image).collect()
}

/// Writes to a disk of a stopped machine with qemu-io's commands.
pub fn write(host: &Host, machine: &str, target: &str, commands: &[&str]) {
    let (path, format) = &images(host, machine)[target];
    let mut argv = vec!["qemu-io", "-f", format];
    commands.iter().for_each(|command| argv.extend(["-c", command]));
    argv.push(path);
    host.exec(&argv).unwrap();
}

/// What a guest would read, told apart disk by disk.
pub fn contents(host: &Host, machine: &str) -> Contents {
    let images = images(host, machine).into_iter();
    images.map(|(target, (path, format))| (target, image_contents(host, &path, &format))).collect()
}

/// What a guest would read from an image with all that it stands on; told as [`contents`] tells it.
pub fn image_contents(host: &Host, path: &str, format: &str) -> String {
    // Links lead elsewhere from here, and a device does not tell its length.
    if format == "raw" && std::fs::symlink_metadata(host.path(path)).unwrap().is_file() {
        return digest(&host.path(path));
    }
    // Tests look at one host from several threads.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let raw = format!("/var/tmp/contents-{}.raw", NUMBER.fetch_add(1, Ordering::Relaxed));
    host.exec(&["qemu-img", "convert", "-U", "-f", format, "-O", "raw", path, &raw]).unwrap();
    let told = digest(&host.path(&raw));
    std::fs::remove_file(host.path(&raw)).unwrap();
    told
}
