//! Comparing two whole disks by digests that come in pages: which groups differ, which blocks of them, and the ranges that this
//! comes to.
//!
//! Groups are counted from the beginning of the disk; those that are zero are not told.

use serde::{Deserialize, Serialize};

use super::{BLOCK_LEN, BlockSize, Digest};

/// The length of a group in bytes, whatever the size of its blocks: it is also what is read at once, and the most that a frame
/// carries. Small enough that frames, buffers and loss of work are small, far above the size where a system call costs anything.
pub const GROUP_LEN: u64 = 1 << 20;

/// How many groups a disk has.
#[must_use]
pub const fn groups_of(disk_size: u64) -> u64 {
    disk_size.div_ceil(GROUP_LEN)
}

/// How many blocks a group of a disk has; none beyond its end.
#[must_use]
pub fn blocks_in(group: u64, disk_size: u64, block: BlockSize) -> usize {
    block.count(disk_size.saturating_sub(group.saturating_mul(GROUP_LEN)).min(GROUP_LEN))
}

/// The digests of a disk's groups from some group on: those that are not zero, with their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPage {
    /// Rising.
    pub groups: Vec<(u64, Digest)>,
    /// The first group that this page says nothing of; none where it reaches the end of the disk.
    pub next: Option<u64>,
}

impl GroupPage {
    /// The first group after those that the page tells of, of a disk of this size; none where the page cannot be one that begins
    /// with the group `from`.
    #[must_use]
    pub fn end(&self, from: u64, disk_size: u64) -> Option<u64> {
        let all = groups_of(disk_size);
        let end = self.next.unwrap_or(all);
        let mut least = from;
        let rising = self.groups.iter().all(|(group, digest)| {
            let fits = *group >= least && *group < end && !digest.is_zero();
            least = group.saturating_add(1);
            fits
        });
        // A page that does not get on would be asked for again for ever.
        (rising && end <= all && (end > from || self.next.is_none())).then_some(end)
    }
}

/// The groups that are not alike in two lists of the same part of two disks, rising.
#[must_use]
pub fn differing_groups(ours: &[(u64, Digest)], theirs: &[(u64, Digest)]) -> Vec<u64> {
    let (mut ours, mut theirs) = (ours.iter().peekable(), theirs.iter().peekable());
    let mut differing = Vec::new();
    loop {
        let group = match (ours.peek(), theirs.peek()) {
            (None, None) => return differing,
            (Some((group, _)), None) | (None, Some((group, _))) => *group,
            (Some((own, _)), Some((other, _))) => *own.min(other),
        };
        let own = ours.next_if(|(number, _)| *number == group);
        let other = theirs.next_if(|(number, _)| *number == group);
        if own != other {
            differing.push(group);
        }
    }
}

/// A run of bytes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Range {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Ranges that differ, in rising order, neighbours merged. All are counted; so that memory is bounded, only the first ones are
/// listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Differences {
    listed: Vec<Range>,
    /// The last one, which may still grow.
    last: Option<Range>,
    unlisted: u64,
    bytes: u64,
}

impl Differences {
    /// As many ranges are listed of a disk; a list that is longer tells nobody more.
    pub const LISTED: usize = 1 << 16;

    /// Notes a range, which begins no earlier than the one before ended.
    pub fn push(&mut self, offset: u64, length: u64) {
        self.bytes += length;
        match &mut self.last {
            _ if length == 0 => {}
            Some(last) if last.offset + last.length == offset => last.length += length,
            last => {
                let before = last.replace(Range { offset, length });
                self.list(before);
            }
        }
    }

    /// Notes the blocks of a group that differ; none if there are not as many digests as the group has blocks.
    #[must_use]
    pub fn push_blocks(
        &mut self,
        group: u64,
        (disk_size, block): (u64, BlockSize),
        ours: &[Digest],
        theirs: &[Digest],
    ) -> Option<()> {
        let blocks = blocks_in(group, disk_size, block);
        if ours.len() != blocks || theirs.len() != blocks {
            return None;
        }
        let start = group * GROUP_LEN;
        let each = ours.iter().zip(theirs);
        for (offset, _) in (start..).step_by(block.in_memory()).zip(each).filter(|(_, (a, b))| a != b) {
            self.push(offset, block.bytes().min(disk_size - offset));
        }
        Some(())
    }

    /// Notes what differs of what two disks hold from `offset` on, in pieces of 64 KiB; none if it is not as much.
    #[must_use]
    pub fn push_bytes(&mut self, offset: u64, ours: &[u8], theirs: &[u8]) -> Option<()> {
        let both = ours.chunks(BLOCK_LEN).zip(theirs.chunks(BLOCK_LEN));
        for (at, (own, other)) in (offset..).step_by(BLOCK_LEN).zip(both) {
            if own != other {
                self.push(at, own.len() as u64);
            }
        }
        (ours.len() == theirs.len()).then_some(())
    }

    /// The ranges, and how many more there are.
    #[must_use]
    pub fn end(mut self) -> (Vec<Range>, u64) {
        let last = self.last.take();
        self.list(last);
        (self.listed, self.unlisted)
    }

