//! The images that a disk of a replica stands on, and which of them become one.
//!
//! An image whose content nobody needs any more is the one that the image over it is merged into: so runs of images become
//! one, under the name of the lowest, and what is above reads as before at every moment. Everything is known before anything
//! is done, and doing it once more, in the same order, changes nothing.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::inventory::{ImageFacts, ImageFormat};

/// An image of a replica's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its path; every link is resolved.
    pub path: String,
    /// Its format.
    pub format: ImageFormat,
    /// The size that the guest sees.
    pub size: u64,
    /// Bytes that it takes on disk.
    pub allocated: u64,
}

impl From<&ImageFacts> for Link {
    fn from(image: &ImageFacts) -> Self {
        let (path, format) = (image.path.clone(), image.format.clone());
        Self { path, format, size: image.virtual_size, allocated: image.allocated }
    }
}

/// An image that is merged into one under it, and goes then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Merge {
    /// The image that goes.
    pub overlay: String,
    /// The size that it shows.
    pub size: u64,
    /// Bytes that it takes on disk.
    pub allocated: u64,
    /// The image that gets what it holds.
    pub image: String,
    /// That image's format.
    pub format: ImageFormat,
    /// What that image stands on, the nearest first.
    pub under: Vec<(String, ImageFormat)>,
    /// The image that stands on the one that goes, and is to name the lower one instead.
    pub above: Option<String>,
}

/// What is merged, in the order in which it must be done, of a chain whose topmost image and whose `held` ones keep their
/// content.
#[must_use]
pub(super) fn merges(chain: &[Link], held: &BTreeSet<&str>) -> Vec<Merge> {
    let mut all = Vec::new();
    let mut rest = chain;
    // From below, a run at a time: it begins with an image whose content stays, and goes down to the next one.
    while let Some((bottom, above)) = rest.split_last() {
        let top = rest.iter().rposition(|link| held.contains(link.path.as_str())).unwrap_or(0);
        let under: Vec<_> =
            chain.iter().skip(rest.len()).map(|link| (link.path.clone(), link.format.clone())).collect();
        for (index, link) in above.iter().enumerate().skip(top).rev() {
            let next = index.checked_sub(1).and_then(|next| chain.get(next));
            all.push(Merge {
                overlay: link.path.clone(),
                size: link.size,
                allocated: link.allocated,
                image: bottom.path.clone(),
                format: bottom.format.clone(),
                under: under.clone(),
                above: next.filter(|_| index == top).map(|link| link.path.clone()),
            });
        }
        rest = rest.split_at(top).0;
    }
    all
}

/// What is left of a chain once this is merged, the topmost first.
#[must_use]
pub(super) fn merged(chain: &[Link], merges: &[Merge]) -> Vec<(String, ImageFormat)> {
    let stays = |link: &&Link| merges.iter().all(|merge| merge.overlay != link.path);
    chain.iter().filter(stays).map(|link| (link.path.clone(), link.format.clone())).collect()
}

