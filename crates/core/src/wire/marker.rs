//! The marker: what an operation writes down on a host before it makes anything there.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::facts::Identity;
use super::replica::{DiskChain, OverlayFile, RenewedFile};

/// The note on a host that says what an operation makes there, so that anybody can finish or undo it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Marker {
    /// The operation.
    pub operation: Uuid,
    /// Host and machine it copies from, for people.
    pub source: String,
    /// Name of the machine it makes.
    pub machine: String,
    /// UUID of the machine it makes.
    pub uuid: Uuid,
    /// Lock keys on this host.
    pub keys: Vec<String>,
    /// Staging files, removed by undo.
    pub staging: Vec<String>,
    /// Files under their final names, removed by undo unless a definition made by this operation stands.
    pub finals: Vec<FinalFile>,
    /// Directories made for them, the outermost first; undo removes those that are empty.
    #[serde(default)]
    pub directories: Vec<String>,
    /// Pools that hold the files.
    pub pools: Vec<String>,
    /// Manifests.
    pub manifests: Vec<String>,
    /// Whether the machine is a replica that is brought to a newer point, not a new one.
    #[serde(default)]
    pub sync: bool,
    /// Overlays over images of the machine that are merged into these, in this order. Which of them its definition names, tells
    /// whether they count: one that it names is flattened, one that nothing names is removed. An overlay that stays, because the
    /// point under it is kept, is not among them.
    #[serde(default)]
    pub overlays: Vec<OverlayFile>,
    /// Whether overlays are being merged, or were: from then on they must not go before it is done.
    #[serde(default)]
    pub merging: bool,
    /// What the disks that have such overlays lie in once these are merged.
    #[serde(default)]
    pub chains: Vec<DiskChain>,
    /// Images of the machine that are written in place. They are its own: nobody removes them.
    #[serde(default)]
    pub in_place: Vec<String>,
    /// Files of the machine that no definition names, and that become those of the new point right after it.
    #[serde(default)]
    pub renewed: Vec<RenewedFile>,
    /// Manifests and seals of the point before, removed once the new definition stands; those of disks before these are
    /// written in place.
    #[serde(default)]
    pub outdated: Vec<String>,
    /// Files of the replaced machine, removed once the new definition stands.
    pub replaced: Vec<String>,
    /// Whether the machine is still to be kept from starting with its host, because the replaced one did: set before the new
    /// definition, and taken back once that is done, so that nobody's later word is undone.
    #[serde(default)]
    pub autostart_off: bool,
    /// When it began, RFC 3339.
    pub created: String,
}

impl Marker {
    /// What is removed once the new definition stands, beside files of the machine before that nothing uses: overlays that are
    /// merged, and what was kept of the point before.
    #[must_use]
    pub fn outlived(&self) -> Vec<String> {
        let overlays = self.overlays.iter().map(|overlay| overlay.path.clone()).collect();
        [overlays, self.outdated.clone(), self.staging.clone()].concat()
    }

    /// Whether an image may hold a part of what an overlay holds, and not all of it.
    #[must_use]
    pub fn is_half_merged(&self) -> bool {
        self.merging && self.overlays.iter().any(|overlay| overlay.flattened.is_none())
    }

    /// The final names that files have before the commit.
    #[must_use]
    pub fn placed(&self) -> Vec<String> {
        let is_renewed = |path: &String| self.renewed.iter().any(|file| file.path == *path);
        self.finals.iter().map(|file| &file.path).filter(|path| !is_renewed(path)).cloned().collect()
    }

    /// What undoing removes beside files that have their final names, in order: a directory goes after what is in it.
    #[must_use]
    pub fn staged(&self) -> Vec<String> {
        let directories = self.directories.iter().rev().cloned().collect();
        [self.staging.clone(), self.manifests.clone(), directories].concat()
    }
}

/// A file that gets its final name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalFile {
    /// The final name.
    pub path: String,
    /// What tells the complete file from others. Until it is known, and where another file has the name, what is there is
    /// not ours.
    pub identity: Option<Identity>,
}
