//! A disk or a program of a host hangs, whatever is being done with it: given up after the stall timeout, said, undone; and when it goes
//! on, nothing of ours is left. One that is only slow is waited for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::*;
use crate::oracle::{IMAGES, State};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::event::Event;
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::CloneRequest;
use kvm_clone_core::{Code, Error, Result};
use kvm_clone_engine::{Boundary, Client, CloneSettings, Events, Moment, Recovery, Then};
use kvm_clone_lab::{
    DiskSpec, Fill, FsKind, Host, HostSpec, Lab, MachineSpec, ServedFile, available, define_machine, fault,
};
use tokio_util::sync::CancellationToken;

const STALL: Duration = Duration::from_secs(2);
/// How long anything that must happen may take.
const PATIENCE: Duration = Duration::from_secs(60);
const DISK: &str = "/var/lib/libvirt/images/web1-vda.qcow2";

/// Two hosts with a machine `web1` on the first.
struct Scene {
    alpha: Host,
    beta: Host,
    source: State,
    lab: Lab,
}

impl Scene {
    fn new(test: &str) -> Option<Self> {
        Self::with(test, 12 * MIB)
    }

    /// With so many bytes of data.
    fn with(test: &str, bytes: u64) -> Option<Self> {
        if !available(test) {
            return None;
        }
        let lab = Lab::new().unwrap();
        let mut hosts = lab.hosts(["alpha", "beta"].map(HostSpec::named).to_vec()).unwrap();
        let (beta, alpha) = (hosts.pop().unwrap(), hosts.pop().unwrap());
        let fill = Fill::Random { seed: 1, bytes };
        let machine = MachineSpec::named("web1").disk(DiskSpec::qcow2("vda", 64 * MIB).fill(fill));
        define_machine(&alpha, machine).unwrap();
        beta.provide_guest().unwrap();
        let source = State::of(&alpha);
        Some(Self { alpha, beta, source, lab })
    }

    /// The source's disk becomes one that is made with these options.
    fn convert(&mut self, options: &str) {
        let convert =
            format!("cd {IMAGES}; mv {DISK} old; qemu-img convert -f qcow2 -O qcow2 {options} old {DISK}; rm old");
        self.alpha.shell(&convert).unwrap();
        self.source = State::of(&self.alpha);
    }

    async fn client(&self) -> Client {
        let mut options = options(&self.lab);
        options.stall_timeout = STALL;
        Client::new(options).await.unwrap()
    }

    async fn clone(&self, settings: &CloneSettings, events: Events) -> Result<()> {
        let client = self.client().await;
        let (alpha, beta, name) = (spec("alpha"), spec("beta"), "web1".parse()?);
        let prepared = client.prepare(&alpha, &beta, &name, CloneRequest::default(), Recovery::Act, silent()).await?;
        prepared.execute(settings, events, CancellationToken::new()).await.map(drop)
    }

    /// What hung goes on: the source is what it was, what could not be undone is undone now, and nothing hinders the next copy.
    async fn assert_recovers(&self) {
        for host in [&self.alpha, &self.beta] {
            for program in ["kvm-clone-agent", "qemu-img", "qemu-nbd"] {
                fault::wait_gone(host, program, PATIENCE).unwrap();
            }
            let client = Client::new(options(&self.lab)).await.unwrap();
            let recovered = client.recover(&spec(host.name()), Recovery::Act).await.unwrap();
            assert!(recovered.iter().all(|entry| entry.error.is_none()), "{recovered:?}");
            assert_nothing_left(host);
        }
        assert!(machines(&self.beta).is_empty());
        assert_eq!(State::of(&self.alpha), self.source);
        let client = Client::new(options(&self.lab)).await.unwrap();
        crate::common::clone(&client, "alpha", "beta", "web1").await.unwrap();
    }
}

/// Does something right before a step is done.
struct At<F>(Step, F);

impl<F> std::fmt::Debug for At<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {}", self.0.word())
    }
}

impl<F: Fn() + Send + Sync> Boundary for At<F> {
    fn pass(&self, step: Step, moment: Moment) -> BoxFuture<'_, Result<Then>> {
        if step == self.0 && moment == Moment::Intended {
            (self.1)();
        }
        async { Ok(Then::Go) }.boxed()
    }
}

fn at(step: Step, what: impl Fn() + Send + Sync + 'static) -> CloneSettings {
    CloneSettings { boundary: Arc::new(At(step, what)), ..CloneSettings::default() }
}

