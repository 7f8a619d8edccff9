//! Comparing the block digests of two ends without sending them all.
//!
//! The blocks of one MiB are a group, however many they are. Where the digests of a group are alike at both ends, its blocks are,
//! and nothing more is asked; so equal disks cost 16 bytes for each MiB, and less where they are zero.

use super::{BlockSize, Digest, DigestKey, ExtentKind};

/// What the key of lists is derived under.
const LIST_CONTEXT: &str = "kvm-clone 2025 digest list v1";

/// The key under which lists of digests are digested. Another than that of blocks: no block's content can pass for a list.
#[derive(Clone)]
pub struct ListKey([u8; 32]);

impl ListKey {
    /// The key of lists that belongs to a key of blocks.
    #[must_use]
    pub fn of(key: &DigestKey) -> Self {
        Self(blake3::derive_key(LIST_CONTEXT, key.bytes()))
    }

    /// One digest for the digests of neighbouring blocks; [`Digest::ZERO`] where all of them are zero.
    #[must_use]
    pub fn list(&self, digests: &[Digest]) -> Digest {
        if digests.iter().all(Digest::is_zero) {
            return Digest::ZERO;
        }
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for digest in digests {
            hasher.update(&digest.0);
        }
        Digest::of_data(hasher.finalize().as_bytes())
    }

    /// The digest of each group; the last one may have fewer blocks.
    #[must_use]
    pub fn groups(&self, digests: &[Digest], block: BlockSize) -> Vec<Digest> {
        digests.chunks(block.in_group()).map(|group| self.list(group)).collect()
    }
}

impl std::fmt::Debug for ListKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ListKey(redacted)")
    }
}

/// How many groups so many blocks have.
#[must_use]
pub const fn group_count(blocks: usize, block: BlockSize) -> usize {
    blocks.div_ceil(block.in_group())
}

/// The blocks of a group among so many.
#[must_use]
pub fn group_blocks(group: u32, blocks: usize, block: BlockSize) -> std::ops::Range<usize> {
    let each = block.in_group();
    let start = usize::try_from(group).unwrap_or(usize::MAX).saturating_mul(each).min(blocks);
    start..start.saturating_add(each).min(blocks)
}

/// Whether these are numbers of groups among so many blocks, rising.
#[must_use]
pub fn are_groups(numbers: impl IntoIterator<Item = u32>, blocks: usize, block: BlockSize) -> bool {
    let mut least = 0;
    numbers.into_iter().all(|number| {
        let fits = number >= least && !group_blocks(number, blocks, block).is_empty();
        least = number.saturating_add(1);
        fits
    })
}

/// What of a list of group digests is told: those that are not zero, with their numbers.
#[must_use]
pub fn told(groups: &[Digest]) -> Vec<(u32, Digest)> {
    (0..).zip(groups.iter().copied()).filter(|(_, digest)| !digest.is_zero()).collect()
}

/// A whole list of group digests from what was told of it; none where that cannot be of so many blocks.
#[must_use]
pub fn hear(told: &[(u32, Digest)], blocks: usize, block: BlockSize) -> Option<Vec<Digest>> {
    let sane = are_groups(told.iter().map(|(number, _)| *number), blocks, block);
    if !sane || told.iter().any(|(_, digest)| digest.is_zero()) {
        return None;
    }
    let mut groups = vec![Digest::ZERO; group_count(blocks, block)];
    for (number, digest) in told {
        *groups.get_mut(usize::try_from(*number).ok()?)? = *digest;
    }
    Some(groups)
}

/// What is known here of the other end's digests, once its groups were heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Our own digests.
    ours: Vec<Digest>,
    /// The other end's, except for the blocks of `wanted`.
    theirs: Vec<Digest>,
    wanted: Vec<u32>,
    block: BlockSize,
}

impl Comparison {
    /// Compares our digests with the other end's groups, of which there are as many.
    #[must_use]
    pub fn new(key: &ListKey, ours: Vec<Digest>, their_groups: &[Digest], block: BlockSize) -> Self {
        let mut theirs = ours.clone();
        let mut wanted = Vec::new();
        for ((number, own), other) in (0..).zip(key.groups(&ours, block)).zip(their_groups) {
            match own == *other {
                true => {}
                // Nothing to ask: every block of it is zero there.
                false if other.is_zero() => theirs[group_blocks(number, ours.len(), block)].fill(Digest::ZERO),
                false => wanted.push(number),
            }
        }
        Self { ours, theirs, wanted, block }
    }

    /// The groups whose block digests have to be asked for, rising.
    #[must_use]
    pub fn wanted(&self) -> &[u32] {
        &self.wanted
    }

    /// Takes the other end's block digests of all wanted groups, in order, and says where the ends differ; none if these
    /// are not as many as were asked for.
    #[must_use]
    pub fn complete(mut self, answer: &[Digest]) -> Option<(Vec<Digest>, Vec<Run>)> {
        let mut rest = answer;
        for number in &self.wanted {
            let blocks = &mut self.theirs[group_blocks(*number, self.ours.len(), self.block)];
            let (here, later) = rest.split_at_checked(blocks.len())?;
            blocks.copy_from_slice(here);
            rest = later;
        }
        let runs = differences(&self.ours, &self.theirs);
        rest.is_empty().then_some((self.ours, runs))
    }
}

