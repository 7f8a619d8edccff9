//! Syncs that write the replica's own disks: what they may not do before they must, what they leave when they are interrupted, and that
//! the next sync completes it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use crate::common::{MIB, number, silent, spec};
use crate::oracle::child::Task;
use crate::oracle::strike::{At, agents_die, in_place_moments, is_cut_off, loses_power, struck_while};
use crate::oracle::{Gate, IMAGES, PATIENCE, SILENCE, assert_boots, definitions};
use crate::standby::{Contents, NAME, Standby, discarding, images, write};
use kvm_clone_core::domain::{Domain, with_true_images};
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::{CloneRequest, Consistency, Existing, SyncRequest, Update};
use kvm_clone_core::{Code, Error, Result};
use kvm_clone_engine::{Action, CloneResult, CloneSettings, Moment, Recovered, Recovery, Resumed, Then, Way};
use kvm_clone_lab::{DiskSpec, Fill, FsKind, Host, MachineSpec, fault};
use tokio_util::sync::CancellationToken;

fn raw_machine() -> MachineSpec {
    MachineSpec::named("web1")
        .disk(DiskSpec::raw("vda", 32 * MIB).fill(Fill::Random { seed: 1, bytes: 4 * MIB }))
        .disk(DiskSpec::raw("vdb", 8 * MIB + 512).fill(Fill::Random { seed: 2, bytes: 2 * MIB }))
}

fn in_place() -> SyncRequest {
    SyncRequest { update: Update { in_place: true, ..Update::default() }, ..SyncRequest::default() }
}

async fn sync_in_place(standby: &Standby) -> Result<CloneResult> {
    standby.sync_with(&in_place(), &CloneSettings::default()).await
}

fn definition(host: &Host) -> Domain {
    Domain::parse(&definitions(host)[NAME]).unwrap()
}

/// Gives the replica another definition.
fn redefine(host: &Host, xml: &str) {
    std::fs::write(host.path("/var/tmp/replica.xml"), xml).unwrap();
    host.exec(&["virsh", "-q", "define", "/var/tmp/replica.xml"]).unwrap();
}

/// Has the replica's first disk name a block device instead of its file.
fn put_on_device(host: &Host, file: &str, device: &str) {
    let xml = definition(host).xml().to_owned();
    let disk = xml.split("<disk ").find(|disk| disk.contains("dev='vda'")).unwrap();
    let there =
        disk.replacen("type='file'", "type='block'", 1).replace(&format!("file='{file}'"), &format!("dev='{device}'"));
    redefine(host, &xml.replace(disk, &there));
}

fn is_out_of_service(host: &Host) -> bool {
    definition(host).lineage().unwrap().incomplete.is_some()
}

/// A mixture can be booted by nobody, and its definition says where its disks are.
fn assert_out_of_service(standby: &Standby) {
    let domain = definition(&standby.beta);
    assert!(domain.lineage().unwrap().incomplete.is_some(), "{}", domain.xml());
    standby.beta.exec(&["virsh", "-q", "start", NAME]).unwrap_err();
    for disk in with_true_images(&domain).unwrap().data_disks() {
        standby.beta.exec(&["test", "-e", disk.source.as_ref().unwrap()]).unwrap();
    }
}

/// Digests and seals are those of the replica's point alone.
fn assert_only_one_point_is_kept(host: &Host, disks: usize) {
    let kept = |what: &str| host.shell(&format!("ls -A /var/lib/kvm-clone/{what}")).unwrap();
    let (manifests, seals) = (kept("manifests"), kept("seals"));
    assert_eq!(manifests.lines().count(), disks, "{manifests}");
    // Where an interrupted one was finished, there are none.
    assert!(seals.lines().count() <= disks, "{seals}");
    assert_eq!(crate::oracle::held_locks(host), "");
}

fn change(standby: &Standby, byte: usize) {
    let vda = [
        format!("write -P {byte} 1M 192k"),
        format!("write -P {byte} {}M 64k", 8 + byte % 20),
        "write -z 2M 64k".to_owned(),
    ];
    standby.write("vda", &vda.each_ref().map(String::as_str));
    standby.write("vdb", &[&format!("write -P {byte} 3M 64k")]);
}