    /// Bytes in all of them.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    fn list(&mut self, range: Option<Range>) {
        match range {
            Some(range) if self.listed.len() < Self::LISTED => self.listed.push(range),
            Some(_) => self.unlisted += 1,
            None => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::blocks::{BLOCK, DigestKey, ListKey};

    /// Digests of the blocks of a disk; nought stands for zeros.
    fn disk(blocks: &[u8]) -> Vec<Digest> {
        blocks.iter().map(|block| Digest([*block; 16])).collect()
    }

    fn groups(digests: &[Digest], block: BlockSize) -> Vec<(u64, Digest)> {
        let all = ListKey::of(&DigestKey::new([1; 32])).groups(digests, block);
        (0..).zip(all).filter(|(_, digest)| !digest.is_zero()).collect()
    }

    fn compare(ours: &[Digest], theirs: &[Digest], size: u64, block: BlockSize) -> Differences {
        let mut found = Differences::default();
        for group in differing_groups(&groups(ours, block), &groups(theirs, block)) {
            let first = usize::try_from(group).unwrap() * block.in_group();
            let here = first..first + blocks_in(group, size, block);
            found.push_blocks(group, (size, block), &ours[here.clone()], &theirs[here]).unwrap();
        }
        found
    }

    proptest! {
        #[test]
        fn just_the_blocks_that_differ_are_found(
            blocks in prop::collection::vec((0u8..3, 0u8..3), 1..600),
            shift in 12u32..=20,
            short in 0u64..4096,
        ) {
            let (ours, theirs): (Vec<u8>, Vec<u8>) = blocks.iter().copied().unzip();
            let block = BlockSize::new(1 << shift).unwrap();
            let size = blocks.len() as u64 * block.bytes() - short;
            let found = compare(&disk(&ours), &disk(&theirs), size, block);
            let bytes = found.bytes();
            let (ranges, unlisted) = found.end();
            prop_assert_eq!(unlisted, 0);
            prop_assert_eq!(bytes, ranges.iter().map(|range| range.length).sum::<u64>());
            prop_assert!(ranges.windows(2).all(|pair| pair[0].offset + pair[0].length < pair[1].offset));
            for (offset, (own, other)) in (0..).step_by(block.in_memory()).zip(&blocks) {
                let inside = ranges.iter().any(|range| range.offset <= offset && offset < range.offset + range.length);
                prop_assert_eq!(inside, own != other);
            }
            prop_assert!(ranges.last().is_none_or(|last| last.offset + last.length <= size));
        }
    }

    #[test]
    fn a_page_that_cannot_be_is_seen() {
        let digest = Digest([1; 16]);
        let page =
            |groups: &[u64], next| GroupPage { groups: groups.iter().map(|group| (*group, digest)).collect(), next };
        let size = 10 * GROUP_LEN - 1;
        assert_eq!(page(&[3, 9], None).end(3, size), Some(10));
        assert_eq!(page(&[], Some(4)).end(3, size), Some(4));
        assert_eq!(page(&[], None).end(0, 0), Some(0));
        for (groups, next) in
            [(&[2][..], None), (&[4, 4], None), (&[10], None), (&[5], Some(5)), (&[], Some(3)), (&[], Some(11))]
        {
            assert_eq!(page(groups, next).end(3, size), None, "{groups:?} {next:?}");
        }
        assert_eq!(GroupPage { groups: vec![(3, Digest::ZERO)], next: None }.end(3, size), None);
    }

    #[test]
    fn an_answer_of_another_length_is_no_answer() {
        let mut found = Differences::default();
        let digests = disk(&[1; 16]);
        let two = (2 * BLOCK, BlockSize::default());
        assert_eq!(found.push_blocks(0, two, &digests[..2], &digests[..1]), None);
        assert_eq!(found.push_blocks(0, two, &digests, &digests), None);
        assert_eq!(found.push_blocks(7, two, &[], &[]), Some(()));
    }

    #[test]
    fn bytes_are_compared_block_by_block() {
        let mut found = Differences::default();
        let ours = vec![1; 2 * BLOCK_LEN + 9];
        let mut theirs = ours.clone();
        theirs[BLOCK_LEN - 1] = 2;
        theirs[2 * BLOCK_LEN + 8] = 2;
        assert_eq!(found.push_bytes(GROUP_LEN, &ours, &theirs), Some(()));
        assert_eq!(found.push_bytes(2 * GROUP_LEN, &ours, &ours[1..]), None);
        let (ranges, _) = found.end();
        let expected = [(GROUP_LEN, BLOCK), (GROUP_LEN + 2 * BLOCK, 9)];
        assert_eq!(ranges[..2].iter().map(|range| (range.offset, range.length)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn of_endless_differences_the_first_are_listed_and_all_are_counted() {
        let mut found = Differences::default();
        let count = Differences::LISTED as u64 + 5;
        (0..count).for_each(|index| found.push(index * 2 * BLOCK, BLOCK));
        assert_eq!(found.bytes(), count * BLOCK);
        let (ranges, unlisted) = found.end();
        assert_eq!((ranges.len(), unlisted), (Differences::LISTED, 5));
    }
}
