//! What a machine has beside its disks follows them in a sync: firmware variables, and the state of its TPM. They become those of the
//! new point with it, or stay those of the old one; what somebody changed at the replica is not overwritten unasked.

use std::collections::BTreeMap;

use crate::common::{MIB, number};
use crate::oracle::PATIENCE;
use crate::oracle::child::Task;
use crate::oracle::strike::{agents_die, struck_while};
use crate::standby::{NAME, Standby, discarding, full};
use kvm_clone_core::domain::{Domain, TpmState};
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::{CloneRequest, SyncRequest, Update};
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{CloneSettings, FileState, Moment, Then, VerifyResult};
use kvm_clone_lab::{DiskSpec, Fill, Host, MachineSpec};

const STATES: &str = "/var/lib/libvirt/swtpm";
const NVRAM: &str = "/var/lib/libvirt/qemu/nvram";
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const TPM: &str = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>";

/// A machine whose variables and TPM have a content that no emulator made, with a replica that got both.
struct Beside(Standby);

impl Beside {
    async fn new(test: &str) -> Option<Self> {
        Self::of(test, DiskSpec::qcow2("vda", 16 * MIB)).await
    }

    async fn of(test: &str, disk: DiskSpec) -> Option<Self> {
        let machine =
            MachineSpec::named("web1").disk(disk.fill(Fill::Random { seed: 1, bytes: 2 * MIB })).devices_xml(TPM);
        let beside = Self(Standby::unreplicated(test, machine)?);
        let (alpha, xml) = (&beside.0.alpha, beside.0.source.xml().unwrap());
        let (start, end) = (xml.find("<kernel>").unwrap(), xml.find("</cmdline>").unwrap() + "</cmdline>".len());
        let firmware = format!(
            "<loader readonly='yes' type='pflash'>{CODE}</loader><nvram template='{VARS}'>{NVRAM}/web1_VARS.fd</nvram>"
        );
        std::fs::write(alpha.path("/root/machine.xml"), format!("{}{firmware}{}", &xml[..start], &xml[end..])).unwrap();
        alpha.exec(&["virsh", "-q", "define", "/root/machine.xml"]).unwrap();
        alpha.shell(&format!("cp {VARS} {NVRAM}/web1_VARS.fd")).unwrap();
        beside.change(alpha, "web1", "first");
        beside.replicate().await;
        Some(beside)
    }

    async fn replicate(&self) {
        let new_name = Some(NAME.parse().unwrap());
        let request = CloneRequest { new_name, tpm: TpmState::Copied, ..CloneRequest::default() };
        let client = self.0.client().await;
        crate::common::clone_with(&client, "alpha", "beta", "web1", request, &CloneSettings::default()).await.unwrap();
    }

    /// Writes to variables and TPM, and, at the source, to the disk.
    fn change(&self, host: &Host, machine: &str, word: &str) {
        self.change_nvram(host, machine, word);
        change_tpm(host, machine, word);
        if machine == "web1" {
            self.0.write("vda", &[&format!("write -P {} 5M 64k", word.len())]);
        }
    }

    fn change_nvram(&self, host: &Host, machine: &str, word: &str) {
        let path = nvram(host, machine);
        host.shell(&format!("printf '%-16s' {word} | dd of={path} bs=1 seek=300000 conv=notrunc")).unwrap();
    }

