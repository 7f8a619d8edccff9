//! Points of a replica that were kept when it went on to a newer one, as its lineage lists them.
//!
//! Each disk of such a point is an image under the disk's present one: the newer overlays on it leave it as it was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::edit::escape;
use super::tree::Element;
use crate::inventory::ImageFormat;
use crate::name::DiskTarget;

/// A point that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptPoint {
    /// The moment whose content it holds (RFC 3339).
    pub point: String,
    /// The image of each disk that the replica had then.
    pub images: BTreeMap<DiskTarget, KeptImage>,
}

/// An image that holds a disk as of a kept point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptImage {
    /// Its path; every link is resolved.
    pub path: String,
    /// Its format.
    pub format: ImageFormat,
    /// Whether nothing of the replica stands on it any more, because the replica lost the disk: then it is a file by itself.
    pub apart: bool,
}

impl KeptPoint {
    /// The images that the replica's disks stand on.
    pub fn standing(&self) -> impl Iterator<Item = (&DiskTarget, &KeptImage)> {
        self.images.iter().filter(|(_, image)| !image.apart)
    }
}

/// Reads one; what is not wholly ours counts as none, and what stands on its images is then refused.
pub(super) fn read(element: &Element) -> Option<KeptPoint> {
    let image = |child: &Element| {
        let path = child.attr("image").filter(|path| path.starts_with('/'))?.to_owned();
        let format = ImageFormat::named(Some(child.attr("format")?));
        let apart = child.attr("apart") == Some("yes");
        Some((child.attr("target")?.parse().ok()?, KeptImage { path, format, apart }))
    };
    let images = element.children.iter().filter(|child| child.name == "disk").map(image).collect::<Option<_>>()?;
    Some(KeptPoint { point: element.attr("time")?.to_owned(), images })
}

/// One as an element of the lineage.
pub(super) fn render(kept: &KeptPoint) -> String {
    let disk = |(target, image): (&DiskTarget, &KeptImage)| {
        let apart = if image.apart { " apart='yes'" } else { "" };
        let (path, format) = (escape(&image.path), escape(&image.format.to_string()));
        format!("\n    <kvm-clone:disk target='{target}' image='{path}' format='{format}'{apart}/>")
    };
    let disks: String = kept.images.iter().map(disk).collect();
    format!("\n  <kvm-clone:point time='{}'>{disks}\n  </kvm-clone:point>", escape(&kept.point))
}
