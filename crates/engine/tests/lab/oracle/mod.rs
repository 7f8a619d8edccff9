//! What the tests of faults share: two hosts whose state is known before, a copy that can be held midway, a controller in a
//! process of its own, and the promise that is checked afterwards.

pub mod child;
pub mod digest;
pub mod gate;
pub mod records;
mod run;
mod state;
pub mod strike;

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_clone_core::Result;
use kvm_clone_core::plan::{CloneRequest, Existing};
use kvm_clone_core::wire::marker::Marker;
use kvm_clone_engine::{Action, Client, ClientOptions, CloneResult, CloneSettings, Recovered, Recovery};
use kvm_clone_lab::{DiskSpec, Fill, FsKind, Host, HostSpec, Lab, Machine, MachineSpec, define_machine, fault};
use rustix::fs::{FlockOperation, flock};

use crate::common::{self, MIB, assert_same_contents, spec};
pub use gate::Gate;
#[allow(unused_imports, reason = "each test file uses its own part")]
pub use run::{Run, at, clone_with_events};
#[allow(unused_imports, reason = "each test file uses its own part")]
pub use state::{State, definitions};

pub const IMAGES: &str = "/var/lib/libvirt/images";
/// Silence after which both sides take each other for gone: short, so that tests are.
pub const SILENCE: Duration = Duration::from_secs(3);
/// How long anything that must happen may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the target is as before or as after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    Old,
    New,
}

/// Two hosts, a machine `web1` on the first, and what both had before.
pub struct Scene {
    pub lab: Arc<Lab>,
    pub alpha: Host,
    pub beta: Host,
    pub source: Machine,
    pub request: CloneRequest,
    pub alpha_before: State,
    pub beta_before: State,
    /// Whether the source runs, and its guest writes.
    pub runs: bool,
}

impl Scene {
    /// Hosts and source; none where there can be no lab.
    pub fn new(test: &str) -> Option<Self> {
        Self::on(test, HostSpec::named("beta"))
    }

    pub fn on(test: &str, beta: HostSpec) -> Option<Self> {
        let machine = MachineSpec::named("web1")
            .disk(DiskSpec::qcow2("vda", 64 * MIB).fill(Fill::Random { seed: 1, bytes: 12 * MIB }))
            .disk(DiskSpec::raw("vdb", 24 * MIB + 512).fill(Fill::Random { seed: 2, bytes: 6 * MIB }));
        Self::of(test, beta, machine)
    }

    /// A machine that runs: its guest goes on writing records to two disks, and leaves the third one alone.
    pub fn running(test: &str) -> Option<Self> {
        let machine = MachineSpec::named("web1")
            .disk(DiskSpec::qcow2("vda", 12 * MIB))
            .disk(DiskSpec::raw("vdb", 8 * MIB))
            .disk(DiskSpec::qcow2("vdc", 16 * MIB).fill(Fill::Random { seed: 1, bytes: 6 * MIB }))
            .writing();
        let mut scene = Self::of(test, HostSpec::named("beta"), machine)?;
        scene.source.start().unwrap();
        scene.source.wait_for_console("kvm-clone-guest: wrote 20", PATIENCE).unwrap();
        scene.runs = true;
        scene.remember();
        Some(scene)
    }

    fn of(test: &str, beta: HostSpec, machine: MachineSpec) -> Option<Self> {
        if !kvm_clone_lab::available(test) {
            return None;
        }
        let lab = Lab::new().unwrap();
        let mut hosts = lab.hosts(vec![HostSpec::named("alpha"), beta]).unwrap();
        let (beta, alpha) = (hosts.pop().unwrap(), hosts.pop().unwrap());
        let source = define_machine(&alpha, machine).unwrap();
        beta.provide_guest().unwrap();
        let (alpha_before, beta_before) = (State::of(&alpha), State::of(&beta));
        Some(Self {
            lab: Arc::new(lab),
            alpha,
            beta,
            source,
            request: CloneRequest::default(),
            alpha_before,
            beta_before,
            runs: false,
        })
    }