    fn source(&self) -> BTreeMap<&'static str, Vec<u8>> {
        contents(&self.0.alpha, "web1")
    }

    fn replica(&self) -> BTreeMap<&'static str, Vec<u8>> {
        contents(&self.0.beta, NAME)
    }

    /// The replica is the source, and nothing of a sync is left.
    fn assert_synced(&self) {
        self.0.assert_synced();
        assert!(self.replica() == self.source());
        let beta = &self.0.beta;
        assert_eq!(beta.shell(&format!("ls -A {NVRAM} | wc -l")).unwrap().trim(), "1", "the old variables are gone");
        self.assert_nothing_staged();
        let (dir, _) = state(beta, NAME).rsplit_once('/').map(|(dir, file)| (dir.to_owned(), file.to_owned())).unwrap();
        let owners = beta.shell(&format!("stat -c '%U:%G %a' {dir} {dir}/tpm2-00.permall")).unwrap();
        assert_eq!(owners, "tss:tss 700\ntss:tss 600\n");
        let manifests = beta.shell("ls /var/lib/kvm-clone/manifests | wc -l").unwrap();
        assert_eq!(manifests.trim(), "3", "digests of disk, variables and TPM");
    }

    fn assert_nothing_staged(&self) {
        let there = self.0.beta.shell(&format!("find {STATES} {NVRAM} -name '.kvm-clone*'")).unwrap();
        assert_eq!(there, "");
    }

    async fn verify(&self) -> VerifyResult {
        self.0.verify().await.unwrap()
    }

    async fn refused(&self, named: &str) {
        let before = everything(&self.0.beta);
        for asked in [SyncRequest::default(), full()] {
            let error = self.0.sync_with(&asked, &CloneSettings::default()).await.unwrap_err();
            assert_eq!(number(&error), 1014, "{error:?}");
            assert_eq!(error.context["path"], named, "{error:?}");
            assert!(error.help.iter().any(|help| help.contains("--discard-target-changes")), "{error:?}");
            assert_eq!(everything(&self.0.beta), before, "nothing is written");
        }
    }

    fn controller_dies(&self, step: Step, moment: Moment) {
        self.dies(Task::in_lab(&self.0.lab).sync().die_at(step, moment));
    }

    fn dies(&self, task: Task) {
        let mut controller = task.start();
        controller.says("dies");
        controller.kill();
        self.0.await_dead_man();
    }
}

fn domain(host: &Host, machine: &str) -> Domain {
    Domain::parse(&host.exec(&["virsh", "-q", "dumpxml", "--inactive", machine]).unwrap()).unwrap()
}

fn nvram(host: &Host, machine: &str) -> String {
    domain(host, machine).nvram().unwrap().path.unwrap()
}

/// Where the state of a machine's TPM is.
fn state(host: &Host, machine: &str) -> String {
    format!("{STATES}/{}/tpm2/tpm2-00.permall", host.machine(machine).unwrap().uuid())
}

fn change_tpm(host: &Host, machine: &str, word: &str) {
    let path = state(host, machine);
    let (dir, _) = path.rsplit_once('/').unwrap();
    let (own, _) = dir.rsplit_once('/').unwrap();
    let make = format!("install -d -m 0711 {STATES} {own}; install -d -m 0700 -o tss -g tss {dir}");
    host.shell(&format!("{make}; echo {word} >{path}; chown tss:tss {path}; chmod 600 {path}")).unwrap();
}

fn contents(host: &Host, machine: &str) -> BTreeMap<&'static str, Vec<u8>> {
    let read = |path: String| std::fs::read(host.path(&path)).unwrap();
    BTreeMap::from([("nvram", read(nvram(host, machine))), ("tpm", read(state(host, machine)))])
}

