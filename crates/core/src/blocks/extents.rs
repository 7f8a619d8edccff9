//! Runs of bytes of a disk, and what is done with lists of them.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// What the bytes of an extent are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExtentKind {
    /// May hold anything; has to be read.
    Data,
    /// Reads as zeros, without being read.
    Zero,
}

/// A run of bytes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
    /// What it holds.
    pub kind: ExtentKind,
}

impl Extent {
    /// A run of data.
    #[must_use]
    pub const fn data(offset: u64, len: u64) -> Self {
        Self { offset, len, kind: ExtentKind::Data }
    }

    /// A run of zeros.
    #[must_use]
    pub const fn zero(offset: u64, len: u64) -> Self {
        Self { offset, len, kind: ExtentKind::Zero }
    }

    /// The first byte after it. Saturates, because an extent may come from a peer.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// The part of it inside `offset..end`, if there is one.
    #[must_use]
    pub fn within(&self, offset: u64, end: u64) -> Option<Self> {
        let start = self.offset.max(offset);
        let stop = self.end().min(end);
        (start < stop).then(|| Self { offset: start, len: stop - start, kind: self.kind })
    }
}

/// Appends to a list that is in order, merging with the last extent where the two touch and are alike.
pub fn push(list: &mut Vec<Extent>, next: Extent) {
    if next.len == 0 {
        return;
    }
    match list.last_mut() {
        Some(last) if last.kind == next.kind && last.end() == next.offset => last.len += next.len,
        _ => list.push(next),
    }
}

/// The same bytes in order, without overlaps, empty extents or needless splits. Where data and zeros overlap, data
/// wins: reading zeros costs time, skipping data costs data.
#[must_use]
pub fn normalise(extents: &[Extent]) -> Vec<Extent> {
    let data = union(extents, ExtentKind::Data);
    let zero = union(extents, ExtentKind::Zero);
    let mut out = Vec::with_capacity(data.len() + zero.len());
    let mut data_left = data.into_iter().peekable();
    for hole in zero {
        // Data that was taken for an earlier hole may reach into this one.
        let done = out.last().map_or(0, Extent::end).max(hole.offset);
        let mut hole = Extent::zero(done, hole.end().saturating_sub(done));
        while let Some(next) = data_left.next_if(|next| next.offset < hole.end()) {
            push(&mut out, Extent::zero(hole.offset, next.offset.saturating_sub(hole.offset)));
            push(&mut out, next);
            let start = next.end().max(hole.offset);
            hole = Extent::zero(start, hole.end().saturating_sub(start));
        }
        push(&mut out, hole);
    }
    data_left.for_each(|next| push(&mut out, next));
    out
}

/// The extents of one kind, in order and merged.
fn union(extents: &[Extent], kind: ExtentKind) -> Vec<Extent> {
    let mut list: Vec<Extent> = extents.iter().filter(|e| e.kind == kind && e.len > 0).copied().collect();
    list.sort_unstable_by_key(|e| e.offset);
    let mut out: Vec<Extent> = Vec::with_capacity(list.len());
    for next in list {
        match out.last_mut() {
            Some(last) if next.offset <= last.end() => last.len = last.end().max(next.end()) - last.offset,
            _ => out.push(Extent { len: next.end() - next.offset, ..next }),
        }
    }
    out
}

/// The parts of the extents that lie in `[offset, offset + len)`.
#[must_use]
pub fn clip(extents: &[Extent], offset: u64, len: u64) -> Vec<Extent> {
    let end = offset.saturating_add(len);
    extents.iter().filter_map(|extent| extent.within(offset, end)).collect()
}

/// Grows data to whole blocks, at most to the end of the disk; zeros give way. The result is normalised.
#[must_use]
pub fn align_outward(extents: &[Extent], block: NonZeroU64, disk_size: u64) -> Vec<Extent> {
    let block = block.get();
    let grown = extents.iter().filter(|extent| extent.len > 0).map(|extent| match extent.kind {
        ExtentKind::Zero => *extent,
        ExtentKind::Data => {
            let start = extent.offset - extent.offset % block;
            let end = extent.end().checked_next_multiple_of(block).unwrap_or(u64::MAX);
            Extent::data(start, end - start)
        }
    });
    normalise(&grown.filter_map(|extent| extent.within(0, disk_size)).collect::<Vec<_>>())
}

