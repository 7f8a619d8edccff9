//! A disk as it was, seen as the larger one that it becomes.

use std::sync::Arc;

use kvm_clone_core::blocks::{Extent, extents};

use crate::device::{ReadDevice, Result};

/// A disk with zeros behind its end.
pub(super) struct Grown {
    disk: Arc<dyn ReadDevice>,
    size: u64,
}

impl Grown {
    /// The disk as one of `size` bytes, which are no fewer than it has.
    pub(super) fn to(disk: Arc<dyn ReadDevice>, size: u64) -> Self {
        Self { disk, size }
    }

    /// How much of a range lies on the disk itself.
    fn inside(&self, offset: u64, len: u64) -> u64 {
        self.disk.size().saturating_sub(offset).min(len)
    }
}

impl ReadDevice for Grown {
    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let inside = self.inside(offset, len);
        let mut list = if inside > 0 { self.disk.extents(offset, inside)? } else { Vec::new() };
        extents::push(&mut list, Extent::zero(offset + inside, len - inside));
        Ok(list)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let inside = usize::try_from(self.inside(offset, buf.len() as u64)).unwrap_or(buf.len());
        let (disk, zeros) = buf.split_at_mut(inside);
        zeros.fill(0);
        if disk.is_empty() { Ok(()) } else { self.disk.read_at(disk, offset) }
    }

    fn drop_cache(&self, offset: u64, len: u64) {
        self.disk.drop_cache(offset, self.inside(offset, len));
    }
}
