//! Old points of a replica: which are kept, what that makes of its images, and what is refused.

use super::sync::replicated;
use super::*;
use crate::domain::{KeptImage, KeptPoint};

const TOP: &str = "/images/standby-vda-2.qcow2";
const MIDDLE: &str = "/images/standby-vda-1.qcow2";
const BOTTOM: &str = "/images/standby-vda.qcow2";
const OVERLAY: &str = "/images/standby-vda-deadbeef.overlay";
const KEPT: &str = "/images/standby-vda-deadbeef.qcow2";

fn kept(point: &str, path: &str) -> KeptPoint {
    let image = KeptImage { path: path.to_owned(), format: ImageFormat::Qcow2, apart: false };
    KeptPoint { point: point.to_owned(), images: [("vda".parse().unwrap(), image)].into() }
}

/// A replica with two old points, of an hour and of a day ago.
fn with_points(keep: bool, retention: &str) -> World {
    let mut world = replicated(|_| ());
    let replica = world.target.replica.as_mut().unwrap();
    replica.lineage.points = vec![kept("hour", MIDDLE), kept("day", BOTTOM)];
    replica.ages = vec![Some(60), Some(3600), Some(86_400)];
    let chain = [TOP, MIDDLE, BOTTOM].map(|path| image(path, 1)).to_vec();
    replica.images = [("vda".parse().unwrap(), chain)].into();
    world.target.machines[0].uses.extend([TOP, MIDDLE, BOTTOM].map(str::to_owned));
    world.request.safety = Safety { keep, retention: retention.parse().unwrap() };
    world
}

/// The points that the definition lists, and what the disk lies in: at the commit, and in the end.
fn told(plan: &ClonePlan) -> [(Vec<String>, Vec<String>); 2] {
    assert_eq!(code(plan), 0, "{:?}", plan.refusal());
    [&plan.definition, &plan.target_xml].map(|xml| {
        let xml = xml.as_ref().unwrap();
        let points = Domain::parse(xml).unwrap().lineage().unwrap().points;
        let points = points.iter().map(|kept| format!("{} {}", kept.point, kept.images[&"vda".parse().unwrap()].path));
        let disk = xml.split("<disk ").nth(1).unwrap().split("</disk>").next().unwrap();
        let files = disk.split("<source file='").skip(1).map(|rest| rest.split('\'').next().unwrap().to_owned());
        (points.collect(), files.collect())
    })
}

