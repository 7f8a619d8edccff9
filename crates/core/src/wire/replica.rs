//! What the control agent is asked about machines that are brought to a newer point: overlays, seals, manifests.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::facts::Identity;
use super::lane::ImageSpec;
use crate::blocks::{BlockSize, DigestKey, KeyId, Root};
use crate::inventory::ImageFormat;
use crate::name::DiskTarget;

/// An image that nobody may write to for a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldImage {
    /// Its path.
    pub path: String,
    /// What it must be still, if that is known.
    pub expected: Option<Identity>,
    /// Whether nobody may read it either.
    pub alone: bool,
}

impl HeldImage {
    /// An image that others may go on reading.
    #[must_use]
    pub const fn shared(path: String, expected: Option<Identity>) -> Self {
        Self { path, expected, alone: false }
    }

    /// An image that nobody else may have open, because it will go.
    #[must_use]
    pub const fn alone(path: String) -> Self {
        Self { path, expected: None, alone: true }
    }
}

/// An overlay over an image of the machine that is merged into it: the new point of one disk, or a point that was kept and is
/// not any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayFile {
    /// The disk.
    pub disk: DiskTarget,
    /// The overlay's path; that of the new point is also among [`super::marker::Marker::finals`].
    pub path: String,
    /// The image that it is merged into: the one under it, once what lies between them is merged.
    pub image: String,
    /// The image's format.
    pub format: ImageFormat,
    /// Images of kept points that this image stands on, the nearest first.
    #[serde(default)]
    pub under: Vec<(String, ImageFormat)>,
    /// An overlay that stands on this one, and whose header names the image instead from then on: whoever follows headers must
    /// not find this one in use.
    #[serde(default)]
    pub above: Option<String>,
    /// Size that the disk shall have, in bytes.
    pub exact_size: u64,
    /// What the overlay was when all that it holds was in the image. As long as it is that, and no definition names it, it is
    /// not needed any more.
    #[serde(default)]
    pub flattened: Option<Identity>,
}

/// A file of the machine that changes with the commit, though no definition names it: right after it, what is staged takes the
/// place of what was there. Such are the states of emulated TPMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewedFile {
    /// Where it is.
    pub path: String,
    /// Where its new content is staged, which is also among [`super::marker::Marker::staging`]; none where the file goes.
    pub staging: Option<String>,
    /// SHA-256 of what it held before, in hexadecimal; none where there was no such file. What holds something else by then is
    /// somebody's, and stays.
    pub before: Option<String>,
}

/// An overlay whose content goes into the image under it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flatten {
    /// The operation whose marker names both.
    pub operation: Uuid,
    /// The overlay, with the image first among the files behind it, and what that stands on.
    pub overlay: ImageSpec,
    /// The overlay over it whose header names the image from then on.
    pub above: Option<String>,
    /// Size that the disk shall have, in bytes. A raw image gets exactly that; overlays have whole sectors.
    pub exact_size: u64,
}

/// What a disk of a replica lies in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskChain {
    /// The disk.
    pub disk: DiskTarget,
    /// Its images, the topmost first.
    pub images: Vec<(String, ImageFormat)>,
}

/// A flattened overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flattened {
    /// What the overlay was then; none where it was gone already. To be written into the marker.
    pub overlay: Option<Identity>,
    /// The image that it was brought into.
    pub image: Rewritten,
    /// The overlay over it, whose header names the image from now on.
    pub above: Option<Rewritten>,
    /// What could not be preserved.
    pub notes: Vec<String>,
}

/// What identifies a file that was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewritten {
    /// Right before that.
    pub before: Identity,
    /// From then on.
    pub after: Identity,
}

/// A seal to be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealOrder {
    /// The operation that made the point.
    pub operation: Uuid,
    /// The disk.
    pub disk: DiskTarget,
    /// The root over its digests.
    pub root: Root,
    /// The key of the digests, by its public name.
    pub key: KeyId,
    /// The image and all files behind it.
    pub image: ImageSpec,
    /// What these files were when their content was the root's, the image first: before they were read, or after they were
    /// written and had got their names. Files that are anything else now are not sealed.
    pub seen: Vec<Identity>,
}

/// A question about a seal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealQuery {
    /// The operation that made the point.
    pub operation: Uuid,
    /// The disk.
    pub disk: DiskTarget,
    /// The image and all files behind it, as they are used now.
    pub image: ImageSpec,
}

/// What a seal is worth now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SealState {
    /// There is none of that operation and disk.
    Absent {
        /// Why one that is there does not count.
        why: Option<String>,
    },
    /// There is one, but the files may hold something else by now.
    Untrusted {
        /// The root of the point.
        root: Root,
        /// The key of its digests.
        key: KeyId,
        /// What is in doubt.
        why: String,
    },
    /// The files hold just the content of that root.
    Trusted {
        /// The root of the point, and of the disk.
        root: Root,
        /// The key of its digests.
        key: KeyId,
    },
}

/// A question about a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestQuery {
    /// Its path.
    pub path: String,
    /// The operation it must be of.
    pub operation: Uuid,
}

/// What a manifest is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManifestState {
    /// There is none.
    Absent,
    /// It is not of that operation, not complete, or damaged.
    Unusable {
        /// What is wrong with it.
        why: String,
    },
    /// All of its digests are there, and have its root.
    Whole {
        /// Size of the disk in bytes.
        disk_size: u64,
        /// The length of the blocks.
        block: BlockSize,
        /// The key of its digests.
        key: DigestKey,
        /// The root over its digests.
        root: Root,
        /// Blocks that hold data.
        data_blocks: u64,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::super::marker::Marker;
    use super::*;

    /// An operation may have been interrupted before the program was renewed.
    #[test]
    fn markers_of_older_versions_are_read() {
        let disk = "vda".parse().unwrap();
        let (path, image) = ("/a/overlay".to_owned(), "/a/image".to_owned());
        let overlay = OverlayFile {
            disk,
            path,
            image,
            format: ImageFormat::Raw,
            under: Vec::new(),
            above: None,
            exact_size: 1000,
            flattened: None,
        };
        let renewed = RenewedFile { path: "/tpm".to_owned(), staging: None, before: None };
        let marker = Marker {
            overlays: vec![overlay],
            outdated: vec!["/old".to_owned()],
            renewed: vec![renewed],
            ..Marker::default()
        };
        let mut text = serde_json::to_value(&marker).unwrap();
        assert_eq!(serde_json::from_value::<Marker>(text.clone()).unwrap(), marker);
        let overlay = text["overlays"][0].as_object_mut().unwrap();
        ["under", "above", "flattened"].iter().for_each(|new| drop(overlay.remove(*new)));
        ["chains", "merging"].iter().for_each(|new| drop(text.as_object_mut().unwrap().remove(*new)));
        assert_eq!(serde_json::from_value::<Marker>(text.clone()).unwrap(), marker);
        for new in ["overlays", "outdated", "directories", "renewed", "in_place", "autostart_off"] {
            text.as_object_mut().unwrap().remove(new);
        }
        assert_eq!(serde_json::from_value::<Marker>(text).unwrap(), Marker::default());
    }
}