    /// A target whose images, definitions and markers lie on file systems of which only what was synced survives.
    pub fn on_what_was_synced(test: &str) -> Option<Self> {
        Self::on(test, HostSpec::named("beta")).map(Self::with_what_was_synced)
    }

    /// The same, of any scene.
    pub fn with_what_was_synced(mut self) -> Self {
        keep_what_is_synced(&self.beta, 128);
        self.remember();
        self
    }

    /// The target has a machine of the new name already, with a disk, and the clone is to replace it.
    pub fn replacing(mut self) -> Self {
        self.make_old();
        self
    }

    fn make_old(&mut self) {
        let old = MachineSpec::named("web1_clone")
            .disk(DiskSpec::qcow2("vda", 16 * MIB).fill(Fill::Random { seed: 9, bytes: 2 * MIB }));
        define_machine(&self.beta, old).unwrap();
        self.beta.exec(&["virsh", "-q", "autostart", "web1_clone"]).unwrap();
        self.request.existing = Existing::Replace;
        self.beta_before = State::of(&self.beta);
    }

    /// Takes the clone away, and puts back what it replaced.
    pub fn begin_again(&mut self) {
        self.remove_clone();
        if self.request.existing == Existing::Replace {
            self.make_old();
        }
        // A power cut in the next round takes away only what that round did.
        self.beta.exec(&["sync"]).unwrap();
    }

    pub fn options(&self, journal: &str) -> ClientOptions {
        let mut options = common::options(&self.lab);
        options.journal = self.lab.dir().join(journal);
        options.silence = SILENCE;
        options.ssh.connect_timeout = Duration::from_secs(4);
        options
    }

    pub async fn client(&self) -> Client {
        self.client_with("journal.db").await
    }

    pub async fn client_with(&self, journal: &str) -> Client {
        Client::new(self.options(journal)).await.unwrap()
    }

    /// A clone that goes on in the background.
    pub async fn start(&self, settings: CloneSettings) -> Run {
        Run::start(self.client().await, self.request.clone(), settings)
    }

    /// A clone that is under way and held after some data arrived at the target.
    pub async fn start_and_hold(&self) -> (Run, Gate) {
        let gate = Gate::after(4 * MIB);
        let run = self.start(gate.settings()).await;
        gate.reached().await;
        self.await_staged_data();
        (run, gate)
    }

    pub fn await_staged_data(&self) {
        let staged = || common::staging(&self.beta).iter().map(|path| common::allocated(path)).sum::<u64>();
        wait_for("data in staging", || staged() > MIB);
    }

    pub async fn clone(&self) -> Result<CloneResult> {
        let client = self.client().await;
        common::clone_with(&client, "alpha", "beta", "web1", self.request.clone(), &CloneSettings::default()).await
    }

    pub async fn recover(&self, journal: &str) -> Vec<Recovered> {
        let client = self.client_with(journal).await;
        let recovered = client.recover(&spec("beta"), Recovery::Act).await.unwrap();
        assert!(
            recovered.iter().all(|entry| entry.error.is_none() && entry.action != Action::InProgress),
            "{recovered:?}"
        );
        recovered
    }

    /// The promise: the source is as it was, and the target has either nothing new but staging, or the whole machine.
    pub fn assert_promise(&self) -> Now {
        self.assert_source_unharmed();
        let now = State::of(&self.beta);
        if now == self.beta_before {
            return Now::Old;
        }
        let xml = now.machines.get("web1_clone").unwrap_or_else(|| panic!("files without a machine: {now:#?}"));
        let others = |state: &State| {
            let mut machines = state.machines.clone();
            machines.remove("web1_clone");
            machines
        };
        assert_eq!(others(&now), others(&self.beta_before));
        if Some(xml) == self.beta_before.machines.get("web1_clone") {
            // The old machine stands: what it needs is there. Finished files under new names are not yet anybody's.
            for (path, sum) in &self.beta_before.files {
                assert_eq!(now.files.get(path), Some(sum), "{path} of the old machine");
            }
            panic!("files outside staging beside the old machine: {:#?}", now.files.keys());
        }
        self.assert_whole(xml);
        Now::New
    }