/// What keeping each of these images costs, which lie in the chain in this order, the topmost first: bytes of what stands over
/// it, and of nothing that is kept over it.
#[must_use]
pub fn costs<'a>(chain: impl IntoIterator<Item = (&'a str, u64)>, kept: &[&str]) -> Vec<u64> {
    let mut costs = vec![0u64; kept.len()];
    let mut next = kept.iter().zip(&mut costs).peekable();
    for (path, allocated) in chain {
        if next.peek().is_some_and(|(image, _)| **image == path) {
            next.next();
        }
        if let Some((_, cost)) = next.peek_mut() {
            **cost = cost.saturating_add(allocated);
        }
    }
    costs
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn chain(names: &str) -> Vec<Link> {
        let link = |name: char| Link { path: name.to_string(), format: ImageFormat::Qcow2, size: 1, allocated: 10 };
        names.chars().map(link).collect()
    }

    /// As `overlay>image[under]above` in the order in which it is done.
    fn told(names: &str, held: &[&str]) -> String {
        let merge = |merge: Merge| {
            let under: String = merge.under.iter().map(|(path, _)| path.as_str()).collect();
            format!("{}>{}[{under}]{}", merge.overlay, merge.image, merge.above.unwrap_or_default())
        };
        merges(&chain(names), &held.iter().copied().collect()).into_iter().map(merge).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_nobody_needs_is_merged_into_from_below() {
        assert_eq!(told("43", &[]), "4>3[]", "a sync that keeps nothing");
        assert_eq!(told("43", &["3"]), "", "one that keeps the point before");
        assert_eq!(told("432", &["2"]), "4>3[2]", "one that leaves what was kept");
        assert_eq!(told("43210", &["3", "2"]), "1>0[] 2>0[]3", "the two oldest points go");
        assert_eq!(told("4321", &["2"]), "2>1[]3 4>3[21]");
        assert_eq!(told("432", &[]), "3>2[] 4>2[]", "all go");
        assert_eq!(told("432", &["3"]), "3>2[]4");
        assert_eq!(told("4", &[]), "");
    }

    #[test]
    fn keeping_a_point_costs_what_stands_over_it() {
        let links = [("4", 1), ("3", 20), ("2", 300), ("1", 4000)];
        assert_eq!(costs(links, &["3", "1"]), [1, 320]);
        assert_eq!(costs(links, &["2"]), [21]);
        assert_eq!(costs(links, &["elsewhere"]), [4321]);
        assert_eq!(costs(links, &[]), [0; 0]);
    }

    /// What each image of a chain holds of a disk of a few blocks, and what is read of it from there down.
    type Files = BTreeMap<String, Vec<Option<u8>>>;

    fn read(files: &Files, chain: &[(String, ImageFormat)]) -> Vec<u8> {
        let block = |at: usize| chain.iter().find_map(|(path, _)| files[path][at]).unwrap_or(0);
        (0..4).map(block).collect()
    }

    fn names(chain: &[Link]) -> Vec<(String, ImageFormat)> {
        chain.iter().map(|link| (link.path.clone(), link.format.clone())).collect()
    }

    proptest! {
        /// Interrupted after any block of any merge, what is above reads the same; done again it is what it should be.
        #[test]
        fn what_stays_reads_the_same_at_every_moment(
            blocks in prop::collection::vec(prop::collection::vec(prop::option::of(1u8..9), 4), 1..7),
            held in prop::collection::vec(any::<bool>(), 7),
            stop in 0usize..40,
        ) {
            let all = chain(&"6543210"[..blocks.len()]);
            let mut files: Files = all.iter().map(|link| link.path.clone()).zip(blocks).collect();
            let before = files.clone();
            let kept: BTreeSet<&str> =
                all.iter().zip(&held).skip(1).filter(|(_, held)| **held).map(|(link, _)| link.path.as_str()).collect();
            let merges = merges(&all, &kept);
            let mut steps = 0;
            for limit in [stop, usize::MAX] {
                for merge in &merges {
                    for at in 0..4 {
                        if steps < limit && let Some(byte) = files[&merge.overlay][at] {
                            files.get_mut(&merge.image).unwrap()[at] = Some(byte);
                        }
                        steps += 1;
                    }
                }
                // By the definition of the commit, which names all of them.
                for (depth, link) in all.iter().enumerate() {
                    if depth == 0 || kept.contains(link.path.as_str()) {
                        prop_assert_eq!(read(&files, &names(&all[depth..])), read(&before, &names(&all[depth..])));
                    }
                }
            }
            // And in the end, by the shorter chain.
            let left = merged(&all, &merges);
            prop_assert_eq!(left.len(), kept.len() + 1);
            prop_assert_eq!(read(&files, &left), read(&before, &names(&all)));
            let stays = all.iter().enumerate().skip(1).filter(|(_, link)| kept.contains(link.path.as_str()));
            for (place, (depth, _)) in stays.enumerate() {
                prop_assert_eq!(read(&files, &left[place + 1..]), read(&before, &names(&all[depth..])));
            }
        }
    }
}
