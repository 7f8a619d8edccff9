//! Writing parts of clusters: blocks that are smaller than these.
//!
//! A cluster that is there is written in place. One that is not is made whole, of what the image shows there and of what is written.

use std::ops::Range;

use super::super::{ReadDevice, Result, WriteDevice, check_range};
use super::layout::CLUSTER;
use super::writer::{Qcow2Writer, Shown};

static ZEROS: [u8; 65536] = [0; 65536];

/// A writer that takes parts of clusters. Nobody else may write to a cluster that it writes a part of.
pub struct PartWriter {
    whole: Qcow2Writer,
    /// What is under the image.
    below: Option<Box<dyn ReadDevice>>,
}

impl PartWriter {
    /// Writes to an image that lies over `below`, if over any.
    #[must_use]
    pub fn new(whole: Qcow2Writer, below: Option<Box<dyn ReadDevice>>) -> Self {
        Self { whole, below }
    }

    /// A range as a part of a cluster, whole clusters, and a part of another; each may be empty. The disk's end makes a cluster
    /// whole.
    fn cut(&self, offset: u64, len: u64) -> Result<[Range<u64>; 3]> {
        let size = self.whole.size();
        check_range(self.whole.path(), size, offset, len)?;
        let end = offset + len;
        let first = offset.next_multiple_of(CLUSTER).min(end);
        let last = if end == size { end } else { (end - end % CLUSTER).max(first) };
        Ok([offset..first, first..last, last..end])
    }

    /// Writes a part of a cluster.
    fn write_part(&self, data: &[u8], offset: u64) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        match self.whole.shown(offset)? {
            Shown::Cluster(host) => self.whole.overwrite(data, host + offset % CLUSTER),
            shown => self.make(shown, data, offset),
        }
    }

    /// Makes a part of a cluster zero.
    fn clear_part(&self, part: &Range<u64>) -> Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        let zeros = &ZEROS[..length(part)];
        match self.whole.shown(part.start)? {
            Shown::Zeros => Ok(()),
            _ => self.write_part(zeros, part.start),
        }
    }

    /// The clusters that a range lies in: where they begin, and how long they are.
    fn around(&self, offset: u64, len: u64) -> (u64, u64) {
        let end = (offset + len).next_multiple_of(CLUSTER).min(self.whole.size());
        let start = offset - offset % CLUSTER;
        (start, end.saturating_sub(start))
    }

    /// Makes a cluster that is not there.
    fn make(&self, shown: Shown, data: &[u8], offset: u64) -> Result<()> {
        let start = offset - offset % CLUSTER;
        let cluster = start..(start + CLUSTER).min(self.whole.size());
        let mut content = vec![0; length(&cluster)];
        if let (Shown::Below, Some(below)) = (shown, &self.below) {
            let there = cluster.start..below.size().clamp(cluster.start, cluster.end);
            // Behind its end there is nothing to be read.
            if !there.is_empty() {
                below.read_at(&mut content[..length(&there)], start)?;
            }
        }
        let at = length(&(start..offset));
        content[at..at + data.len()].copy_from_slice(data);
        self.whole.write_at(&content, start)
    }
}

impl WriteDevice for PartWriter {
    fn size(&self) -> u64 {
        self.whole.size()
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let [head, middle, tail] = self.cut(offset, data.len() as u64)?;
        let (first, rest) = data.split_at(length(&head));
        let (whole, last) = rest.split_at(length(&middle));
        self.write_part(first, head.start)?;
        if !whole.is_empty() {
            self.whole.write_at(whole, middle.start)?;
        }
        self.write_part(last, tail.start)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let [head, middle, tail] = self.cut(offset, len)?;
        self.clear_part(&head)?;
        if !middle.is_empty() {
            self.whole.write_zeroes(middle.start, middle.end - middle.start)?;
        }
        self.clear_part(&tail)
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        let (start, len) = self.around(offset, len);
        self.whole.start_writeback(start, len);
    }

    fn write_back(&self, offset: u64, len: u64) -> Result<()> {
        let (start, len) = self.around(offset, len);
        self.whole.write_back(start, len)
    }

    fn sync(&self) -> Result<()> {
        self.whole.sync()
    }
}

/// The length of a range in memory.
fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}