    /// As [`Self::assert_promise`] where a finished image may have its final name before its machine is there: that is
    /// so for a moment, and `recover` knows these files.
    pub fn assert_promise_while_placing(&self) -> Now {
        self.assert_source_unharmed();
        let now = State::of(&self.beta);
        if now.machines == self.beta_before.machines {
            let kept = self.beta_before.files.iter().all(|(path, sum)| now.files.get(path) == Some(sum));
            assert!(kept, "{now:#?}");
            let finals: Vec<String> =
                self.markers().into_iter().flat_map(|marker| marker.finals).map(|file| file.path).collect();
            for extra in now.files.keys().filter(|path| !self.beta_before.files.contains_key(*path)) {
                assert!(finals.contains(extra), "{extra} is nobody's: {finals:?}");
            }
            assert_eq!(now.autostart, self.beta_before.autostart);
            return Now::Old;
        }
        self.assert_whole(&now.machines["web1_clone"]);
        Now::New
    }

    pub fn markers(&self) -> Vec<Marker> {
        let dir = "/var/lib/kvm-clone/operations";
        let names = self.beta.names_in(dir).unwrap().into_iter().filter(|name| name.ends_with(".json"));
        let read = |name| std::fs::read(self.beta.path(&format!("{dir}/{name}"))).unwrap();
        names.map(|name| serde_json::from_slice(&read(name)).unwrap()).collect()
    }

    pub fn assert_source_unharmed(&self) {
        assert_eq!(self.alpha_now(), self.alpha_before, "the source was touched");
        if self.runs {
            records::assert_goes_on(&self.source);
        }
    }

    /// What a guest writes to is no part of the source's state.
    fn alpha_now(&self) -> State {
        if self.runs { State::but_contents(&self.alpha) } else { State::of(&self.alpha) }
    }

    /// The machine of this definition has every disk of the source, byte for byte; of one that runs, as of one moment.
    pub fn assert_whole(&self, xml: &str) {
        if self.runs {
            records::assert_one_point(self.lab.dir(), &self.beta, xml);
            records::assert_left_alone(&self.source, &self.beta, xml);
            return;
        }
        for disk in self.source.disks() {
            let format = disk.format.name();
            let path = disk_path(xml, &disk.target);
            assert_same_contents(&self.alpha.path(&disk.path), format, &self.beta.path(&path), format);
        }
    }

    /// After an undo or a recovery: as before, with nothing of ours anywhere, and the next try succeeds.
    pub async fn assert_clean_and_clone_again(&self) {
        self.sweep().await;
        self.assert_clean();
        self.clone().await.unwrap();
        assert_eq!(self.assert_promise(), Now::New);
        self.assert_nothing_of_ours(self.source.disks().len());
    }

    /// What an agent that was killed leaves in `/run`, the next agent that starts there removes.
    pub async fn sweep(&self) {
        let client = self.client().await;
        for host in ["alpha", "beta"] {
            client.list(&spec(host)).await.unwrap();
        }
    }

    /// As before, with nothing of ours anywhere.
    pub fn assert_clean(&self) {
        self.assert_source_unharmed();
        assert_eq!(State::of(&self.beta), self.beta_before);
        self.assert_nothing_of_ours(0);
    }

