//! The old points of a replica that a sync keeps, and those that it drops.
//!
//! What is kept is decided here and written into the lineage by the commit; images that no kept point needs are merged
//! afterwards ([`super::chain`]). Images under a replica's disk are opened only where its lineage lists them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::check::Checks;
use super::replica::other_user;
use super::request::{Candidates, Existing, Update};
use super::retention::MOST_POINTS;
use super::{Base, DiskPlan, Facts, chain, lost};
use crate::domain::{KeptImage, KeptPoint};
use crate::error::Error;
use crate::inventory::{ImageFacts, Replica};
use crate::name::DiskTarget;
use crate::size::ByteSize;

/// What becomes of the old points of a replica.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PointsPlan {
    /// Those that stay, the newest first.
    pub kept: Vec<PointPlan>,
    /// The times of those that go once the new point is there.
    pub dropped: Vec<String>,
    /// What the lineage lists from the commit on.
    #[serde(skip)]
    pub(crate) at_commit: Vec<KeptPoint>,
}

/// A point that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PointPlan {
    /// Its moment (RFC 3339).
    pub point: String,
    /// Bytes that keeping it takes. Of the point before this sync, what differs from it comes on top.
    pub bytes: u64,
}

/// Whether every image that a disk stands on is one that the lineage lists, in its order.
pub(super) fn are_ours(replica: &Replica, disk: &DiskTarget, images: &[ImageFacts]) -> bool {
    let mut listed = standing(&replica.lineage.points, disk);
    images.iter().skip(1).all(|image| listed.any(|kept| kept.path == image.path && kept.format == image.format))
}

fn standing<'a>(points: &'a [KeptPoint], disk: &DiskTarget) -> impl Iterator<Item = &'a KeptImage> {
    points.iter().filter_map(move |kept| kept.images.get(disk)).filter(|image| !image.apart)
}

/// What keeps a sync from keeping its points.
pub(super) fn refuse(facts: &Facts<'_>, replica: &Replica, update: Update) -> Option<Error> {
    let (name, points) = (&replica.name, &replica.lineage.points);
    let refuse = |why: String| Error::unsupported(why).with("vm", name).with("host", &facts.target.host_name);
    let drop = "safety.snapshot_retention = 0 has the next sync without --full, --in-place and --safety-snapshot drop all of them";
    let stand = points.iter().filter(|kept| kept.standing().next().is_some()).count();
    if update.candidates == Candidates::All && stand > 0 {
        let message = format!("replica {name} keeps {stand} old point(s), which do not outlive a copy into new images");
        return Some(refuse(message).help(drop));
    }
    if update.in_place && stand > 0 {
        let message = format!(
            "replica {name} keeps {stand} old point(s), and its disks stand on them: they are not written in place"
        );
        return Some(refuse(message).help("Leave --in-place out: its old points stay").help(drop));
    }
    if facts.request.safety.keep && facts.request.safety.retention.kept(&replica.ages) > MOST_POINTS {
        let message = format!("replica {name} keeps {} old points; more than {MOST_POINTS} are too many", points.len());
        return Some(refuse(message).help("Have older ones dropped: safety.snapshot_retention"));
    }
    None
}

/// Which points stay, and what goes.
pub(super) fn plan(facts: &Facts<'_>, disks: &[DiskPlan], checks: &mut Checks) -> PointsPlan {
    let (Existing::Update(update), Some(replica)) = (facts.request.existing, &facts.target.replica) else {
        return PointsPlan::default();
    };
    let all = known(facts, replica, update, disks);
    if all.is_empty() {
        return PointsPlan::default();
    }
    let safety = facts.request.safety;
    let ages = if safety.keep { &replica.ages[..] } else { replica.ages.get(1..).unwrap_or_default() };
    let mut kept = safety.retention.kept(ages).min(all.len());
    if let Some(why) = (kept < all.len()).then(|| in_use(facts, replica, disks)).flatten() {
        checks.warn("points", format!("no old point is dropped: {why}"), None);
        kept = all.len();
    }
    let (kept, dropped) = all.split_at(kept);
    let plan = PointsPlan {
        kept: kept.iter().map(|point| PointPlan { point: point.point.clone(), bytes: 0 }).collect(),
        dropped: dropped.iter().map(|point| point.point.clone()).collect(),
        at_commit: kept.to_vec(),
    };
    with_costs(plan, disks, checks)
}

