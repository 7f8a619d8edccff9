//! Trusted platform modules: formatdomain, "TPM device". libvirt keeps the state of an emulated one by the machine's UUID.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Domain;
use super::identity::Identity;
use super::refuse::{cannot, cannot_carry};
use super::tree::Element;
use crate::error::Error;

/// What the emulated TPM of the copy holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TpmState {
    /// Nobody said it: nothing, but for a replica somebody has to say it.
    #[default]
    Unsaid,
    /// Nothing (`--tpm new`).
    New,
    /// What the source's holds (`--tpm copy`).
    Copied,
}

/// An emulated TPM whose state libvirt keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmulatedTpm {
    version: Version,
    /// The secret that its state is encrypted with.
    pub secret: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1_2,
    V2_0,
}

impl EmulatedTpm {
    /// Where the state is, in the directory that libvirt has for the states of all machines: `qemu_tpm.c` of libvirt,
    /// `qemuTPMEmulatorStorageBuildPath`.
    #[must_use]
    pub fn state_dir(&self, all: &str, machine: Uuid) -> String {
        let version = match self.version {
            Version::V1_2 => "tpm1.2",
            Version::V2_0 => "tpm2",
        };
        format!("{all}/{machine}/{version}")
    }

    /// The files of which a state consists, each with a name for people; not all of them need be there. `swtpm_nvstore_dir.c`
    /// of swtpm names them.
    #[must_use]
    pub fn state_files(&self, all: &str, machine: Uuid) -> [(&'static str, String); 3] {
        let dir = self.state_dir(all, machine);
        let prefix = match self.version {
            Version::V1_2 => "tpm-00",
            Version::V2_0 => "tpm2-00",
        };
        [("tpm", "permall"), ("tpmvolatile", "volatilestate"), ("tpmsave", "savestate")]
            .map(|(name, part)| (name, format!("{dir}/{prefix}.{part}")))
    }
}

/// The machine's emulated TPM; one whose state is not libvirt's to keep is refused.
pub(super) fn read(domain: &Domain) -> Option<EmulatedTpm> {
    let backend =
        domain.devices_named("tpm").filter_map(|tpm| tpm.child("backend")).find(|backend| is_ours(backend))?;
    let version = version(backend)?;
    Some(EmulatedTpm { version, secret: backend.attr_at(&["encryption"], "secret").map(str::to_owned) })
}

fn is_ours(backend: &Element) -> bool {
    backend.attr("type") == Some("emulator") && backend.child("source").is_none()
}

/// libvirt writes the version into every definition; where it did not, it took this one.
fn version(backend: &Element) -> Option<Version> {
    match backend.attr("version") {
        Some("1.2") => Some(Version::V1_2),
        Some("2.0") | None => Some(Version::V2_0),
        Some(_) => None,
    }
}

/// Modules whose state is not the machine's own, or lies where two machines would meet in it.
pub(super) fn refusals(domain: &Domain) -> Vec<Error> {
    let refuse = |tpm: &Element| {
        let by_hand = |what: String| Some(cannot(what, "Copy the machine by hand").with("device", "tpm"));
        let backend = tpm.child("backend")?;
        match backend.attr("type") {
            Some("passthrough") => {
                let help = "Leave it out with --drop-hostdev";
                Some(cannot_carry(tpm, "the machine uses the TPM of its host", help))
            }
            Some("emulator") | None if backend.child("source").is_some() => by_hand(
                "the state of the machine's TPM lies at a place of its own, where two machines would meet".into(),
            ),
            Some("emulator") | None if version(backend).is_none() => {
                by_hand(format!("the machine's TPM has the version {:?}", backend.attr("version").unwrap_or_default()))
            }
            Some("emulator") | None => None,
            Some(other) => by_hand(format!("the machine's TPM is {other:?}, outside of libvirt")),
        }
    };
    domain.devices_named("tpm").filter_map(refuse).collect()
}

/// A replica is to stand in for its source, which it cannot without the source's secrets: that must be somebody's word.
pub(super) fn refuse_unsaid(domain: &Domain, identity: Identity, wanted: TpmState) -> Option<Error> {
    let needs_word = read(domain).is_some() && identity == Identity::Kept && wanted == TpmState::Unsaid;
    needs_word.then(|| {
        cannot(
            "the machine has a TPM, and nobody said whether the replica gets its state or an empty one",
            "Say --tpm copy, which copies the state while the machine is stopped, or --tpm new for an empty one",
        )
        .with("device", "tpm")
    })
}