    /// No marker, staging, session, process or held lock on either host; as many manifests as there are copied disks.
    pub fn assert_nothing_of_ours(&self, manifests: usize) {
        common::assert_nothing_left(&self.alpha);
        common::assert_nothing_left(&self.beta);
        let there = self.beta.names_in("/var/lib/kvm-clone/manifests").unwrap();
        assert_eq!(there.len(), manifests, "manifests: {there:?}");
        for host in [&self.alpha, &self.beta] {
            assert_eq!(held_locks(host), "", "locks are held on {}", host.name());
        }
        assert!(fault::find(&self.beta, "qemu-img").unwrap().is_empty());
    }

    /// Waits until the agents of a dead controller have ended by themselves.
    pub fn await_dead_man(&self) {
        await_dead_man([&self.alpha, &self.beta]);
    }

    /// Other machines of the target can be there only by the test's own doing: what it made is the new "before".
    pub fn remember(&mut self) {
        self.alpha_before = self.alpha_now();
        self.beta_before = State::of(&self.beta);
    }

    /// Takes the clone away again, so that the next round begins as the first.
    pub fn remove_clone(&self) {
        self.beta.exec(&["virsh", "-q", "undefine", "web1_clone"]).unwrap();
        self.beta
            .shell(&format!("rm -f {IMAGES}/web1_clone-* /var/lib/kvm-clone/manifests/* /var/lib/kvm-clone/seals/*"))
            .unwrap();
        self.beta.exec(&["virsh", "-q", "pool-refresh", "default"]).unwrap();
    }
}

/// Waits until the agents of a dead controller have ended by themselves.
pub fn await_dead_man(hosts: [&Host; 2]) {
    for host in hosts {
        fault::wait_gone(host, "kvm-clone-agent", PATIENCE).unwrap();
    }
}

/// Puts a host's images, so many MiB of them, its definitions and our own state on file systems of which a power cut leaves only
/// what was synced.
pub fn keep_what_is_synced(host: &Host, images: u64) {
    let definitions = "/etc/libvirt/qemu";
    host.shell(&format!("cp -a {definitions} /srv/definitions")).unwrap();
    for (place, size) in [(IMAGES, images), (definitions, 32), ("/var/lib/kvm-clone", 64)] {
        host.small_filesystem(place, FsKind::Ext4, size * MIB).unwrap();
    }
    // The agent wants the last one for itself.
    let back = "rm -r /srv/definitions; chmod 700 /var/lib/kvm-clone; sync";
    host.shell(&format!("cp -a /srv/definitions/. {definitions}; {back}")).unwrap();
}

/// Locks that somebody holds, in one line.
pub fn held_locks(host: &Host) -> String {
    let dir = "/run/kvm-clone/locks";
    let is_held = |name: &String| match File::open(host.path(&format!("{dir}/{name}"))) {
        Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_err(),
        // Its owner has removed it.
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => panic!("{name}: {error}"),
    };
    host.names_in(dir).unwrap().into_iter().filter(is_held).collect::<Vec<_>>().join(" ")
}

/// Where a definition says that a disk is, as virsh shows it.
pub fn disk_path(xml: &str, target: &str) -> String {
    let disks = xml.split("<disk ").skip(1).map(|disk| disk.split("</disk>").next().unwrap());
    let disk = disks.into_iter().find(|disk| disk.contains(&format!("dev='{target}'"))).unwrap();
    let source = disk.split("<source file='").nth(1).unwrap();
    source.split('\'').next().unwrap().to_owned()
}

/// Polls until it is so.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The machine boots its kernel and finds its disk.
pub fn assert_boots(machine: &Machine) {
    machine.start().unwrap();
    machine.wait_for_console("kvm-clone-guest: up", PATIENCE).unwrap();
    machine.destroy().unwrap();
}

/// Makes an image file with qemu-img on the machine, at a path of the host.
pub fn qemu_img(host: &Host, arguments: &[&str], inside: &str) {
    let (verb, rest) = arguments.split_first().unwrap();
    let path = host.path(inside);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    run_in(Path::new("/"), Command::new("qemu-img").arg(verb).args(rest).arg(path));
}

pub fn run_in(dir: &Path, command: &mut Command) {
    let output = command.current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