fn hang_at(step: Step, file: &Arc<ServedFile>) -> CloneSettings {
    let file = Arc::clone(file);
    at(step, move || file.hang().unwrap())
}

fn assert_stalled(error: &Error, what: &str) {
    assert_eq!(number(error), 1010, "{error:?}");
    assert!(error.message.starts_with(what), "{error:?}");
    assert!(error.message.ends_with("has stalled: no progress for 2 s"), "{error:?}");
    assert!(error.transient && !error.help.is_empty(), "{error:?}");
}

/// From now on `program WORD …` stops as soon as it is started, as one does that waits for a disk.
fn stop_at_start(host: &Host, program: &str, word: &str) {
    let script = format!("#!/bin/sh\ncase \"$1\" in {word}) kill -STOP $$ ;; esac\nexec /usr/bin/{program} \"$@\"\n");
    let path = format!("/usr/local/bin/{program}");
    std::fs::create_dir_all(host.path("/usr/local/bin")).unwrap();
    std::fs::write(host.path(&path), script).unwrap();
    host.exec(&["chmod", "0755", &path]).unwrap();
}

fn start_as_ever(host: &Host, program: &str) {
    host.exec(&["rm", &format!("/usr/local/bin/{program}")]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_before_anything_is_begun_is_given_up() {
    let Some(scene) = Scene::new("a_source_that_hangs_before_anything_is_begun_is_given_up") else { return };
    let file = scene.alpha.serve_file(DISK, 0).unwrap();
    file.hang().unwrap();
    let error = scene.clone(&CloneSettings::default(), silent()).await.unwrap_err();
    assert_stalled(&error, &format!("alpha: looking at the image {DISK}"));
    file.end().unwrap();
    scene.assert_recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_hangs_is_given_up() {
    let Some(scene) = Scene::new("a_check_that_hangs_is_given_up") else { return };
    stop_at_start(&scene.alpha, "qemu-img", "check");
    let error = scene.clone(&CloneSettings::default(), silent()).await.unwrap_err();
    assert_stalled(&error, &format!("alpha: checking the image {DISK}"));
    assert_eq!(error.context["disk"], "vda");
    start_as_ever(&scene.alpha, "qemu-img");
    scene.assert_recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_while_its_data_is_looked_for_is_given_up() {
    let Some(scene) = Scene::new("a_source_that_hangs_while_its_data_is_looked_for_is_given_up") else { return };
    let file = Arc::new(scene.alpha.serve_file(DISK, 0).unwrap());
    let error = scene.clone(&hang_at(Step::Copy, &file), silent()).await.unwrap_err();
    assert_stalled(&error, &format!("alpha: finding the data of {DISK}"));
    file.end().unwrap();
    scene.assert_recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_while_qemu_reads_it_is_given_up() {
    let Some(mut scene) = Scene::new("a_source_that_hangs_while_qemu_reads_it_is_given_up") else { return };
    scene.convert("-c -o compression_type=zstd");
    let file = Arc::new(scene.alpha.serve_file(DISK, 0).unwrap());
    // It listens before it opens the image; on a busy host it is given up before it listens.
    let error = scene.clone(&hang_at(Step::Copy, &file), silent()).await.unwrap_err();
    let opening = format!("alpha: having qemu-nbd open the image {DISK}");
    let finding = format!("alpha: finding the data of {DISK}");
    assert_stalled(&error, if error.message.starts_with(&opening) { &opening } else { &finding });
    file.end().unwrap();
    scene.assert_recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_hangs_is_given_up() {
    let Some(mut scene) = Scene::new("an_export_that_hangs_is_given_up") else { return };
    scene.convert("-c -o compression_type=zstd");
    stop_at_start(&scene.alpha, "qemu-nbd", "--read-only");
    let error = scene.clone(&CloneSettings::default(), silent()).await.unwrap_err();
    assert_stalled(&error, &format!("alpha: having qemu-nbd open the image {DISK}"));
    start_as_ever(&scene.alpha, "qemu-nbd");
    scene.assert_recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_while_it_is_summed_up_is_given_up() {
    let Some(scene) = Scene::with("a_source_that_hangs_while_it_is_summed_up_is_given_up", 24 * MIB) else { return };
    // So slow that it is still being summed up when its lane agents are seen to be gone.
    let file = Arc::new(scene.alpha.serve_file(DISK, 8 * MIB).unwrap());
    let (served, alpha) = (Arc::clone(&file), scene.alpha.clone());
    let hang = move || {
        fault::wait_gone(&alpha, "kvm-clone-agent lane", PATIENCE).unwrap();
        served.hang().unwrap();
    };
    // All of the disk has arrived; its lane agents end, and close it, before it is read for its checksum.
    let events: Events = Arc::new(move |event| match event {
        Event::Progress { bytes_done, bytes_total, .. } if bytes_done == bytes_total => {
            std::thread::spawn(hang.clone());
        }
        _ => {}
    });
    let settings = CloneSettings { checksum: Some(Algorithm::Blake3), ..CloneSettings::default() };
    let error = scene.clone(&settings, events).await.unwrap_err();
    assert_stalled(&error, &format!("alpha: summing up the disk {DISK}"));
    file.end().unwrap();
    scene.assert_recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_hangs_at_the_target_is_given_up_and_undone() {
    let Some(scene) = Scene::new("a_check_that_hangs_at_the_target_is_given_up_and_undone") else { return };
    stop_at_start(&scene.beta, "qemu-img", "check");
    let error = scene.clone(&CloneSettings::default(), silent()).await.unwrap_err();
    assert_stalled(&error, &format!("beta: completing the image {IMAGES}/.kvm-clone-"));
    assert_nothing_left(&scene.beta);
    start_as_ever(&scene.beta, "qemu-img");
    scene.assert_recovers().await;
}

/// The target's images are on a file system that freezes before this step: nothing can be undone there until it thaws.
async fn a_target_freezes(test: &str, step: Step, what: &str) {
    let Some(scene) = Scene::new(test) else { return };
    scene.beta.small_filesystem(IMAGES, FsKind::Ext4, 128 * MIB).unwrap();
    let beta = scene.beta.clone();
    let settings = at(step, move || beta.freeze_filesystem(IMAGES).unwrap());
    let error = scene.clone(&settings, silent()).await.unwrap_err();
    scene.beta.thaw_filesystem(IMAGES).unwrap();
    assert_eq!(number(&error), 1015, "{error:?}");
    assert_eq!((&*error.context["cause_code"], &*error.context["host"]), ("1010", "beta"), "{error:?}");
    assert!(error.message.starts_with(what) && error.message.contains("no progress for 2 s"), "{error:?}");
    scene.assert_recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hangs_while_images_are_completed_is_given_up() {
    let test = "a_target_that_hangs_while_images_are_completed_is_given_up";
    a_target_freezes(test, Step::Finish, &format!("beta: completing the image {IMAGES}/.kvm-clone-")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hangs_while_images_get_their_names_is_given_up() {
    let test = "a_target_that_hangs_while_images_get_their_names_is_given_up";
    a_target_freezes(test, Step::Place, &format!("beta: renaming the image to {IMAGES}/web1_clone-")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_check_is_waited_for_while_it_gets_on() {
    let Some(mut scene) = Scene::new("a_slow_check_is_waited_for_while_it_gets_on") else { return };
    // Small clusters make large tables.
    scene.convert("-o cluster_size=512");
    let _file = scene.alpha.serve_file(DISK, 512 << 10).unwrap();
    let client = scene.client().await;
    let (alpha, beta, name) = (spec("alpha"), spec("beta"), "web1".parse().unwrap());
    let started = Instant::now();
    client.prepare(&alpha, &beta, &name, CloneRequest::default(), Recovery::Act, silent()).await.unwrap();
    assert!(started.elapsed() > STALL * 2, "it was not slow: {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_checksum_is_waited_for_while_it_gets_on() {
    let Some(scene) = Scene::with("a_slow_checksum_is_waited_for_while_it_gets_on", 48 * MIB) else { return };
    // Lanes tell of themselves every 4 MiB.
    let _file = scene.alpha.serve_file(DISK, 8 * MIB).unwrap();
    let settings = CloneSettings { checksum: Some(Algorithm::Blake3), ..CloneSettings::default() };
    let started = Instant::now();
    let error = scene.clone(&settings, silent()).await.unwrap_err();
    // Reading all of it takes 6 s, twice. A file that is served seems to change at each look, which ends the copy, but not before
    // the checksum is there.
    assert_eq!(error.code, Code::Conflict, "{error:?}");
    assert!(started.elapsed() > STALL * 3, "it was not slow: {:?}", started.elapsed());
}