/// Files by path: their inodes, and the bytes that they take.
fn files(host: &Host) -> BTreeMap<String, (u64, u64)> {
    let fact = |path: &String| {
        let facts = std::fs::metadata(host.path(path)).unwrap();
        (facts.ino(), facts.blocks() * 512)
    };
    images(host, NAME).into_values().map(|(path, _)| (path.clone(), fact(&path))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_written_into_the_replicas_own_disks() {
    let Some(standby) = Standby::of("what_differs_is_written_in_place", raw_machine()).await else { return };
    let before = files(&standby.beta);
    change(&standby, 7);
    let plan = standby.prepare(&in_place()).await.unwrap().plan().describe();
    assert!(plan.contains("are written in place") && plan.contains("its old point is lost"), "{plan}");
    let result = sync_in_place(&standby).await.unwrap();
    assert!(result.warnings.iter().any(|warning| warning.contains("out of service")), "{:?}", result.warnings);
    standby.assert_synced();
    assert_only_one_point_is_kept(&standby.beta, 2);
    assert!(result.way == Way::Compare && result.bytes_written <= MIB && result.bytes_kept == 0, "{result:?}");
    assert_eq!(result.bytes_read_dest, 0, "seals stood for the replica's disks");
    let inodes = |files: &BTreeMap<String, (u64, u64)>| files.values().map(|file| file.0).collect::<Vec<_>>();
    assert_eq!(inodes(&files(&standby.beta)), inodes(&before));
    assert_boots(&standby.beta.machine(NAME).unwrap());
    standby.sync_with(&in_place(), &discarding()).await.unwrap();
    standby.assert_synced();
    // With nothing to be written, it is not taken out of service; the next sync is as any other.
    let result = sync_in_place(&standby).await.unwrap();
    assert_eq!((result.way, result.bytes_written), (Way::Untouched, 0), "{}", result.why);
    change(&standby, 8);
    standby.sync().await.unwrap();
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_replica_is_refused_before_anything_is_written() {
    let Some(standby) = Standby::of("a_changed_replica_is_refused_in_place", raw_machine()).await else { return };
    change(&standby, 7);
    // At the very end of the last disk, where a sync that only compares would come last.
    write(&standby.beta, NAME, "vdb", &["write -P 3 8M 512"]);
    let (before, xml) = (standby.replica_contents(), definition(&standby.beta));
    let paranoid = CloneSettings { paranoid: true, ..CloneSettings::default() };
    for settings in [CloneSettings::default(), paranoid] {
        let error = standby.sync_with(&in_place(), &settings).await.unwrap_err();
        assert_eq!((number(&error), &error.context["disk"][..]), (1014, "vdb"), "{error:?}");
        assert_eq!((standby.replica_contents(), definition(&standby.beta).xml()), (before.clone(), xml.xml()));
    }
    standby.sync_with(&in_place(), &discarding()).await.unwrap();
    standby.assert_synced();
    // A touch ends the seal: the disk is read before it is written, and once.
    change(&standby, 8);
    standby.beta.shell(&format!("touch {IMAGES}/standby-*")).unwrap();
    let result = sync_in_place(&standby).await.unwrap();
    standby.assert_synced();
    assert_eq!(result.bytes_read_dest, 0, "{result:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_runs_is_not_written_in_place_either() {
    let Some(standby) = Standby::of("a_replica_that_runs_is_not_written_in_place", raw_machine()).await else { return };
    let replica = standby.beta.machine(NAME).unwrap();
    replica.start().unwrap();
    let xml = definition(&standby.beta);
    assert_eq!(number(&sync_in_place(&standby).await.unwrap_err()), 1014);
    assert_eq!(definition(&standby.beta).xml(), xml.xml());
    replica.destroy().unwrap();
    // Nor one whose disk another machine runs on.
    let path = images(&standby.beta, NAME)["vda"].0.clone();
    let other =
        format!("qemu-nbd -t -f raw -k /run/other.sock {path} >/dev/null 2>&1 </dev/null & echo $! >/run/other.pid");
    standby.beta.shell(&other).unwrap();
    crate::oracle::wait_for("qemu-nbd", || standby.beta.exec(&["test", "-S", "/run/other.sock"]).is_ok());
    let error = standby.sync_with(&in_place(), &discarding()).await.unwrap_err();
    assert_eq!(error.code, Code::Locked, "{error:?}");
    assert_eq!(definition(&standby.beta).xml(), xml.xml());
    standby.beta.shell("kill $(cat /run/other.pid)").unwrap();
    fault::wait_gone(&standby.beta, "qemu-nbd", SILENCE).unwrap();
    standby.sync_with(&in_place(), &discarding()).await.unwrap();
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_grew_grows_in_its_own_image() {
    let Some(standby) = Standby::of("a_disk_that_grew_grows_in_place", raw_machine()).await else { return };
    let image = images(&standby.alpha, "web1")["vdb"].0.clone();
    standby.alpha.exec(&["qemu-img", "resize", "-f", "raw", &image, "12M"]).unwrap();
    standby.write("vdb", &["write -P 6 11M 1M"]);
    sync_in_place(&standby).await.unwrap();
    standby.assert_synced();
    assert_eq!(std::fs::metadata(standby.beta.path(&images(&standby.beta, NAME)["vdb"].0)).unwrap().len(), 12 * MIB);
    let result = sync_in_place(&standby).await.unwrap();
    assert_eq!(result.way, Way::Untouched, "{}", result.why);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_runs_is_written_in_place_as_of_one_moment() {
    let machine = MachineSpec::named("web1")
        .disk(DiskSpec::raw("vda", 12 * MIB))
        .disk(DiskSpec::raw("vdb", 8 * MIB))
        .disk(DiskSpec::raw("vdc", 16 * MIB).fill(Fill::Random { seed: 1, bytes: 6 * MIB }))
        .writing();
    let Some(standby) = Standby::unreplicated("a_source_that_runs_is_written_in_place", machine) else { return };
    standby.source.start().unwrap();
    standby.source.wait_for_console("kvm-clone-guest: wrote 20", PATIENCE).unwrap();
    standby.clone().await;
    for _ in 0..2 {
        let result = sync_in_place(&standby).await.unwrap();
        assert_eq!((result.way, result.consistency), (Way::Compare, Consistency::Crash));
        let xml = definition(&standby.beta).xml().to_owned();
        crate::oracle::records::assert_one_point(standby.lab.dir(), &standby.beta, &xml);
        crate::oracle::records::assert_left_alone(&standby.source, &standby.beta, &xml);
    }
    crate::oracle::records::assert_goes_on(&standby.source);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_on_a_block_device_is_written() {
    let Some(standby) = Standby::of("a_replica_on_a_block_device", raw_machine()).await else { return };
    let device = standby.beta.block_device("replica", 32 * MIB).unwrap();
    let link = "/dev/replica-link";
    let file = images(&standby.beta, NAME)["vda"].0.clone();
    standby
        .beta
        .shell(&format!("ln -s {device} {link}; dd if={file} of={device} bs=1M conv=fsync; rm {file}"))
        .unwrap();
    put_on_device(&standby.beta, &file, link);
    change(&standby, 7);
    let error = standby.sync().await.unwrap_err();
    assert!(number(&error) == 1013 && error.help.iter().any(|help| help.contains("--in-place")), "{error:?}");
    write(&standby.beta, NAME, "vda", &["write -P 3 5M 512"]);
    assert_eq!(number(&sync_in_place(&standby).await.unwrap_err()), 1014, "the device was changed");
    standby.sync_with(&in_place(), &discarding()).await.unwrap();
    standby.assert_synced();
    assert_eq!(images(&standby.beta, NAME)["vda"].0, link, "the definition names it as it did");
    change(&standby, 8);
    assert!(sync_in_place(&standby).await.unwrap().bytes_written <= MIB);
    standby.assert_synced();
    // By blocks of another size, which its digests do not have.
    change(&standby, 9);
    let smaller = SyncRequest { block_size: Some("4K".parse().unwrap()), ..in_place() };
    assert!(standby.sync_with(&smaller, &CloneSettings::default()).await.unwrap().bytes_written <= MIB);
    standby.assert_synced();
    assert_boots(&standby.beta.machine(NAME).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_somebody_else_has_is_not_written() {
    let Some(standby) = Standby::of("a_device_that_somebody_else_has", raw_machine()).await else { return };
    let device = standby.beta.block_device("replica", 32 * MIB).unwrap();
    let file = images(&standby.beta, NAME)["vda"].0.clone();
    standby.beta.shell(&format!("mkfs.ext4 -q {device}; mount {device} /mnt; echo there >/mnt/file")).unwrap();
    put_on_device(&standby.beta, &file, &device);
    change(&standby, 7);
    let error = standby.sync_with(&in_place(), &discarding()).await.unwrap_err();
    assert!(number(&error) == 1011 && error.message.contains("mounted"), "{error:?}");
    assert!(!is_out_of_service(&standby.beta));
    assert_eq!(standby.beta.exec(&["cat", "/mnt/file"]).unwrap().trim(), "there");
    standby.beta.exec(&["umount", "/mnt"]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_replica_was_given_while_out_of_service_is_not_overwritten_unasked() {
    let Some(standby) = Standby::of("an_image_that_the_replica_was_given", raw_machine()).await else { return };
    killed_midway(&standby);
    let hidden = images(&standby.beta, NAME)["vda"].0.clone();
    let given = format!("{IMAGES}/restored.img");
    standby.beta.shell(&format!("truncate -s 32M {given}; echo restored | dd of={given} conv=notrunc")).unwrap();
    redefine(&standby.beta, &definition(&standby.beta).xml().replace(&hidden, &given));
    for asked in [SyncRequest::default(), in_place()] {
        let error = standby.sync_with(&asked, &CloneSettings::default()).await.unwrap_err();
        assert!(number(&error) == 1014 && error.message.contains("another image"), "{error:?}");
    }
    assert_eq!(standby.beta.exec(&["head", "-c", "9", &given]).unwrap().trim(), "restored");
    standby.sync_with(&in_place(), &discarding()).await.unwrap();
    standby.assert_synced();
    assert_eq!(images(&standby.beta, NAME)["vda"].0, given);
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_without_room_for_overlays_is_enough() {
    let Some(standby) = Standby::unreplicated("storage_without_room_for_overlays", raw_machine()) else { return };
    standby.beta.small_filesystem(IMAGES, FsKind::Ext4, 96 * MIB).unwrap();
    standby.clone().await;
    standby.write("vda", &["write -P 7 0 2M"]);
    standby.write("vdb", &["write -P 7 0 1M"]);
    // All of the replica's disks has its place, and there is hardly any beside.
    let script = "fallocate -l 32M standby-vda.img; fallocate -l 8M standby-vdb.img; \
                  cat /dev/zero >filled 2>/dev/null || true; truncate -s -256K filled";
    standby.beta.shell(&format!("cd {IMAGES}; {script}")).unwrap();
    assert_eq!(number(&standby.sync().await.unwrap_err()), 1005);
    sync_in_place(&standby).await.unwrap();
    standby.beta.exec(&["rm", &format!("{IMAGES}/filled")]).unwrap();
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_cannot_be_written_in_place_are_refused_in_words() {
    let Some(standby) = Standby::new("images_that_cannot_be_written_in_place").await else { return };
    let error = sync_in_place(&standby).await.unwrap_err();
    assert!(number(&error) == 1013 && error.message.contains("standby-vda.qcow2"), "{error:?}");
    assert!(error.help.iter().any(|help| help.contains("Leave --in-place out")), "{error:?}");
}

/// A replica whose source has changed since.
struct Round<'a> {
    standby: &'a Standby,
    at: At,
    old: Contents,
    new: Contents,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Old,
    OutOfService,
    New,
}

impl<'a> Round<'a> {
    fn begin(standby: &'a Standby, at: At, round: usize) -> Self {
        let old = standby.replica_contents();
        change(standby, round + 1);
        Self { standby, at, old, new: standby.source_contents() }
    }

    async fn struck(&self, fault: impl Fn() -> Result<Then> + Send + Sync + 'static) -> Result<CloneResult> {
        struck_while(self.standby.prepare(&in_place()).await.unwrap(), self.at, fault).await
    }

    /// What the replica is to whoever looks at its definition.
    fn found(&self) -> Found {
        assert_eq!(self.standby.source_contents(), self.new, "{:?}: the source was touched", self.at);
        if is_out_of_service(&self.standby.beta) {
            assert_out_of_service(self.standby);
            return Found::OutOfService;
        }
        match self.standby.replica_contents() {
            now if now == self.old => Found::Old,
            now if now == self.new => Found::New,
            mixture => panic!("{:?}: {mixture:?} is neither {:?} nor {:?}", self.at, self.old, self.new),
        }
    }

    /// Before any recovery, after it, and after the next sync.
    async fn judge(&self, outcome: Option<&Result<CloneResult>>) -> Found {
        let (standby, at) = (self.standby, self.at);
        let before = self.found();
        println!("{at:?}: {before:?}, {:?}", outcome.map(|outcome| outcome.as_ref().map(|done| &done.warnings)));
        match outcome {
            Some(Ok(_)) => assert_eq!(before, Found::New, "{at:?}: it said that it succeeded"),
            Some(Err(error)) if before == Found::OutOfService => {
                assert!(number(error) == 1015 && error.message.contains("out of service"), "{at:?}: {error:?}");
            }
            _ => {}
        }
        let client = standby.client().await;
        client.recover(&spec("alpha"), Recovery::Act).await.unwrap();
        let left: Vec<Recovered> = client.recover(&spec("beta"), Recovery::Act).await.unwrap();
        for entry in &left {
            let is_left =
                entry.action == Action::OutOfService && entry.error.as_ref().is_some_and(|error| number(error) == 1015);
            assert!(
                is_left == (before == Found::OutOfService) && (is_left || entry.error.is_none()),
                "{at:?}: {left:?}"
            );
        }
        assert!(before != Found::OutOfService || !left.is_empty(), "{at:?}: recover does not tell of it");
        assert_eq!(self.found(), before, "{at:?}: recover changed the outcome");
        if before != Found::New {
            // Also where the old point stands: what is kept of it came back with it.
            standby.sync().await.unwrap_or_else(|error| panic!("{at:?}: the next sync: {error:?}"));
        }
        standby.assert_synced();
        assert_only_one_point_is_kept(&standby.beta, 2);
        // A power cut in the next round takes away only what that round did.
        standby.beta.exec(&["sync"]).unwrap();
        before
    }
}

/// From where the replica is taken out of service until it is in service again, and the end; what is between is as in any sync.
fn moments_at_stake() -> impl Iterator<Item = At> {
    in_place_moments().filter(|(step, _)| (Step::Withdraw..=Step::Define).contains(step) || *step == Step::Clean)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_leaves_the_old_point_or_a_replica_out_of_service() {
    let Some(standby) = Standby::of("a_step_in_place_that_fails", raw_machine()).await else { return };
    for (number, at) in in_place_moments().enumerate() {
        let round = Round::begin(&standby, at, number);
        let outcome = round.struck(|| Err(Error::internal("struck"))).await;
        let expected = match at {
            (step, _) if step > Step::Define => Found::New,
            (step, moment) if step > Step::Copy || (step, moment) == (Step::Copy, Moment::Acted) => Found::OutOfService,
            _ => Found::Old,
        };
        assert_eq!(round.judge(Some(&outcome)).await, expected, "{at:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_done_twice_is_as_done_once() {
    let Some(standby) = Standby::of("a_step_in_place_that_is_done_twice", raw_machine()).await else { return };
    for (number, at) in moments_at_stake().enumerate().filter(|(number, _)| number % 2 == 1) {
        let round = Round::begin(&standby, at, number);
        let outcome = round.struck(|| Ok(Then::Again)).await;
        outcome.as_ref().unwrap_or_else(|error| panic!("{at:?}: {error:?}"));
        assert_eq!(round.judge(Some(&outcome)).await, Found::New);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_dies_leaves_no_mixture_that_starts() {
    let Some(standby) = Standby::of("a_controller_that_dies_in_place", raw_machine()).await else { return };
    for (number, at) in moments_at_stake().enumerate() {
        let round = Round::begin(&standby, at, number);
        let mut controller = Task::in_lab(&standby.lab).in_place().die_at(at.0, at.1).start();
        controller.says("dies");
        controller.kill();
        standby.await_dead_man();
        round.judge(None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_leaves_no_mixture_that_starts() {
    let Some(standby) = Standby::of("an_agent_that_dies_in_place", raw_machine()).await else { return };
    for (number, at) in moments_at_stake().enumerate() {
        let round = Round::begin(&standby, at, number);
        let host = if number % 2 == 0 { &standby.beta } else { &standby.alpha };
        let outcome = round.struck(agents_die(host)).await;
        round.judge(Some(&outcome)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_cut_leaves_no_mixture_that_starts() {
    let Some(standby) = Standby::of("a_network_that_is_cut_in_place", raw_machine()).await else { return };
    for (number, at) in moments_at_stake().enumerate().filter(|(number, _)| number % 2 == 1) {
        let round = Round::begin(&standby, at, number);
        let outcome = round.struck(is_cut_off(&standby.lab, &standby.beta)).await;
        fault::wait_gone(&standby.beta, "kvm-clone-agent", PATIENCE).unwrap();
        standby.lab.heal(&standby.beta).unwrap();
        round.judge(Some(&outcome)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_leaves_no_mixture_that_starts() {
    let Some(standby) = Standby::unreplicated("a_power_cut_in_place", raw_machine()) else { return };
    crate::oracle::keep_what_is_synced(&standby.beta, 96);
    standby.clone().await;
    for (number, at) in moments_at_stake().enumerate() {
        let round = Round::begin(&standby, at, number);
        let outcome = round.struck(loses_power(&standby.beta)).await;
        round.judge(Some(&outcome)).await;
    }
}

/// Written in part: a lane that stood still in the middle, and whose controller is gone.
fn killed_midway(standby: &Standby) {
    standby.write("vda", &["write -P 9 0 24M"]);
    let mut controller = Task::in_lab(&standby.lab).in_place().gate_after(4 * MIB).start();
    controller.says("midway");
    let path = standby.beta.path(&format!("{IMAGES}/standby-vda.img"));
    crate::oracle::wait_for("data in place", || std::fs::read(&path).unwrap()[..2 << 20].iter().all(|byte| *byte == 9));
    controller.kill();
    standby.await_dead_man();
    assert_out_of_service(standby);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_in_part_is_completed_by_whoever_comes() {
    let Some(standby) = Standby::of("what_was_written_in_part_is_completed", raw_machine()).await else { return };
    // Known as what it is to everybody.
    killed_midway(&standby);
    let client = standby.client().await;
    let listed = client.list(&spec("beta")).await.unwrap();
    assert!(listed.iter().any(|machine| machine.replica_of.as_ref().is_some_and(|of| of.incomplete)), "{listed:?}");
    assert_eq!(number(&standby.verify().await.unwrap_err()), 1014);
    // By the next sync, of another controller that was asked for nothing special. Its source may be another by then.
    change(&standby, 20);
    let result = standby.sync().await.unwrap();
    standby.assert_synced();
    assert_only_one_point_is_kept(&standby.beta, 2);
    assert!(result.bytes_written < 24 * MIB, "what is right is not written again: {}", result.bytes_written);
    assert_boots(&standby.beta.machine(NAME).unwrap());
    standby.sync_with(&in_place(), &discarding()).await.unwrap();

    // By its own journal.
    standby.write("vda", &["write -P 5 0 24M"]);
    standby.sync().await.unwrap();
    killed_midway(&standby);
    let ids = standby.beta.shell("ls /var/lib/kvm-clone/operations").unwrap();
    let operation = ids.trim().trim_end_matches(".json").parse().unwrap();
    let mut options = crate::common::options(&standby.lab);
    (options.silence, options.journal) = (SILENCE, standby.lab.dir().join("child.db"));
    let own = kvm_clone_engine::Client::new(options).await.unwrap();
    let resumed = own.resume(operation, &CloneSettings::default(), silent(), CancellationToken::new()).await.unwrap();
    assert!(matches!(resumed, Resumed::Copied(result) if result.resumed), "it goes on");
    standby.assert_synced();
    assert_only_one_point_is_kept(&standby.beta, 2);

    // By new images, of a sync or of another copy.
    standby.write("vda", &["write -P 5 0 24M"]);
    standby.sync().await.unwrap();
    killed_midway(&standby);
    standby.sync_with(&crate::standby::full(), &CloneSettings::default()).await.unwrap();
    standby.assert_synced();
    assert_only_one_point_is_kept(&standby.beta, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_copy_takes_the_place_of_what_was_written_in_part() {
    let Some(standby) = Standby::of("a_new_copy_takes_the_place", raw_machine()).await else { return };
    killed_midway(&standby);
    let request =
        CloneRequest { new_name: Some(NAME.parse().unwrap()), existing: Existing::Replace, ..CloneRequest::default() };
    let client = standby.client().await;
    crate::common::clone_with(&client, "alpha", "beta", "web1", request, &CloneSettings::default()).await.unwrap();
    standby.assert_synced();
    let files = standby.beta.shell(&format!("ls {IMAGES}")).unwrap();
    assert_eq!(files.lines().filter(|file| file.starts_with("standby")).count(), 2, "{files}");
}

/// What an interrupted sync in place had made beside the disks that it wrote.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_disk_of_an_interrupted_sync_is_not_in_the_way_of_the_next_one() {
    let Some(standby) = Standby::of("a_new_disk_of_an_interrupted_sync", raw_machine()).await else { return };
    let more = format!("{IMAGES}/more.img");
    standby.alpha.exec(&["qemu-img", "create", "-q", "-f", "raw", &more, "16M"]).unwrap();
    standby
        .alpha
        .exec(&["virsh", "-q", "attach-disk", "web1", &more, "vdc", "--subdriver", "raw", "--config"])
        .unwrap();
    for (byte, moment) in
        [(1, (Step::Stage, Moment::Acted)), (2, (Step::Place, Moment::Acted)), (3, (Step::Define, Moment::Intended))]
    {
        change(&standby, byte);
        standby.write("vdc", &[&format!("write -P {byte} 0 1M")]);
        let mut controller = Task::in_lab(&standby.lab).in_place().die_at(moment.0, moment.1).start();
        controller.says("dies");
        controller.kill();
        standby.await_dead_man();
        assert_eq!(is_out_of_service(&standby.beta), moment.0 > Step::Stage);
        standby.sync().await.unwrap();
        standby.assert_synced();
        assert_only_one_point_is_kept(&standby.beta, 3);
        // The next round has a disk that is new again.
        standby.alpha.exec(&["virsh", "-q", "detach-disk", "web1", "vdc", "--config"]).unwrap();
        standby.sync().await.unwrap();
        standby.beta.shell(&format!("rm -f {IMAGES}/standby-vdc* /var/lib/kvm-clone/*/*-vdc*")).unwrap();
        standby
            .alpha
            .exec(&["virsh", "-q", "attach-disk", "web1", &more, "vdc", "--subdriver", "raw", "--config"])
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_midway_says_what_is_left() {
    let Some(standby) = Standby::of("what_is_cancelled_midway", raw_machine()).await else { return };
    standby.write("vda", &["write -P 9 0 24M"]);
    let gate = Gate::after(4 * MIB);
    let cancel = CancellationToken::new();
    let prepared = standby.prepare(&in_place()).await.unwrap();
    let (settings, stop) = (gate.settings(), cancel.clone());
    let run = tokio::spawn(async move { prepared.execute(&settings, silent(), stop).await });
    gate.reached().await;
    cancel.cancel();
    let error = run.await.unwrap().unwrap_err();
    assert_eq!((number(&error), &error.context["cause_code"][..]), (1015, "1008"), "{error:?}");
    assert!(error.context["left"].contains("standby-vda.img"), "{error:?}");
    for way_on in ["kvm-clone sync alpha beta web1", "kvm-clone resume"] {
        assert!(error.help.iter().any(|help| help.contains(way_on)), "{error:?}");
    }
    assert_out_of_service(&standby);
    standby.sync().await.unwrap();
    standby.assert_synced();
}