/// Every file of a replica's host that a sync could touch, with what is in it.
fn everything(host: &Host) -> String {
    let places = format!("{STATES} {NVRAM} /var/lib/libvirt/images /var/lib/kvm-clone/manifests");
    host.shell(&format!("find {places} /var/lib/kvm-clone/operations -type f | sort | xargs sha256sum")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_variables_and_the_state_of_a_tpm_come_with_the_point() {
    let Some(beside) = Beside::new("changed_variables_and_the_state_of_a_tpm_come").await else { return };
    for (word, asked) in [("second", SyncRequest::default()), ("the-third", SyncRequest::default()), ("4th", full())] {
        beside.change(&beside.0.alpha, "web1", word);
        let result = beside.0.sync_with(&asked, &CloneSettings::default()).await.unwrap();
        assert!(!result.warnings.iter().any(|warning| warning.contains("TPM")), "{:?}", result.warnings);
        beside.assert_synced();
        let verified = beside.verify().await;
        assert!(verified.success && verified.files.len() == 2, "{:?}", verified.files);
    }
    // Files that the source's TPM does not have go, and so does what nobody can say of them.
    let [at_source, at_replica] = [state(&beside.0.alpha, "web1"), state(&beside.0.beta, NAME)];
    let other = |path: &str| path.replace("permall", "volatilestate");
    beside.0.alpha.shell(&format!("cp -p {at_source} {}", other(&at_source))).unwrap();
    beside.0.sync().await.unwrap();
    assert!(beside.0.beta.path(&other(&at_replica)).exists());
    beside.0.alpha.shell(&format!("rm {}", other(&at_source))).unwrap();
    beside.0.sync().await.unwrap();
    assert!(!beside.0.beta.path(&other(&at_replica)).exists());
    beside.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_and_states_that_were_changed_at_the_replica_are_not_overwritten_unasked() {
    let Some(beside) = Beside::new("variables_and_states_changed_at_the_replica").await else { return };
    let beta = &beside.0.beta;
    for tpm in [false, true] {
        let path = if tpm { state(beta, NAME) } else { nvram(beta, NAME) };
        // Another owner, another time stamp or a link is no change.
        beta.shell(&format!(
            "touch {path}; chmod g+r {path}; chmod g-r {path}; ln {path} /var/tmp/link; rm /var/tmp/link"
        ))
        .unwrap();
        beside.0.sync().await.unwrap();
        let path = if tpm { state(beta, NAME) } else { nvram(beta, NAME) };
        if tpm {
            change_tpm(beta, NAME, "mine")
        } else {
            beside.change_nvram(beta, NAME, "mine")
        }
        beside.refused(&path).await;
        let verified = beside.verify().await;
        let differing: Vec<_> = verified.files.iter().filter(|file| file.state == FileState::Differs).collect();
        assert!(!verified.success && differing.len() == 1 && differing[0].path == path, "{:?}", verified.files);
        let error = verified.difference().unwrap();
        assert!(number(&error) == 1012 && error.message.contains(&path), "{error:?}");
        beside.0.sync_with(&SyncRequest::default(), &discarding()).await.unwrap();
        beside.assert_synced();
    }
    // Older versions kept no digests at each point: what is like the source's is not lost, of the rest nobody can tell.
    let forget = "rm /var/lib/kvm-clone/manifests/*-nvram /var/lib/kvm-clone/manifests/*-tpm";
    beta.shell(forget).unwrap();
    beside.0.sync().await.unwrap();
    beside.assert_synced();
    beta.shell(forget).unwrap();
    beside.change(&beside.0.alpha, "web1", "another");
    beside.refused(&nvram(beta, NAME)).await;
    let verified = beside.verify().await;
    assert!(verified.success, "{:?}", verified.files);
    assert!(verified.files.iter().all(|file| matches!(file.state, FileState::Unknown { .. })), "{:?}", verified.files);
    beside.0.sync_with(&SyncRequest::default(), &discarding()).await.unwrap();
    beside.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_beside_the_disks_keeps_its_digests() {
    let Some(beside) = Beside::new("what_stays_beside_the_disks_keeps_its_digests").await else { return };
    let before = beside.replica();
    beside.change(&beside.0.alpha, "web1", "second");
    let disks_only = SyncRequest { update: Update { disks_only: true, ..Update::default() }, ..SyncRequest::default() };
    beside.0.sync_with(&disks_only, &CloneSettings::default()).await.unwrap();
    beside.0.assert_synced();
    assert!(beside.replica() == before);
    let verified = beside.verify().await;
    assert!(verified.files.iter().all(|file| file.state == FileState::Identical), "{:?}", verified.files);
    beside.0.sync().await.unwrap();
    beside.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn written_in_place_a_replica_gets_what_is_beside_its_disks_with_the_commit() {
    let raw = DiskSpec::raw("vda", 16 * MIB);
    let Some(beside) = Beside::of("written_in_place_a_replica_gets_what_is_beside", raw).await else { return };
    let asked = SyncRequest { update: Update { in_place: true, ..Update::default() }, ..SyncRequest::default() };
    let in_place = async |settings: &CloneSettings| beside.0.sync_with(&asked, settings).await;
    let incomplete = || domain(&beside.0.beta, NAME).lineage().unwrap().incomplete;
    // What was changed is found before anything is written.
    beside.change(&beside.0.alpha, "web1", "second");
    change_tpm(&beside.0.beta, NAME, "guest");
    let before = everything(&beside.0.beta);
    assert_eq!(number(&in_place(&CloneSettings::default()).await.unwrap_err()), 1014);
    assert!(everything(&beside.0.beta) == before && incomplete().is_none());
    in_place(&discarding()).await.unwrap();
    beside.assert_synced();
    beside.change(&beside.0.alpha, "web1", "the-third");
    in_place(&CloneSettings::default()).await.unwrap();
    beside.assert_synced();
    // Out of service it has what it had; the next sync brings all of it.
    for (step, word) in [(Step::Copy, "copied"), (Step::Place, "placed-by-name")] {
        let old = beside.replica();
        beside.change(&beside.0.alpha, "web1", word);
        beside.dies(Task::in_lab(&beside.0.lab).in_place().die_at(step, Moment::Acted));
        assert!(incomplete().is_some() && beside.replica() == old, "{step}");
        beside.0.sync().await.unwrap();
        beside.assert_synced();
    }
    for (step, word) in [(Step::Define, "defined-it"), (Step::Renew, "renewed-it-all")] {
        beside.change(&beside.0.alpha, "web1", word);
        beside.dies(Task::in_lab(&beside.0.lab).in_place().die_at(step, Moment::Acted));
        assert!(incomplete().is_none());
        beside.0.recover(word).await;
        beside.assert_synced();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_of_a_tpm_that_a_dead_controller_left_waiting_takes_its_place() {
    let Some(beside) = Beside::new("a_state_that_a_dead_controller_left_waiting").await else { return };
    for (number, (step, moment)) in
        [(Step::Define, Moment::Acted), (Step::Renew, Moment::Intended), (Step::Renew, Moment::Acted)]
            .into_iter()
            .enumerate()
    {
        for recovers in [true, false] {
            let (old, word) = (beside.replica(), format!("at-{number}-{recovers}"));
            beside.change(&beside.0.alpha, "web1", &word);
            beside.controller_dies(step, moment);
            assert_eq!(beside.0.replica_contents(), beside.0.source_contents(), "the disks are the new point");
            let (now, new) = (beside.replica(), beside.source());
            assert!(now["nvram"] == new["nvram"], "the variables are");
            let expected = if (step, moment) == (Step::Renew, Moment::Acted) { &new } else { &old };
            assert!(now["tpm"] == expected["tpm"], "{step} {moment:?}");
            if recovers {
                beside.0.recover(&word).await
            } else {
                drop(beside.0.sync().await.unwrap())
            }
            beside.assert_synced();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_right_after_the_commit_is_no_harm_to_a_tpm() {
    let Some(beside) = Beside::new("an_agent_that_dies_right_after_the_commit").await else { return };
    for (word, step) in [("second", Step::Define), ("the-third", Step::Renew)] {
        beside.change(&beside.0.alpha, "web1", word);
        let prepared = beside.0.prepare(&SyncRequest::default()).await.unwrap();
        struck_while(prepared, (step, Moment::Acted), agents_die(&beside.0.beta)).await.unwrap();
        beside.0.recover(word).await;
        beside.assert_synced();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_before_its_commit_leaves_the_old_state_of_the_tpm() {
    let Some(beside) = Beside::new("a_sync_that_fails_before_its_commit").await else { return };
    let (before, files) = (beside.replica(), everything(&beside.0.beta));
    beside.change(&beside.0.alpha, "web1", "second");
    for at in [
        (Step::Stage, Moment::Acted),
        (Step::Copy, Moment::Acted),
        (Step::Place, Moment::Acted),
        (Step::Define, Moment::Acted),
    ] {
        let prepared = beside.0.prepare(&SyncRequest::default()).await.unwrap();
        let fails = || -> Result<Then> { Err(Error::internal("struck")) };
        assert_eq!(number(&struck_while(prepared, at, fails).await.unwrap_err()), 1000, "{at:?}");
        assert!(beside.replica() == before, "{at:?}");
        assert_eq!(everything(&beside.0.beta), files, "{at:?}");
        beside.assert_nothing_staged();
    }
    for step in [Step::Finish, Step::Place] {
        beside.controller_dies(step, Moment::Acted);
        assert!(beside.replica() == before, "{step}");
        beside.0.recover(step.word()).await;
        assert_eq!(everything(&beside.0.beta), files, "{step}");
        beside.assert_nothing_staged();
    }
    beside.0.sync().await.unwrap();
    beside.assert_synced();
}

/// As when the replica was started while nobody looked after the sync.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_was_changed_before_its_time_stays_and_is_told() {
    let Some(beside) = Beside::new("a_state_that_was_changed_before_its_time").await else { return };
    beside.change(&beside.0.alpha, "web1", "second");
    beside.controller_dies(Step::Define, Moment::Acted);
    change_tpm(&beside.0.beta, NAME, "mine");
    beside.0.recover("changed").await;
    assert_eq!(beside.replica()["tpm"], b"mine\n");
    beside.assert_nothing_staged();
    beside.refused(&state(&beside.0.beta, NAME)).await;

    beside.0.sync_with(&SyncRequest::default(), &discarding()).await.unwrap();
    beside.assert_synced();
    beside.change(&beside.0.alpha, "web1", "the-third");
    let beta = beside.0.beta.clone();
    let prepared = beside.0.prepare(&SyncRequest::default()).await.unwrap();
    let change = move || {
        change_tpm(&beta, NAME, "mine");
        Ok(Then::Go)
    };
    let result = struck_while(prepared, (Step::Define, Moment::Acted), change).await.unwrap();
    assert!(
        result.warnings.iter().any(|warning| warning.contains("keeps the state that it has")),
        "{:?}",
        result.warnings
    );
    assert_eq!(beside.replica()["tpm"], b"mine\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_does_not_start_between_its_commit_and_the_state_of_its_tpm() {
    let machine = MachineSpec::named("web1").disk(DiskSpec::qcow2("vda", 16 * MIB)).devices_xml(TPM);
    let Some(standby) = Standby::unreplicated("a_replica_does_not_start_between", machine) else { return };
    let beside = Beside(standby);
    let boot = |host: &Host, name: &str| {
        let machine = host.machine(name).unwrap();
        machine.start().unwrap();
        machine.wait_for_console("kvm-clone-guest: up", PATIENCE).unwrap();
    };
    boot(&beside.0.alpha, "web1");
    beside.0.source.destroy().unwrap();
    beside.replicate().await;
    // The emulator writes to its state at each start.
    boot(&beside.0.alpha, "web1");
    let error = beside.0.sync().await.unwrap_err();
    assert_eq!(number(&error), 1013, "{error:?}");
    assert!(error.help[0].contains("--disks-only"), "{error:?}");
    let disks_only = SyncRequest { update: Update { disks_only: true, ..Update::default() }, ..SyncRequest::default() };
    beside.0.sync_with(&disks_only, &CloneSettings::default()).await.unwrap();
    beside.0.source.destroy().unwrap();
    beside.0.write("vda", &["write -P 7 1M 64k"]);

    let beta = beside.0.beta.clone();
    let prepared = beside.0.prepare(&SyncRequest::default()).await.unwrap();
    let start = move || {
        let refused = beta.machine(NAME).unwrap().start().unwrap_err().to_string();
        assert!(refused.contains("tpm-emulator") || refused.contains("swtpm"), "{refused}");
        Ok(Then::Go)
    };
    let result = struck_while(prepared, (Step::Define, Moment::Acted), start).await.unwrap();
    assert!(!result.warnings.iter().any(|warning| warning.contains("TPM")), "{:?}", result.warnings);
    let tpm = |host: &Host, name: &str| std::fs::read(host.path(&state(host, name))).unwrap();
    assert_eq!(tpm(&beside.0.beta, NAME), tpm(&beside.0.alpha, "web1"));
    beside.0.assert_synced();
    boot(&beside.0.beta, NAME);
}
