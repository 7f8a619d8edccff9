//! Machines with an emulated TPM: its state comes along by word, bit for bit, and is gone again where the copy is.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::*;
use crate::oracle::child::Task;
use crate::oracle::{Gate, PATIENCE, Run, Scene};
use crate::pair::{Pair, web};
use futures_util::future::BoxFuture;
use kvm_clone_core::domain::{Identity, TpmState};
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::{CloneRequest, Existing};
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{Action, Boundary, CloneSettings, Moment, Recovery, Then};
use kvm_clone_lab::{Host, HostSpec, Machine, define_machine};

const STATES: &str = "/var/lib/libvirt/swtpm";
const TPM: &str = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>";

fn copied() -> CloneRequest {
    CloneRequest { tpm: TpmState::Copied, ..CloneRequest::default() }
}

/// Has the emulator make a state.
fn start_once(machine: &Machine) {
    machine.start().unwrap();
    machine.wait_for_console("kvm-clone-guest: up", PATIENCE).unwrap();
    machine.destroy().unwrap();
}

/// Every file of a machine's TPM, with what is in it. The lock is the emulator's.
fn state(host: &Host, uuid: &str) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(host.path(&format!("{STATES}/{uuid}/tpm2"))).unwrap().map(|entry| entry.unwrap());
    let named =
        files.map(|file| (file.file_name().to_string_lossy().into_owned(), std::fs::read(file.path()).unwrap()));
    named.filter(|(name, _)| name != ".lock").collect()
}

fn states(host: &Host) -> String {
    host.shell(&format!("find {STATES} 2>/dev/null || true")).unwrap()
}

