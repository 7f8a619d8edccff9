//! Old points of a replica are kept when it goes on to a newer one, as long as is said, and are found as they were.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::{MIB, number, spec};
use crate::oracle::strike::{At, agents_die, loses_power, struck_while, sync_moments};
use crate::oracle::{PATIENCE, assert_boots, definitions};
use crate::standby::{Contents, NAME, Standby, discarding, full, image_contents, images, write};
use kvm_clone_core::domain::{Domain, KeptPoint};
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::{CloneRequest, Existing, Retention, Safety, SyncRequest};
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{CloneResult, CloneSettings, Recovery, Then, Way};
use kvm_clone_lab::{DiskSpec, MachineSpec, fault};

fn asked(keep: bool, retention: &str) -> SyncRequest {
    SyncRequest { safety: Safety { keep, retention: retention.parse().unwrap() }, ..SyncRequest::default() }
}

async fn sync(standby: &Standby, keep: bool, retention: &str) -> Result<CloneResult> {
    standby.sync_with(&asked(keep, retention), &CloneSettings::default()).await
}

/// What the source held at each point that the replica has had, the present one last.
struct Past<'a> {
    standby: &'a Standby,
    points: BTreeMap<String, Contents>,
    writes: u64,
}

impl<'a> Past<'a> {
    fn of(standby: &'a Standby) -> Self {
        let mut past = Self { standby, points: BTreeMap::new(), writes: 0 };
        past.remember();
        past
    }

    fn remember(&mut self) {
        self.points.insert(domain(self.standby).lineage().unwrap().point, self.standby.source_contents());
    }

    /// The source changes: blocks that every point has otherwise, and blocks that only this one has.
    fn change(&mut self) {
        self.writes += 1;
        let (byte, at) = (self.writes, 8 + self.writes);
        let own = [
            format!("write -P {byte} 1M 192k"),
            format!("write -P {byte} {at}M 64k"),
            format!("write -z {}k 64k", 64 * at),
        ];
        self.standby.write("vda", &own.each_ref().map(String::as_str));
        self.standby
            .write("vdb", &[&format!("write -P {byte} 3M 64k"), &format!("write -P {byte} {}k 4k", 512 * byte)]);
    }

    async fn sync(&mut self, keep: bool, retention: &str) -> CloneResult {
        self.sync_as(&asked(keep, retention)).await
    }

    async fn sync_as(&mut self, asked: &SyncRequest) -> CloneResult {
        self.change();
        let result = self.standby.sync_with(asked, &CloneSettings::default()).await.unwrap();
        self.remember();
        result
    }

    /// The replica is its source, and each point that its lineage lists is what the source was then; these are `kept` many.
    fn assert_kept(&self, kept: usize) {
        let standby = self.standby;
        assert_eq!(standby.replica_contents(), standby.source_contents());
        crate::common::assert_nothing_left(&standby.beta);
        crate::common::assert_nothing_left(&standby.alpha);
        self.assert_points();
        let points = points(standby);
        assert_eq!(points.len(), kept, "{points:?}");
        for (disk, (path, format)) in images(&standby.beta, NAME) {
            let expected: Vec<String> = [path.clone()]
                .into_iter()
                .chain(points.iter().map(|kept| kept.images[&disk.parse().unwrap()].path.clone()))
                .collect();
            assert_eq!(chain(standby, &path, &format), expected, "the headers and the lineage agree");
        }
        assert_only_files_of(standby);
    }

    fn assert_points(&self) {
        for kept in points(self.standby) {
            let then = self.points.get(&kept.point).unwrap_or_else(|| panic!("{kept:?}: {:?}", self.points.keys()));
            for (disk, image) in &kept.images {
                let sum = copied_out(self.standby, &image.path, &image.format.to_string());
                assert_eq!(then[disk.as_str()], sum, "disk {disk} as of {}", kept.point);
            }
        }
    }
}

fn domain(standby: &Standby) -> Domain {
    Domain::parse(&definitions(&standby.beta)[NAME]).unwrap()
}

fn points(standby: &Standby) -> Vec<KeptPoint> {
    domain(standby).lineage().unwrap().points
}

/// What qemu sees behind an image by the headers alone.
fn chain(standby: &Standby, path: &str, format: &str) -> Vec<String> {
    let info =
        standby.beta.exec(&["qemu-img", "info", "-U", "-f", format, "--backing-chain", "--output=json", path]).unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info.as_array().unwrap().iter().map(|image| image["filename"].as_str().unwrap().to_owned()).collect()
}