fn list(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

#[test]
fn a_sync_that_keeps_the_old_point_leaves_its_overlay_where_it_is() {
    let plan = with_points(true, "all").plan();
    let [(points, files), end] = told(&plan);
    assert_eq!(points[1..], [format!("hour {MIDDLE}"), format!("day {BOTTOM}")]);
    assert!(points[0].ends_with(TOP), "{points:?}");
    assert_eq!(files, list(&[KEPT, TOP, MIDDLE, BOTTOM]));
    assert_eq!(end, (points, files), "nothing is merged");
    assert_eq!(plan.replaces.as_ref().unwrap().files, [""; 0]);
    let costs: Vec<u64> = plan.points.kept.iter().map(|kept| kept.bytes).collect();
    assert_eq!(costs, [0, GIB, GIB]);
    insta::assert_snapshot!(plan.describe());
}

#[test]
fn a_plain_sync_is_merged_into_the_topmost_image() {
    let plan = with_points(false, "all").plan();
    let points = vec![format!("hour {MIDDLE}"), format!("day {BOTTOM}")];
    let [commit, end] = told(&plan);
    assert_eq!(commit, (points.clone(), list(&[OVERLAY, TOP, MIDDLE, BOTTOM])));
    assert_eq!(end, (points, list(&[TOP, MIDDLE, BOTTOM])));
}

#[test]
fn points_that_go_are_merged_and_the_newest_of_them_moves() {
    let plan = with_points(true, "2h,2").plan();
    let [commit, end] = told(&plan);
    assert_eq!(plan.points.dropped, ["day"]);
    assert_eq!((commit.0.len(), &commit.0[1]), (2, &format!("hour {MIDDLE}")));
    assert_eq!(commit.1, list(&[KEPT, TOP, MIDDLE, BOTTOM]));
    assert_eq!(end.0[1], format!("hour {BOTTOM}"));
    assert_eq!(end.1, list(&[KEPT, TOP, BOTTOM]));
    // What is merged needs room until it goes.
    assert!(plan.space_needed > with_points(true, "all").plan().space_needed + GIB);
    let none = with_points(false, "0").plan();
    assert_eq!(told(&none)[1], (Vec::new(), list(&[BOTTOM])));
    assert_eq!(none.points.dropped, ["hour", "day"]);
}

#[test]
fn images_that_no_point_lists_are_refused_as_ever() {
    let refused =
        |change: fn(&mut Replica)| code(&with_points(true, "all").with(|w| change(w.target.replica.as_mut().unwrap())));
    assert_eq!(refused(|_| ()), 0);
    assert_eq!(refused(|replica| replica.lineage.points.clear()), 1013);
    assert_eq!(refused(|replica| drop(replica.lineage.points.pop())), 1013);
    assert_eq!(refused(|replica| replica.lineage.points.reverse()), 1013);
    let all = |replica: &mut Replica| replica.images.values_mut().next().unwrap().push(image("/images/base", 1));
    assert_eq!(refused(all), 1013);
    let format = |replica: &mut Replica| replica.images.values_mut().next().unwrap()[2].format = ImageFormat::Raw;
    assert_eq!(refused(format), 1013, "as another format");
    let device = |replica: &mut Replica| replica.images.values_mut().next().unwrap()[2].regular_file = false;
    assert_eq!(refused(device), 1013);
}

#[test]
fn what_was_merged_by_hand_is_apart() {
    let mut world = with_points(true, "all");
    let replica = world.target.replica.as_mut().unwrap();
    replica.images.values_mut().next().unwrap().truncate(1);
    let plan = world.plan();
    assert_eq!(told(&plan)[0].1, list(&[KEPT, TOP]));
    let apart: Vec<bool> =
        plan.points.at_commit.iter().map(|kept| kept.images.values().next().unwrap().apart).collect();
    assert_eq!(apart, [false, true, true]);
}

#[test]
fn nothing_is_dropped_while_another_machine_stands_on_it() {
    let mut world = with_points(false, "0");
    let mut other = existing("other", 5, "/images/other.qcow2");
    other.uses.insert(MIDDLE.to_owned());
    world.target.machines.push(other);
    let plan = world.plan();
    assert_eq!((plan.points.kept.len(), plan.points.dropped.len()), (2, 0));
    assert!(plan.warnings.iter().any(|warning| warning.contains("machine other stands on")), "{:?}", plan.warnings);
}

#[test]
fn new_images_for_all_disks_would_end_what_is_kept() {
    let all = |keep| {
        let mut world = with_points(keep, "all");
        let Existing::Update(update) = &mut world.request.existing else { unreachable!("it is a sync") };
        update.candidates = Candidates::All;
        world
    };
    assert_eq!(code(&all(false).plan()), 1013);
    let World { request, source, target, fresh } = all(true);
    assert_eq!(plan_clone(&request, &source, &target, &fresh).unwrap_err().code.number(), 1007);
}

#[test]
fn more_points_than_can_be_are_refused() {
    let full = |retention: &str| {
        let mut world = with_points(true, retention);
        let replica = world.target.replica.as_mut().unwrap();
        let name = |index: usize| format!("/images/{index}.qcow2");
        replica.lineage.points = (0..MOST_POINTS).map(|index| kept("old", &name(index))).collect();
        replica.ages = vec![Some(60); MOST_POINTS + 1];
        let under = (0..MOST_POINTS).map(|index| image(&name(index), 1));
        replica.images = [("vda".parse().unwrap(), [image(TOP, 1)].into_iter().chain(under).collect())].into();
        world
    };
    assert_eq!(code(&full("all").plan()), 1013);
    let plan = full("32").plan();
    assert_eq!((code(&plan), plan.points.kept.len(), plan.points.dropped.len()), (0, 32, 1));
}

#[test]
fn a_replica_that_stands_on_old_points_is_not_written_in_place() {
    let mut world = with_points(false, "all");
    let Existing::Update(update) = &mut world.request.existing else { unreachable!("it is a sync") };
    update.in_place = true;
    let plan = world.clone().plan();
    assert_eq!(code(&plan), 1013);
    assert!(plan.describe().contains("keeps 2 old point(s), and its disks stand on them"), "{}", plan.describe());
    // What was kept of a disk that stands by itself by now is a file like others.
    let replica = world.target.replica.as_mut().unwrap();
    let image = ImageFacts { format: ImageFormat::Raw, ..image(BOTTOM, 1) };
    let image = ImageFacts { file: FileId { inode: 300, ..image.file }, ..image };
    replica.images = [("vda".parse().unwrap(), vec![image])].into();
    replica.lineage.points.iter_mut().flat_map(|kept| kept.images.values_mut()).for_each(|image| image.apart = true);
    let plan = world.plan();
    assert_eq!((code(&plan), plan.points.kept.len()), (0, 2), "{:?}", plan.refusal());
}