/// How many bytes of the list are data.
#[must_use]
pub fn data_len(extents: &[Extent]) -> u64 {
    extents.iter().filter(|e| e.kind == ExtentKind::Data).fold(0, |sum, e| sum.saturating_add(e.len))
}

/// The unit of scheduling: a run of a disk that one lane carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Segment {
    /// Its number on the disk.
    pub index: u64,
    /// Where it starts.
    pub offset: u64,
    /// How long it is; only the last one of a disk is shorter than the others.
    pub len: u64,
}

/// A disk cut into segments.
pub fn segments(disk_size: u64, segment_len: NonZeroU64) -> impl Iterator<Item = Segment> {
    let each = segment_len.get();
    (0..disk_size.div_ceil(each)).map(move |index| {
        let offset = index * each;
        Segment { index, offset, len: each.min(disk_size - offset) }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_extents() -> impl Strategy<Value = Vec<Extent>> {
        let one = (0u64..400, 0u64..60, any::<bool>());
        prop::collection::vec(one, 0..20).prop_map(|list| {
            list.into_iter().map(|(o, l, data)| if data { Extent::data(o, l) } else { Extent::zero(o, l) }).collect()
        })
    }

    /// What each byte is: the model that all functions here are compared with.
    fn paint(extents: &[Extent]) -> Vec<Option<ExtentKind>> {
        let mut bytes = vec![None; 600];
        for kind in [ExtentKind::Zero, ExtentKind::Data] {
            for e in extents.iter().filter(|e| e.kind == kind) {
                bytes[usize::try_from(e.offset).unwrap()..usize::try_from(e.end()).unwrap()].fill(Some(kind));
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn normalise_keeps_every_byte(list in any_extents()) {
            let out = normalise(&list);
            prop_assert_eq!(paint(&out), paint(&list));
            for pair in out.windows(2) {
                prop_assert!(pair[0].end() <= pair[1].offset);
                prop_assert!(pair[0].end() < pair[1].offset || pair[0].kind != pair[1].kind);
            }
            prop_assert!(out.iter().all(|e| e.len > 0));
            prop_assert_eq!(normalise(&out), out);
        }

        #[test]
        fn clip_keeps_the_inside_only(list in any_extents(), offset in 0u64..500, len in 0u64..200) {
            let mut model = paint(&list);
            for (at, byte) in model.iter_mut().enumerate() {
                let at = at as u64;
                if at < offset || at >= offset + len {
                    *byte = None;
                }
            }
            prop_assert_eq!(paint(&clip(&list, offset, len)), model);
        }

        #[test]
        fn aligned_data_is_whole_blocks(list in any_extents(), block in 1u64..64, size in 0u64..500) {
            let out = align_outward(&list, NonZeroU64::new(block).unwrap(), size);
            for e in &out {
                prop_assert!(e.end() <= size);
                if e.kind == ExtentKind::Data {
                    prop_assert_eq!(e.offset % block, 0);
                    prop_assert!(e.end() % block == 0 || e.end() == size);
                }
            }
            let (before, after) = (paint(&clip(&list, 0, size)), paint(&out));
            for (was, is) in before.iter().zip(&after) {
                prop_assert!(*is == Some(ExtentKind::Data) || was == is);
            }
        }

        #[test]
        fn segments_cover_the_disk_once(size in 0u64..100_000, each in 1u64..5_000) {
            let mut at = 0;
            for (count, segment) in segments(size, NonZeroU64::new(each).unwrap()).enumerate() {
                prop_assert_eq!(segment.index, count as u64);
                prop_assert_eq!(segment.offset, at);
                prop_assert!(segment.len > 0 && segment.len <= each);
                at += segment.len;
            }
            prop_assert_eq!(at, size);
        }

        #[test]
        fn nothing_overflows(o in any::<u64>(), l in any::<u64>(), b in 1u64.., s in any::<u64>()) {
            let list = [Extent::data(o, l), Extent::zero(l, o)];
            let _ = (normalise(&list), clip(&list, s, b), data_len(&list));
            let _ = align_outward(&list, NonZeroU64::new(b).unwrap(), s);
        }
    }

    #[test]
    fn data_is_summed_without_zeros() {
        assert_eq!(data_len(&[Extent::data(0, 3), Extent::zero(3, 9), Extent::data(12, 4)]), 7);
    }
}