/// No image lies there that the replica does not stand on.
fn assert_only_files_of(standby: &Standby) {
    let mut used: BTreeSet<String> = BTreeSet::new();
    for (path, format) in images(&standby.beta, NAME).into_values() {
        used.extend(chain(standby, &path, &format));
    }
    let there = standby.beta.shell("find /var/lib/libvirt/images -name 'standby*' -o -name '.kvm-clone*'").unwrap();
    assert_eq!(there.lines().map(str::to_owned).collect::<BTreeSet<_>>(), used);
}

/// As the documentation says: an old point is copied out of the images that hold it.
fn copied_out(standby: &Standby, image: &str, format: &str) -> String {
    image_contents(&standby.beta, image, format)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_old_points_are_kept_and_are_what_the_source_was() {
    let Some(standby) = Standby::new("three_old_points_are_kept").await else { return };
    let mut past = Past::of(&standby);
    for kept in 1..=3 {
        let result = past.sync(true, "all").await;
        assert_eq!((result.way, result.points.len()), (Way::Compare, kept), "{result:?}");
        assert!(result.points.iter().all(|kept| kept.bytes > 0), "{:?}", result.points);
        assert!(result.bytes_read_dest == 0, "its seal holds: {:?}", result.warnings);
        past.assert_kept(kept);
    }
    assert_boots(&standby.beta.machine(NAME).unwrap());
    standby.sync_with(&asked(false, "all"), &discarding()).await.unwrap();
    past.remember();
    past.assert_kept(3);
    // What can be read of a disk can be verified.
    assert!(standby.verify().await.unwrap().success);
    let listed = standby.client().await.list(&spec("beta")).await.unwrap();
    let of = listed.into_iter().find(|machine| machine.name.as_str() == NAME).unwrap().replica_of.unwrap();
    assert_eq!(of.points.len(), 3);
    for (listed, kept) in of.points.iter().zip(points(&standby)) {
        assert_eq!(listed.point, kept.point);
        assert!(listed.age_seconds.is_some() && listed.bytes.is_some_and(|bytes| bytes > 0), "{listed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_sync_leaves_what_is_kept_and_one_without_changes_does_too() {
    let Some(standby) = Standby::new("a_plain_sync_leaves_what_is_kept").await else { return };
    let mut past = Past::of(&standby);
    past.sync(true, "all").await;
    past.sync(true, "all").await;
    let before = images(&standby.beta, NAME);
    for _ in 0..2 {
        past.sync(false, "all").await;
        past.assert_kept(2);
        assert_eq!(images(&standby.beta, NAME), before, "the images have their names again");
    }
    let result = sync(&standby, false, "all").await.unwrap();
    past.remember();
    assert_eq!((result.way, result.bytes_read, result.bytes_written), (Way::Untouched, 0, 0), "{}", result.why);
    past.assert_kept(2);
    let result = sync(&standby, true, "all").await.unwrap();
    past.remember();
    assert_eq!(result.way, Way::Untouched);
    past.assert_kept(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_points_are_dropped_by_count_and_by_age() {
    let Some(standby) = Standby::new("old_points_are_dropped").await else { return };
    let mut past = Past::of(&standby);
    for (retention, kept) in [("2", 1), ("2", 2), ("2", 2), ("3,1h", 3), ("1h", 4), ("1", 1)] {
        let result = past.sync(true, retention).await;
        assert_eq!(result.points.len(), kept, "{retention}: {:?}", result.warnings);
        past.assert_kept(kept);
    }
    past.sync(true, "all").await;
    // By a plain sync as well: the newest is merged into what becomes free under it, or into the last image.
    past.sync(false, "1").await;
    past.assert_kept(1);
    past.sync(true, "all").await;
    age_points(&standby, &mut past);
    past.sync(true, "1h").await;
    past.assert_kept(1);
    past.sync(true, "all").await;
    past.sync(false, "0").await;
    past.assert_kept(0);
    standby.assert_synced();
    past.sync(false, "0").await;
    standby.assert_synced();
}

/// Blocks that are smaller than a cluster leave the rest of it as the points below have it.
#[tokio::test(flavor = "multi_thread")]
async fn old_points_are_kept_whatever_the_size_of_blocks() {
    let Some(standby) = Standby::new("old_points_are_kept_whatever_the_size").await else { return };
    let mut past = Past::of(&standby);
    for (kept, size) in (1..).zip(["4K", "1M", "4K", "4K"]) {
        let asked = SyncRequest { block_size: Some(size.parse().unwrap()), ..asked(true, "all") };
        let result = past.sync_as(&asked).await;
        assert_eq!((result.block_size.to_string().as_str(), result.points.len()), (size, kept));
        past.assert_kept(kept);
    }
    // What of small blocks is merged is the same.
    past.sync(false, "2").await;
    past.assert_kept(2);
}

/// Gives the points that are kept times of a year ago, in the replica's definition.
fn age_points(standby: &Standby, past: &mut Past<'_>) {
    let mut xml = standby.beta.exec(&["virsh", "-q", "dumpxml", "--inactive", NAME]).unwrap();
    for (index, kept) in points(standby).iter().enumerate() {
        let old = format!("2020-01-0{}T00:00:00Z", 9 - index);
        xml = xml.replace(&kept.point, &old);
        let contents = past.points.remove(&kept.point).unwrap();
        past.points.insert(old, contents);
    }
    std::fs::write(standby.beta.path("/var/tmp/aged.xml"), xml).unwrap();
    standby.beta.exec(&["virsh", "-q", "define", "/var/tmp/aged.xml"]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_gets_an_old_point_back() {
    let Some(standby) = Standby::new("an_administrator_gets_an_old_point_back").await else { return };
    let mut past = Past::of(&standby);
    past.sync(true, "all").await;
    past.sync(true, "all").await;
    let oldest = points(&standby).pop().unwrap();
    // As in docs/src/sync.md.
    for (disk, image) in &oldest.images {
        let (format, new) = (image.format.to_string(), format!("/var/lib/libvirt/images/old-{disk}.qcow2"));
        standby.beta.exec(&["qemu-img", "convert", "-f", &format, "-O", "qcow2", &image.path, &new]).unwrap();
        standby.beta.exec(&["virsh", "-q", "detach-disk", NAME, disk.as_str(), "--config"]).unwrap();
        let attach = ["attach-disk", NAME, &new, disk.as_str(), "--subdriver", "qcow2", "--config"];
        standby.beta.exec(&[&["virsh", "-q"][..], &attach].concat()).unwrap();
    }
    assert_eq!(standby.replica_contents(), past.points[&oldest.point]);
    assert_boots(&standby.beta.machine(NAME).unwrap());
    // It is another disk than the newest point's: a sync says so, and goes on from it where it is told to.
    assert_eq!(number(&sync(&standby, false, "all").await.unwrap_err()), 1014);
    standby.sync_with(&asked(false, "all"), &discarding()).await.unwrap();
    assert_eq!(standby.replica_contents(), standby.source_contents());
    assert!(
        points(&standby).iter().all(|kept| kept.images.values().all(|image| image.apart)),
        "they stand by themselves"
    );
    past.assert_points();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_changed_under_a_kept_point_is_refused() {
    let Some(standby) = Standby::new("a_replica_that_was_changed_under_a_kept_point").await else { return };
    let mut past = Past::of(&standby);
    past.sync(true, "all").await;
    past.change();
    let under = points(&standby).pop().unwrap();
    let image = &under.images[&"vdb".parse().unwrap()];
    standby.beta.exec(&["qemu-io", "-f", "raw", "-c", "write -P 77 6M 64k", &image.path]).unwrap();
    let before = standby.replica_contents();
    let error = sync(&standby, true, "all").await.unwrap_err();
    assert_eq!(number(&error), 1014, "{error:?}");
    assert_eq!(standby.replica_contents(), before);
    standby.sync_with(&asked(true, "1"), &discarding()).await.unwrap();
    assert_eq!(standby.replica_contents(), standby.source_contents());
    assert_eq!(points(&standby).len(), 1);
    write(&standby.beta, NAME, "vda", &["write -P 3 5M 64k"]);
    assert_eq!(number(&sync(&standby, false, "all").await.unwrap_err()), 1014);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_with_kept_points_is_refused_in_words() {
    let Some(standby) = Standby::new("what_cannot_be_done_with_kept_points").await else { return };
    let mut past = Past::of(&standby);
    past.sync(true, "all").await;
    let error = standby.sync_with(&full(), &CloneSettings::default()).await.unwrap_err();
    assert_eq!(number(&error), 1013, "{error:?}");
    let both = SyncRequest { safety: Safety { keep: true, retention: Retention::default() }, ..full() };
    assert_eq!(number(&standby.sync_with(&both, &CloneSettings::default()).await.unwrap_err()), 1007);
    past.assert_kept(1);
    // A machine that somebody built on an old point keeps it, and what is under it.
    let kept = &points(&standby)[0].images[&"vda".parse().unwrap()];
    let overlay = "/var/lib/libvirt/images/linked.qcow2";
    standby.beta.exec(&["qemu-img", "create", "-q", "-f", "qcow2", "-b", &kept.path, "-F", "qcow2", overlay]).unwrap();
    kvm_clone_lab::define_machine(
        &standby.beta,
        MachineSpec::named("linked").disk(DiskSpec::qcow2("vda", 8 * MIB).at(overlay).existing()),
    )
    .unwrap();
    let result = past.sync(true, "0").await;
    assert!(
        result.warnings.iter().any(|warning| warning.contains("machine linked stands on")),
        "{:?}",
        result.warnings
    );
    assert_eq!(points(&standby).len(), 2);
    past.assert_points();
    standby.beta.exec(&["virsh", "-q", "undefine", "linked"]).unwrap();
    // Images that are none of ours are refused as ever.
    let (path, format) = images(&standby.beta, NAME)["vda"].clone();
    let foreign = "/var/lib/libvirt/images/foreign.qcow2";
    standby.beta.exec(&["qemu-img", "create", "-q", "-f", "qcow2", "-b", &path, "-F", &format, foreign]).unwrap();
    let xml = standby.beta.exec(&["virsh", "-q", "dumpxml", "--inactive", NAME]).unwrap();
    let foreign_xml = xml.replace(&format!("<source file='{path}'/>"), &format!("<source file='{foreign}'/>"));
    std::fs::write(standby.beta.path("/var/tmp/foreign.xml"), foreign_xml).unwrap();
    standby.beta.exec(&["virsh", "-q", "define", "/var/tmp/foreign.xml"]).unwrap();
    let error = sync(&standby, false, "all").await.unwrap_err();
    assert_eq!(number(&error), 1013, "{error:?}");
    assert!(error.message.contains("stands on other images"), "{error:?}");
    std::fs::write(standby.beta.path("/var/tmp/own.xml"), xml).unwrap();
    standby.beta.exec(&["virsh", "-q", "define", "/var/tmp/own.xml"]).unwrap();
    standby.beta.shell("rm -f /var/lib/libvirt/images/foreign.qcow2 /var/lib/libvirt/images/linked.qcow2").unwrap();
    // A new copy in its place takes its kept points with it.
    let request =
        CloneRequest { new_name: Some(NAME.parse().unwrap()), existing: Existing::Replace, ..CloneRequest::default() };
    let client = standby.client().await;
    crate::common::clone_with(&client, "alpha", "beta", "web1", request, &CloneSettings::default()).await.unwrap();
    standby.assert_synced();
    assert_only_files_of(&standby);
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_come_grow_and_go_over_kept_points() {
    let Some(standby) = Standby::new("disks_come_grow_and_go_over_kept_points").await else { return };
    let mut past = Past::of(&standby);
    past.sync(true, "all").await;
    let image = |target: &str| images(&standby.alpha, "web1")[target].0.clone();
    standby.alpha.exec(&["qemu-img", "resize", "-f", "qcow2", &image("vda"), "40M"]).unwrap();
    standby.alpha.exec(&["qemu-img", "resize", "-f", "raw", &image("vdb"), "12M"]).unwrap();
    standby.write("vda", &["write -P 5 39M 1M"]);
    let more = "/var/lib/libvirt/images/more.qcow2";
    standby.alpha.exec(&["qemu-img", "create", "-q", "-f", "qcow2", more, "16M"]).unwrap();
    standby
        .alpha
        .exec(&["virsh", "-q", "attach-disk", "web1", more, "vdc", "--subdriver", "qcow2", "--config"])
        .unwrap();
    past.sync(true, "all").await;
    past.assert_points();
    past.sync(true, "2").await;
    past.assert_points();
    assert_eq!(standby.replica_contents(), standby.source_contents());
    standby.alpha.exec(&["virsh", "-q", "detach-disk", "web1", "vdc", "--config"]).unwrap();
    past.sync(true, "all").await;
    past.assert_points();
    let apart = points(&standby)[0].images[&"vdc".parse().unwrap()].clone();
    assert!(apart.apart, "{apart:?}");
    past.sync(false, "0").await;
    standby.assert_synced();
    assert!(points(&standby).is_empty());
    standby.beta.exec(&["test", "-e", &apart.path]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_an_odd_size_keeps_its_points() {
    let machine = MachineSpec::named("web1")
        .disk(DiskSpec::qcow2("vda", 8 * MIB))
        .disk(DiskSpec::raw("vdb", MIB + 7).at("/srv/odd.img").existing());
    let Some(standby) = Standby::unreplicated("a_disk_of_an_odd_size_keeps_its_points", machine) else { return };
    let fill = |byte: u8| {
        std::fs::create_dir_all(standby.alpha.path("/srv")).unwrap();
        std::fs::write(standby.alpha.path("/srv/odd.img"), vec![byte; (1 << 20) + 7]).unwrap();
    };
    fill(1);
    standby.clone().await;
    for byte in 2..5 {
        fill(byte);
        sync(&standby, true, "2").await.unwrap();
    }
    assert_eq!(points(&standby).len(), 2);
    fill(5);
    sync(&standby, false, "0").await.unwrap();
    standby.assert_synced();
}

/// A sync that keeps the old point, drops the oldest ones, and is struck.
struct Round<'a> {
    past: Past<'a>,
    at: At,
    keep: bool,
    old: Contents,
    new: Contents,
}

impl<'a> Round<'a> {
    /// Two points are kept. Of each round the sync drops one or two, and the newest is merged or not.
    async fn begin(standby: &'a Standby, at: At, keep: bool) -> Self {
        let mut past = Past::of(standby);
        past.points.extend(past_points(standby));
        while points(standby).len() < 2 {
            past.sync(true, "all").await;
        }
        let old = standby.replica_contents();
        past.change();
        let new = standby.source_contents();
        standby.beta.exec(&["sync"]).unwrap();
        Self { past, at, keep, old, new }
    }

    async fn struck(&self, fault: impl Fn() -> Result<Then> + Send + Sync + 'static) -> Result<CloneResult> {
        let prepared = self.past.standby.prepare(&asked(self.keep, "1")).await.unwrap();
        struck_while(prepared, self.at, fault).await
    }

    /// The replica, by its definition, and whatever its lineage lists, before and after recovery.
    async fn judge(mut self, outcome: Option<&Result<CloneResult>>) -> bool {
        let (standby, at) = (self.past.standby, self.at);
        let now = by_definition(standby);
        println!(
            "{at:?}: {}, {:?}",
            now == self.new,
            outcome.map(|outcome| outcome.as_ref().map(|done| &done.warnings))
        );
        assert!(now == self.new || now == self.old, "{at:?}: a mixture");
        if now == self.new {
            self.past.remember();
        }
        self.past.assert_points();
        standby.recover(&format!("{at:?}")).await;
        assert_eq!(by_definition(standby), now, "{at:?}: recover changed the outcome");
        assert_eq!(standby.replica_contents(), now, "{at:?}: the headers do not agree");
        self.past.assert_points();
        let is_new = now == self.new;
        if !is_new {
            assert_eq!(points(standby).len(), 2, "{at:?}");
            sync(standby, self.keep, "1").await.unwrap_or_else(|error| panic!("{at:?}: the second try: {error:?}"));
            self.past.remember();
        }
        self.past.assert_kept(1);
        is_new
    }
}

/// What earlier rounds left, as it is now: rounds begin with points that were found to be right.
fn past_points(standby: &Standby) -> BTreeMap<String, Contents> {
    let sums = |kept: KeptPoint| {
        let disks = kept.images.iter();
        let sums =
            disks.map(|(disk, image)| (disk.to_string(), copied_out(standby, &image.path, &image.format.to_string())));
        (kept.point.clone(), sums.collect())
    };
    points(standby).into_iter().map(sums).collect()
}

/// What a guest would read: by the images that the definition names, and by no header.
fn by_definition(standby: &Standby) -> Contents {
    let xml = standby.beta.exec(&["virsh", "-q", "dumpxml", "--inactive", NAME]).unwrap();
    let named = |disk: &str| {
        let element = xml.split("<disk ").find(|part| part.contains(&format!("<target dev='{disk}'"))).unwrap();
        let element = element.split("</disk>").next().unwrap();
        let values = |before: &str| -> Vec<String> {
            element.split(before).skip(1).map(|rest| rest.split('\'').next().unwrap().to_owned()).collect()
        };
        let (paths, mut formats) = (values("<source file='"), values("<format type='"));
        formats.insert(0, values("<driver name='qemu' type='")[0].clone());
        paths.into_iter().zip(formats).collect::<Vec<_>>()
    };
    let sum = |(disk, _): (String, (String, String))| {
        let node = named(&disk).iter().rev().fold(serde_json::Value::Null, |backing, (path, format)| {
            let mut node = serde_json::json!({ "driver": format, "file": { "driver": "file", "filename": path } });
            if format != "raw" {
                node["backing"] = backing;
            }
            node
        });
        let image = format!("json:{node}");
        let out = "/var/tmp/defined.raw";
        standby.beta.exec(&["qemu-img", "convert", "-U", "-O", "raw", &image, out]).unwrap();
        let held = image_contents(&standby.beta, out, "raw");
        standby.beta.exec(&["rm", out]).unwrap();
        (disk, held)
    };
    images(&standby.beta, NAME).into_iter().map(sum).collect()
}

/// The moments from the commit on: before it nothing of the kept points is touched.
fn moments() -> impl Iterator<Item = (usize, At)> {
    sync_moments().filter(|(step, _)| *step >= Step::Define).enumerate()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_leaves_every_point_that_is_listed() {
    let Some(standby) = Standby::new("a_step_that_fails_leaves_every_point").await else { return };
    for (number, at) in moments() {
        let round = Round::begin(&standby, at, number % 2 == 0).await;
        let outcome = round.struck(|| Err(Error::internal("struck"))).await;
        assert_eq!(round.judge(Some(&outcome)).await, at.0 > Step::Define, "{at:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_leaves_every_point_that_is_listed() {
    let Some(standby) = Standby::new("an_agent_that_dies_leaves_every_point").await else { return };
    for (number, at) in moments() {
        let round = Round::begin(&standby, at, number % 2 == 1).await;
        let outcome = round.struck(agents_die(&standby.beta)).await;
        fault::wait_gone(&standby.beta, "kvm-clone-agent", PATIENCE).unwrap();
        round.judge(Some(&outcome)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_without_power_has_every_point_that_is_listed() {
    let Some(standby) = Standby::on_what_was_synced("a_target_without_power_has_every_point").await else { return };
    for (number, at) in moments() {
        let round = Round::begin(&standby, at, number % 2 == 0).await;
        let outcome = round.struck(loses_power(&standby.beta)).await;
        round.judge(Some(&outcome)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_sync_goes_on_with_what_a_failed_one_left() {
    let Some(standby) = Standby::new("the_next_sync_goes_on_with_what_a_failed_one_left").await else { return };
    for step in [Step::Define, Step::Flatten, Step::Settle] {
        let round = Round::begin(&standby, (step, kvm_clone_engine::Moment::Acted), step == Step::Flatten).await;
        // A step that fails after the commit is not undone.
        let beta = standby.beta.clone();
        let outcome = round
            .struck(move || {
                fault::kill(&beta, "kvm-clone-agent").unwrap();
                Err(Error::internal("struck"))
            })
            .await;
        println!("{step}: {:?}", outcome.map(|done| done.warnings));
        let mut past = round.past;
        if by_definition(&standby) == round.new {
            past.remember();
        }
        past.assert_points();
        let look = standby.client().await.recover(&spec("beta"), Recovery::Look).await.unwrap();
        assert!(look.len() <= 1, "{look:?}");
        past.sync(true, "2").await;
        past.assert_kept(points(&standby).len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_wrote_once_the_definition_is_settled_is_not_merged_over() {
    let Some(standby) = Standby::new("what_a_guest_wrote_once_the_definition_is_settled").await else { return };
    let round = Round::begin(&standby, (Step::Settle, kvm_clone_engine::Moment::Acted), false).await;
    let beta = standby.beta.clone();
    let outcome = round
        .struck(move || {
            fault::kill(&beta, "kvm-clone-agent").unwrap();
            Err(Error::internal("struck"))
        })
        .await;
    assert!(outcome.is_ok_and(|done| done.warnings.iter().any(|warning| warning.contains("cleaning up failed"))));
    assert_eq!(by_definition(&standby), round.new);
    for disk in ["vda", "vdb"] {
        write(&standby.beta, NAME, disk, &["write -P 200 1M 64k"]);
    }
    let written = by_definition(&standby);
    standby.recover("after its guest wrote").await;
    assert_eq!((by_definition(&standby), standby.replica_contents()), (written.clone(), written));
    assert_only_files_of(&standby);
}