/// What `stat` says of owner and mode.
fn owner(host: &Host, path: &str) -> String {
    host.shell(&format!("stat -c '%U:%G %a' {path}")).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_a_tpm_comes_along_by_word() {
    let hosts = [HostSpec::named("alpha"), HostSpec::named("beta").qemu_unprivileged()];
    let Some(pair) = Pair::of("the_state_of_a_tpm_comes_along", hosts) else { return };
    let machine = define_machine(&pair.alpha, web().devices_xml(TPM)).unwrap();
    start_once(&machine);
    let before = state(&pair.alpha, machine.uuid());
    assert!(before["tpm2-00.permall"].len() > 1000, "{:?}", before.keys());

    let result = pair.clone(copied()).await.unwrap();
    assert!(result.warnings.iter().any(|warning| warning.contains("trusts both")), "{:?}", result.warnings);
    let copy = pair.beta.machine("web1_clone").unwrap();
    assert!(state(&pair.beta, copy.uuid()) == before);
    assert!(state(&pair.alpha, machine.uuid()) == before, "the source's is untouched");
    let dir = format!("{STATES}/{}", copy.uuid());
    for (path, expected) in [
        (STATES.to_owned(), "root:root 711"),
        (dir.clone(), "root:root 711"),
        (format!("{dir}/tpm2"), "tss:tss 700"),
        (format!("{dir}/tpm2/tpm2-00.permall"), "tss:tss 600"),
    ] {
        assert_eq!(owner(&pair.beta, &path), expected, "{path}");
    }
    start_once(&copy);
    // libvirt says so here when it has a new state made.
    let log = pair.beta.shell("cat /var/log/swtpm/libvirt/qemu/web1_clone-swtpm.log 2>/dev/null || true").unwrap();
    assert!(!log.contains("manufacturing"), "{log}");
    let log = pair.alpha.shell("cat /var/log/swtpm/libvirt/qemu/web1-swtpm.log").unwrap();
    assert!(log.contains("manufacturing"), "{log}");
    assert_nothing_left(&pair.beta);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_is_copied_only_while_its_machine_is_stopped() {
    let Some(pair) = Pair::new("a_tpm_is_copied_only_while_its_machine_is_stopped") else { return };
    let machine = define_machine(&pair.alpha, web().devices_xml(TPM)).unwrap();
    machine.start().unwrap();
    let error = pair.clone(copied()).await.unwrap_err();
    assert_eq!(number(&error), 1013, "{error:?}");
    assert!(error.message.contains("only while it is stopped"), "{error:?}");
    // A replica of one that is stopped wants a word.
    machine.destroy().unwrap();
    let error = pair.clone(CloneRequest { identity: Identity::Kept, ..CloneRequest::default() }).await.unwrap_err();
    assert_eq!(number(&error), 1013, "{error:?}");
    assert!(error.help[0].contains("--tpm copy") && error.help[0].contains("--tpm new"), "{error:?}");

    let before = state(&pair.alpha, machine.uuid());
    pair.clone(CloneRequest { identity: Identity::Kept, ..copied() }).await.unwrap();
    assert!(state(&pair.beta, machine.uuid()) == before);
    // What is there stays, whosever it is.
    pair.beta.exec(&["virsh", "-q", "undefine", "--keep-tpm", "web1"]).unwrap();
    pair.beta.shell("rm /var/lib/libvirt/images/*").unwrap();
    let error = pair.clone(CloneRequest { identity: Identity::Kept, ..copied() }).await.unwrap_err();
    assert_eq!(number(&error), 1004, "{error:?}");
    assert!(state(&pair.beta, machine.uuid()) == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_a_tpm_needs_must_be_there() {
    let Some(pair) = Pair::new("a_secret_that_a_tpm_needs_must_be_there") else { return };
    let uuid = "6dd3e4a5-1d76-44ce-961f-f119f5aad935";
    let secret = format!(
        "<secret ephemeral='no' private='yes'><uuid>{uuid}</uuid><usage type='vtpm'><name>web1</name></usage></secret>"
    );
    let make = |host: &Host| {
        std::fs::write(host.path("/root/secret.xml"), &secret).unwrap();
        host.exec(&["virsh", "-q", "secret-define", "/root/secret.xml"]).unwrap();
        host.exec(&["virsh", "-q", "secret-set-value", uuid, "c2VjcmV0"]).unwrap();
    };
    make(&pair.alpha);
    let tpm = TPM.replace("version='2.0'/>", &format!("version='2.0'><encryption secret='{uuid}'/></backend>"));
    let machine = define_machine(&pair.alpha, web().devices_xml(&tpm)).unwrap();
    start_once(&machine);
    for request in [copied(), CloneRequest::default()] {
        let error = pair.clone(request).await.unwrap_err();
        assert_eq!(number(&error), 1013, "{error:?}");
        assert!(error.message.contains(uuid), "{error:?}");
    }
    make(&pair.beta);
    pair.clone(copied()).await.unwrap();
    start_once(&pair.beta.machine("web1_clone").unwrap());
}

/// Fails when libvirt has the definition.
#[derive(Debug)]
struct Defined;

impl Boundary for Defined {
    fn pass(&self, step: Step, moment: Moment) -> BoxFuture<'_, Result<Then>> {
        let fails = (step, moment) == (Step::Define, Moment::Acted);
        Box::pin(async move { if fails { Err(Error::internal("struck")) } else { Ok(Then::Go) } })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_was_there_outlives_a_copy_that_is_undone() {
    let Some(pair) = Pair::new("a_state_that_was_there_outlives") else { return };
    let machine = define_machine(&pair.alpha, web().devices_xml(TPM)).unwrap();
    start_once(&machine);
    let dir = format!("{STATES}/{}", machine.uuid());
    pair.beta
        .shell(&format!("install -d -m 0711 {STATES} {dir} {dir}/tpm2; echo mine >{dir}/tpm2/tpm2-00.permall"))
        .unwrap();
    let settings = CloneSettings { boundary: Arc::new(Defined), ..CloneSettings::default() };
    let request = |tpm| CloneRequest { identity: Identity::Kept, tpm, ..CloneRequest::default() };
    let client = client(&pair.lab).await;
    let outcome = clone_with(&client, "alpha", "beta", "web1", request(TpmState::New), &settings).await;
    assert_eq!(number(&outcome.unwrap_err()), 1004, "it would be the copy's");
    assert_eq!(state(&pair.beta, machine.uuid())["tpm2-00.permall"], b"mine\n");

    pair.beta.shell(&format!("rm -r {STATES}")).unwrap();
    let outcome = clone_with(&client, "alpha", "beta", "web1", request(TpmState::Copied), &settings).await;
    assert_eq!(number(&outcome.unwrap_err()), 1000);
    assert_eq!(states(&pair.beta), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_copy_leaves_no_state_of_a_tpm() {
    let Some(pair) = Pair::new("a_failed_copy_leaves_no_state_of_a_tpm") else { return };
    let machine = define_machine(&pair.alpha, web().devices_xml(TPM)).unwrap();
    start_once(&machine);
    let gate = Gate::after(4 * MIB);
    let run = Run::start(client(&pair.lab).await, copied(), gate.settings());
    gate.reached().await;
    assert!(states(&pair.beta).contains("/tpm2/.kvm-clone-"), "{}", states(&pair.beta));
    let given = pair.beta.shell(&format!("find {STATES} -user tss")).unwrap();
    assert_eq!(given, "", "nothing is given away before it is complete");
    run.cancel.cancel();
    assert_eq!(number(&run.fails().await), 1008);
    gate.open();
    assert_eq!(states(&pair.beta), "", "the directories that were made are gone with what was in them");
    assert_nothing_left(&pair.beta);
}

/// The emulator's user may write to that directory: a link there would have root copy any file of the source.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_the_place_of_a_state_or_of_variables_is_refused() {
    let Some(pair) = Pair::new("a_link_in_the_place_of_a_state") else { return };
    let machine = define_machine(&pair.alpha, web().devices_xml(TPM)).unwrap();
    let dir = format!("{STATES}/{}/tpm2", machine.uuid());
    pair.alpha.shell(&format!("mkdir -p {dir} && ln -s /etc/shadow {dir}/tpm2-00.permall")).unwrap();
    let error = pair.clone(copied()).await.unwrap_err();
    assert_eq!(number(&error), 1013, "{error:?}");
    assert!(error.message.contains("tpm2-00.permall is a symbolic link"), "{error:?}");
    assert_eq!(states(&pair.beta), "");
    assert!(machines(&pair.beta).is_empty());
}

/// The copy takes over the UUID of the machine that it replaces, and would take over its keys.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_tpm_is_never_that_of_the_machine_that_is_replaced() {
    let Some(pair) = Pair::new("an_empty_tpm_is_never_that_of") else { return };
    define_machine(&pair.alpha, web().devices_xml(TPM)).unwrap();
    pair.clone(CloneRequest::default()).await.unwrap();
    let copy = pair.beta.machine("web1_clone").unwrap();
    start_once(&copy);
    let before = state(&pair.beta, copy.uuid());
    let replace = CloneRequest { tpm: TpmState::New, existing: Existing::Replace, ..CloneRequest::default() };
    let error = pair.clone(replace).await.unwrap_err();
    assert_eq!(number(&error), 1004, "{error:?}");
    assert!(error.message.contains("machine web1_clone has a TPM with a state"), "{error:?}");
    assert!(state(&pair.beta, copy.uuid()) == before);
}

/// A controller that dies with everything in its place: whoever comes later finds it by the marker.
/// A machine with a TPM that has a state, which is to be copied.
fn with_a_state(test: &str) -> Option<Scene> {
    let mut scene = Scene::new(test)?;
    let xml = scene.source.xml().unwrap().replace("</devices>", &format!("{TPM}</devices>"));
    std::fs::write(scene.alpha.path("/root/machine.xml"), xml).unwrap();
    scene.alpha.exec(&["virsh", "-q", "define", "/root/machine.xml"]).unwrap();
    start_once(&scene.source);
    scene.request = copied();
    scene.remember();
    Some(scene)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_a_tpm_that_a_dead_controller_left_is_recovered() {
    let Some(scene) = with_a_state("the_state_of_a_tpm_that_a_dead_controller_left") else { return };
    let mut controller = Task::new(&scene).hold_at("commit").start();
    controller.says("held");
    assert!(states(&scene.beta).contains("tpm2-00.permall"), "{}", states(&scene.beta));
    controller.kill();
    scene.await_dead_man();
    let recovered = scene.recover("other.db").await;
    assert!(matches!(recovered.as_slice(), [one] if one.action == Action::Undo), "{recovered:?}");
    assert_eq!(states(&scene.beta), "");
    assert!(scene.client().await.recover(&spec("beta"), Recovery::Act).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_a_tpm_comes_along_where_the_clone_is_resumed() {
    let Some(scene) = with_a_state("the_state_of_a_tpm_where_the_clone_is_resumed") else { return };
    let before = state(&scene.alpha, scene.source.uuid());
    for held in ["finish", "commit"] {
        let mut controller = Task::new(&scene).hold_at(held).start();
        controller.says("held");
        controller.kill();
        scene.await_dead_man();
        let marker = scene.beta.shell("ls /var/lib/kvm-clone/operations").unwrap();
        let operation = marker.trim().trim_end_matches(".json").parse().unwrap();
        let client = scene.client_with("child.db").await;
        let (settings, cancel) = (CloneSettings::default(), tokio_util::sync::CancellationToken::new());
        client.resume(operation, &settings, silent(), cancel).await.unwrap();
        let copy = scene.beta.machine("web1_clone").unwrap();
        assert_eq!(state(&scene.beta, copy.uuid()), before);
        start_once(&copy);
        assert_nothing_left(&scene.beta);
        scene.beta.exec(&["virsh", "-q", "undefine", "--tpm", "web1_clone"]).unwrap();
        scene.beta.shell("rm -f /var/lib/libvirt/images/web1_clone-* /var/lib/kvm-clone/manifests/*").unwrap();
    }
}