/// All points that there will be: the present one, where it is to be kept, and those that were kept before. A disk that the
/// replica loses, or that stands on other images by now, is apart.
fn known(facts: &Facts<'_>, replica: &Replica, update: Update, disks: &[DiskPlan]) -> Vec<KeptPoint> {
    let standing: BTreeMap<&DiskTarget, BTreeSet<&str>> = replica
        .images
        .iter()
        .filter(|(target, _)| {
            update.disks_only || disks.iter().any(|disk| disk.target == **target && disk.base.is_some())
        })
        .map(|(target, images)| (target, images.iter().map(|image| image.path.as_str()).collect()))
        .collect();
    let is_apart = |target: &DiskTarget, path: &str| !standing.get(target).is_some_and(|paths| paths.contains(path));
    let mut points = replica.lineage.points.clone();
    for (target, image) in points.iter_mut().flat_map(|kept| &mut kept.images) {
        image.apart = image.apart || is_apart(target, &image.path);
    }
    if facts.request.safety.keep {
        let based = disks.iter().filter_map(|disk| Some((&disk.target, disk.base.as_ref()?)));
        let image =
            |path: &str, format: &_, apart| KeptImage { path: path.to_owned(), format: Clone::clone(format), apart };
        let mut images: BTreeMap<_, _> =
            based.map(|(target, base)| (target.clone(), image(&base.path, &base.format, false))).collect();
        if !update.disks_only {
            let lost =
                lost::left_over(facts).filter_map(|disk| Some((disk, replica.images.get(&disk.target)?.first()?)));
            for (disk, top) in lost {
                images.entry(disk.target.clone()).or_insert_with(|| image(&top.path, &top.format, true));
            }
        }
        points.insert(0, KeptPoint { point: replica.lineage.point.clone(), images });
    }
    points
}

/// Why what a point stands on must stay as it is.
fn in_use(facts: &Facts<'_>, replica: &Replica, disks: &[DiskPlan]) -> Option<String> {
    let based: BTreeSet<&DiskTarget> =
        disks.iter().filter(|disk| disk.base.is_some()).map(|disk| &disk.target).collect();
    let mut others = facts.target.machines.iter().filter(|machine| machine.uuid != replica.uuid);
    if let Some((other, image)) = others.find_map(|other| Some((other, other.unseen.first()?))) {
        return Some(format!("what {image} of machine {} stands on cannot be told", other.name));
    }
    for (target, image) in
        replica.images.iter().flat_map(|(target, images)| images.iter().map(move |image| (target, image)))
    {
        if let Some(other) = other_user(facts, replica, image) {
            return Some(format!("machine {} stands on {}", other.name, image.path));
        }
        let is_listed = standing(&replica.lineage.points, target).any(|kept| kept.path == image.path);
        if is_listed && !based.contains(target) {
            return Some(format!("disk {target} is left alone, and stands on {}", image.path));
        }
    }
    None
}

/// What of a disk's images keeps its content because of these points.
pub(super) fn held<'a>(points: &'a [KeptPoint], disk: &DiskTarget) -> BTreeSet<&'a str> {
    standing(points, disk).map(|image| image.path.as_str()).collect()
}

fn with_costs(mut plan: PointsPlan, disks: &[DiskPlan], checks: &mut Checks) -> PointsPlan {
    for disk in disks {
        let kept = plan.at_commit.iter().enumerate();
        let listed =
            kept.filter_map(|(at, kept)| Some((at, kept.images.get(&disk.target).filter(|image| !image.apart)?)));
        let (places, paths): (Vec<usize>, Vec<&str>) = listed.map(|(at, image)| (at, image.path.as_str())).unzip();
        let links: Vec<chain::Link> = disk.base.iter().flat_map(Base::chain).collect();
        let links = links.iter().map(|link| (link.path.as_str(), link.allocated));
        for (at, cost) in places.into_iter().zip(chain::costs(links, &paths)) {
            plan.kept.get_mut(at).into_iter().for_each(|point| point.bytes = point.bytes.saturating_add(cost));
        }
    }
    let (kept, dropped) = (plan.kept.len(), plan.dropped.len());
    let bytes = ByteSize(plan.kept.iter().map(|point| point.bytes).sum());
    let dropped =
        if dropped == 0 { String::new() } else { format!("; {dropped} dropped: {}", plan.dropped.join(", ")) };
    checks.ok("points", format!("{kept} old point(s) kept, which take {bytes} beside what differs now{dropped}"));
    plan
}