/// Neighbouring blocks that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The number of the first one in its segment.
    pub first: usize,
    /// How many there are.
    pub blocks: usize,
    /// What our end has there.
    pub kind: ExtentKind,
}

/// The longest runs of blocks that differ and are alike in being zero or not, in order.
fn differences(ours: &[Digest], theirs: &[Digest]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (first, (own, _)) in ours.iter().zip(theirs).enumerate().filter(|(_, (own, other))| own != other) {
        let kind = if own.is_zero() { ExtentKind::Zero } else { ExtentKind::Data };
        match runs.last_mut() {
            Some(last) if last.kind == kind && last.first + last.blocks == first => last.blocks += 1,
            _ => runs.push(Run { first, blocks: 1, kind }),
        }
    }
    runs
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> ListKey {
        ListKey::of(&DigestKey::new([5; 32]))
    }

    /// All sizes that change how many blocks a group has.
    fn block() -> impl Strategy<Value = BlockSize> {
        (12u32..=20).prop_map(|shift| BlockSize::new(1 << shift).unwrap())
    }

    fn digests(bytes: &[u8]) -> Vec<Digest> {
        bytes.iter().map(|byte| Digest([*byte; 16])).collect()
    }

    /// Two lists of one length that are mostly alike and mostly zero.
    fn two_lists() -> impl Strategy<Value = (Vec<Digest>, Vec<Digest>)> {
        let block = (0u8..3, prop::option::weighted(0.1, 0u8..3));
        prop::collection::vec(block, 0..600).prop_map(|blocks| {
            let ours: Vec<u8> = blocks.iter().map(|(own, _)| *own).collect();
            let theirs: Vec<u8> = blocks.iter().map(|(own, other)| other.unwrap_or(*own)).collect();
            (digests(&ours), digests(&theirs))
        })
    }

    proptest! {
        #[test]
        fn the_ends_find_exactly_what_differs((ours, theirs) in two_lists(), block in block()) {
            let key = key();
            let told = told(&key.groups(&theirs, block));
            let heard = hear(&told, theirs.len(), block).unwrap();
            let comparison = Comparison::new(&key, ours.clone(), &heard, block);
            let wanted = comparison.wanted().to_vec();
            prop_assert!(are_groups(wanted.iter().copied(), ours.len(), block));
            let answer: Vec<Digest> =
                wanted.iter().flat_map(|group| theirs[group_blocks(*group, theirs.len(), block)].to_vec()).collect();
            let too_many = [&answer[..], &[Digest::ZERO]].concat();
            prop_assert_eq!(comparison.clone().complete(&too_many), None);
            if let Some((_, fewer)) = answer.split_last() {
                prop_assert_eq!(comparison.clone().complete(fewer), None);
            }
            let (same, runs) = comparison.complete(&answer).unwrap();
            prop_assert_eq!(&same, &ours);
            let mut merged = theirs.clone();
            for run in &runs {
                for block in run.first..run.first + run.blocks {
                    prop_assert_ne!(ours[block], theirs[block]);
                    prop_assert_eq!(ours[block].is_zero(), run.kind == ExtentKind::Zero);
                    merged[block] = ours[block];
                }
            }
            prop_assert_eq!(merged, ours);
            // No run could be longer, and none comes before an earlier one.
            for pair in runs.windows(2) {
                let end = pair[0].first + pair[0].blocks;
                prop_assert!(end < pair[1].first || (end == pair[1].first && pair[0].kind != pair[1].kind));
            }
        }

        #[test]
        fn a_group_is_its_blocks_in_their_order(
            blocks in prop::collection::vec(0u8..4, 1..=16),
            at in any::<prop::sample::Index>(),
        ) {
            let (key, list) = (key(), digests(&blocks));
            let digest = key.list(&list);
            prop_assert_eq!(digest.is_zero(), list.iter().all(Digest::is_zero));
            let mut other = list.clone();
            other[at.index(list.len())].0[7] ^= 0x80;
            prop_assert_ne!(key.list(&other), digest);
            if !digest.is_zero() {
                prop_assert_ne!(key.list(&[&list[..], &[Digest::ZERO]].concat()), digest);
                let swapped: Vec<Digest> = list.iter().rev().copied().collect();
                prop_assert_eq!(key.list(&swapped) == digest, swapped == list);
            }
        }

        #[test]
        fn rubbish_is_not_heard(
            told in prop::collection::vec((any::<u32>(), any::<[u8; 16]>()), 0..5),
            blocks in 0usize..1000,
            block in block(),
        ) {
            let list: Vec<_> = told.into_iter().map(|(number, digest)| (number, Digest(digest))).collect();
            let rising = list.windows(2).all(|pair| pair[0].0 < pair[1].0);
            let inside = list.iter().all(|(number, _)| (*number as usize) < group_count(blocks, block));
            prop_assert_eq!(hear(&list, blocks, block).is_some(), rising && inside);
        }
    }

    #[test]
    fn a_block_is_never_a_list() {
        let (blocks, digest) = (DigestKey::new([5; 32]), Digest([7; 16]));
        let block = BlockSize::default();
        assert_ne!(blocks.block(&digest.0), key().list(&[digest]));
        assert_eq!(hear(&[(0, Digest::ZERO)], 16, block), None);
        assert!(!are_groups([1, 1], 100, block) && !are_groups([2, 1], 100, block) && are_groups([0, 6], 100, block));
        assert!(!are_groups([u32::MAX], 100, block));
    }
}
