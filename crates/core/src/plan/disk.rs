//! A disk of a plan: what is read of it, what the copy becomes, and what it stands on at the target.

use serde::Serialize;

use super::chain::{self, Link, Merge};
use crate::domain::WrittenImage;
use crate::inventory::{ImageFacts, ImageFormat};
use crate::name::DiskTarget;

/// A disk that will be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskPlan {
    /// The device as the guest's definition names it.
    pub target: DiskTarget,
    /// The topmost image of the source.
    pub source_path: String,
    /// Its format.
    pub source_format: ImageFormat,
    /// Every image of the chain, the topmost first; no other is ever opened. The copy is one image.
    pub chain: Vec<ChainLink>,
    /// The size that the guest sees.
    pub size: u64,
    /// Bytes of data, at most.
    pub allocated: u64,
    /// The file that the copy becomes.
    pub path: String,
    /// The copy's format.
    pub format: ImageFormat,
    /// The pool that holds it; none where that of a replica's image is no pool's any more.
    pub pool: Option<String>,
    /// Where the image is carried as the file that it is, for the snapshots inside it.
    pub whole: Option<WholeFile>,
    /// The replica's image, on which the copy is an overlay: until it is merged into it, or for good, where the point that it
    /// holds is kept. Or that which is written itself.
    pub base: Option<Base>,
}

/// An image of a replica that is brought to a newer point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Base {
    /// Its path.
    pub path: String,
    /// Its format.
    pub format: ImageFormat,
    /// The size that the guest sees.
    pub size: u64,
    /// Bytes that it takes on disk.
    pub allocated: u64,
    /// The images of kept points that it stands on, the nearest first.
    pub under: Vec<Link>,
    /// What is merged once the new point is there, in this order.
    pub merges: Vec<Merge>,
    /// Whether it is written itself, and no overlay on it.
    pub in_place: bool,
    /// The name by which the definition knows a block device.
    pub device: Option<String>,
}

impl Base {
    /// The image, and those that it stands on.
    pub fn chain(&self) -> impl Iterator<Item = Link> + Clone {
        let Self { path, format, size, allocated, .. } = self;
        let top = Link { path: path.clone(), format: format.clone(), size: *size, allocated: *allocated };
        [top].into_iter().chain(self.under.iter().cloned())
    }

    /// The image as a definition names it.
    #[must_use]
    pub fn written(&self) -> WrittenImage {
        let path = self.device.as_ref().unwrap_or(&self.path).clone();
        WrittenImage { path, format: self.format.clone(), device: self.device.is_some() }
    }
}

impl DiskPlan {
    /// Whether the replica's own image is written.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.base.as_ref().is_some_and(|base| base.in_place)
    }

    /// What the copy is in the end, the topmost image first: where it is an overlay, what is left once all is merged.
    #[must_use]
    pub fn in_the_end(&self) -> Vec<(String, ImageFormat)> {
        let merges = self.base.as_ref().map_or(&[][..], |base| &base.merges);
        chain::merged(&self.links(), merges)
    }

    /// All images of the copy at its commit, the topmost first.
    pub(super) fn links(&self) -> Vec<Link> {
        let (path, format) = (self.path.clone(), self.format.clone());
        let top = Link { path, format, size: self.size, allocated: 0 };
        let own = (!self.is_in_place()).then_some(top);
        own.into_iter().chain(self.base.iter().flat_map(Base::chain)).collect()
    }
}

/// An image file that is carried as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WholeFile {
    /// Its length.
    pub length: u64,
    /// The snapshots inside it.
    pub snapshots: u32,
}

/// An image of a chain, and how it is to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainLink {
    /// Its path.
    pub path: String,
    /// Its format.
    pub format: ImageFormat,
    /// The file that holds its data, where that is another one.
    pub data_file: Option<String>,
}

impl From<&ImageFacts> for ChainLink {
    fn from(image: &ImageFacts) -> Self {
        Self { path: image.path.clone(), format: image.format.clone(), data_file: image.data_file.clone() }
    }
}
