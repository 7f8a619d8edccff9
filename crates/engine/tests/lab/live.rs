//! Machines that run while they are copied: the copy is one point in time, the guest never notices, and whatever happens, its
//! host is left without a job, a socket or a scratch file of ours.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use crate::common::*;
use crate::oracle::child::Task;
use crate::oracle::{Gate, PATIENCE, SILENCE, held_locks, records, wait_for};
use kvm_clone_core::plan::{CloneRequest, Consistency, Presence};
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{Action, Client, CloneResult, CloneSettings, Recovery};
use kvm_clone_lab::{DiskSpec, Fill, Host, HostSpec, Lab, Machine, MachineSpec, available, define_machine, fault};

/// Two hosts, and on the first one a guest that goes on writing records to two disks.
struct Scene {
    lab: Lab,
    alpha: Host,
    beta: Host,
    machine: Machine,
    definition: String,
}

impl Scene {
    fn new(test: &str) -> Option<Self> {
        Self::on(test, HostSpec::named("alpha"), |machine| machine)
    }

    fn on(test: &str, alpha: HostSpec, more: fn(MachineSpec) -> MachineSpec) -> Option<Self> {
        if !available(test) {
            return None;
        }
        let lab = Lab::new().unwrap();
        let mut hosts = lab.hosts(vec![alpha, HostSpec::named("beta")]).unwrap();
        let (beta, alpha) = (hosts.pop().unwrap(), hosts.pop().unwrap());
        let spec = MachineSpec::named("web1")
            .disk(DiskSpec::qcow2("vda", 32 * MIB))
            .disk(DiskSpec::raw("vdb", 16 * MIB))
            .disk(DiskSpec::qcow2("vdc", 32 * MIB).fill(Fill::Random { seed: 1, bytes: 12 * MIB }));
        let machine = define_machine(&alpha, more(spec.writing())).unwrap();
        machine.start().unwrap();
        machine.wait_for_console("kvm-clone-guest: wrote 20", PATIENCE).unwrap();
        beta.provide_guest().unwrap();
        let definition = machine.xml().unwrap();
        Some(Self { lab, alpha, beta, machine, definition })
    }

    async fn client(&self) -> Client {
        let mut options = options(&self.lab);
        options.silence = SILENCE;
        Client::new(options).await.unwrap()
    }

    async fn clone(&self) -> Result<CloneResult> {
        clone(&self.client().await, "alpha", "beta", "web1").await
    }

    /// A clone that is held midway.
    async fn start_and_hold(
        &self,
        settings: impl FnOnce(CloneSettings) -> CloneSettings,
    ) -> (crate::oracle::Run, Gate) {
        let gate = Gate::after(4 * MIB);
        let run = crate::oracle::Run::start(self.client().await, CloneRequest::default(), settings(gate.settings()));
        gate.reached().await;
        (run, gate)
    }

    fn copy_xml(&self) -> String {
        self.beta.exec(&["virsh", "-q", "dumpxml", "web1_clone"]).unwrap()
    }

    /// The copy is one point in time across its disks.
    fn assert_one_point(&self) -> u64 {
        records::assert_one_point(self.lab.dir(), &self.beta, &self.copy_xml())
    }

    /// The disk that the guest leaves alone is copied bit for bit.
    fn assert_third_disk(&self) {
        records::assert_left_alone(&self.machine, &self.beta, &self.copy_xml());
    }

    /// The guest runs, and goes on writing.
    fn assert_guest_works(&self) {
        records::assert_goes_on(&self.machine);
    }

    /// Nothing of ours is left at the source, and what was there is as it was.
    fn assert_source_unharmed(&self) {
        assert_eq!(self.machine.xml().unwrap(), self.definition);
        wait_for("the end of the job", || job(&self.alpha).contains("None"));
        let left =
            "ls -A /var/lib/libvirt/qemu/domain-*/ /var/lib/libvirt/images /var/lib/kvm-clone/points 2>/dev/null";
        let left = self.alpha.shell(&format!("{left} || true")).unwrap();
        assert!(!left.contains("kvm-clone-") && !left.contains(".json"), "{left}");
        assert_nothing_left(&self.alpha);
        assert_eq!(held_locks(&self.alpha), "");
    }

    fn assert_nothing_at_target(&self) {
        assert!(machines(&self.beta).is_empty());
        assert_nothing_left(&self.beta);
    }

    /// After a failure that was undone: nothing is left, and the next try succeeds.
    async fn assert_clean_and_clone_again(&self) {
        self.assert_source_unharmed();
        self.assert_nothing_at_target();
        self.clone().await.unwrap();
        self.assert_one_point();
        self.assert_guest_works();
        self.assert_source_unharmed();
    }

    /// The socket of the job that runs.
    fn socket(&self) -> String {
        let listed = self.alpha.shell("ls /var/lib/libvirt/qemu/domain-*-web1/kvm-clone-*.sock").unwrap();
        listed.trim().to_owned()
    }

    /// The scratch files that qemu has.
    fn scratch(&self) -> String {
        self.alpha.shell("ls -A /var/lib/libvirt/images | grep scratch || true").unwrap()
    }
}

fn job(host: &Host) -> String {
    host.exec(&["virsh", "-q", "domjobinfo", "web1"]).unwrap_or_else(|_| "None".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_is_copied_at_one_point_in_time() {
    let Some(scene) = Scene::new("a_running_machine_is_copied_at_one_point_in_time") else { return };
    let mut last = 0;
    for _ in 0..3 {
        let result = scene.clone().await.unwrap();
        assert_eq!(result.consistency, Consistency::Crash);
        let now = scene.assert_one_point();
        scene.assert_third_disk();
        assert!(now > last, "each copy is of its own moment");
        last = now;
        scene.assert_guest_works();
        scene.assert_source_unharmed();
        scene.beta.shell("virsh -q undefine web1_clone; rm -f /var/lib/libvirt/images/web1_clone-*").unwrap();
        scene.beta.exec(&["virsh", "-q", "pool-refresh", "default"]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_running_machine_boots() {
    let Some(scene) = Scene::new("a_copy_of_a_running_machine_boots") else { return };
    scene.clone().await.unwrap();
    scene.machine.destroy().unwrap();
    crate::oracle::assert_boots(&scene.beta.machine("web1_clone").unwrap());
}

/// As distributions have it: qemu is not root.
#[tokio::test(flavor = "multi_thread")]
async fn qemu_without_root_and_a_paused_machine() {
    let alpha = HostSpec::named("alpha").qemu_unprivileged();
    let Some(scene) = Scene::on("qemu_without_root_and_a_paused_machine", alpha, |machine| machine) else { return };
    scene.clone().await.unwrap();
    scene.assert_one_point();
    scene.assert_guest_works();
    scene.assert_source_unharmed();

    scene.alpha.exec(&["virsh", "-q", "suspend", "web1"]).unwrap();
    let request = CloneRequest { new_name: Some("paused".parse().unwrap()), ..CloneRequest::default() };
    let client = scene.client().await;
    let result = clone_with(&client, "alpha", "beta", "web1", request, &CloneSettings::default()).await.unwrap();
    assert_eq!(result.consistency, Consistency::Crash);
    assert_eq!(scene.machine.state().unwrap(), "paused", "what is paused stays so");
    scene.assert_source_unharmed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_beside_its_running_source() {
    let Some(scene) = Scene::new("a_copy_beside_its_running_source") else { return };
    clone(&scene.client().await, "alpha", "alpha", "web1").await.unwrap();
    assert_eq!(machines(&scene.alpha).len(), 2);
    scene.assert_guest_works();
    scene.assert_source_unharmed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transient_machine_becomes_a_lasting_one() {
    let Some(scene) = Scene::new("a_transient_machine_becomes_a_lasting_one") else { return };
    scene.alpha.exec(&["virsh", "-q", "undefine", "web1"]).unwrap();
    let result = scene.clone().await.unwrap();
    assert!(result.warnings.iter().any(|warning| warning.contains("transient")), "{:?}", result.warnings);
    scene.assert_one_point();
    assert!(scene.beta.exec(&["virsh", "-q", "list", "--all", "--persistent"]).unwrap().contains("web1_clone"));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_the_job() {
    let Some(scene) = Scene::new("cancelling_ends_the_job") else { return };
    let (run, gate) = scene.start_and_hold(|settings| settings).await;
    assert!(job(&scene.alpha).contains("Backup") && scene.scratch().contains("vda"), "{}", job(&scene.alpha));
    run.cancel.cancel();
    assert_eq!(number(&run.fails().await), 1008);
    gate.open();
    scene.assert_clean_and_clone_again().await;
}

/// qemu (7.2 of Debian 12) stops for ever, and its guest with it, where its server is stopped while somebody is connected
/// who has not agreed on an export yet.
#[tokio::test(flavor = "multi_thread")]
async fn no_job_is_ended_while_somebody_is_connected() {
    let Some(scene) = Scene::new("no_job_is_ended_while_somebody_is_connected") else { return };
    let (run, gate) = scene.start_and_hold(|settings| settings).await;
    let socket = scene.socket();
    let mut stranger = connect(&scene.alpha, &socket);
    let socket = scene.alpha.path(&socket);
    run.cancel.cancel();
    wait_for("the end's beginning", || !socket.exists());
    assert!(job(&scene.alpha).contains("Backup"), "somebody is connected");
    scene.assert_guest_works();
    drop(stranger.stdin.take());
    assert!(stranger.wait().unwrap().success());
    assert_eq!(number(&run.fails().await), 1008);
    gate.open();
    scene.assert_clean_and_clone_again().await;
}

/// In mount and user namespaces of his own a user can call a socket as ours is called, and the kernel lists it beside ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_calls_a_socket_as_ours_does_not_keep_the_job() {
    let Some(scene) = Scene::new("a_user_who_calls_a_socket_as_ours_does_not_keep_the_job") else { return };
    let (run, gate) = scene.start_and_hold(|settings| settings).await;
    let socket = scene.socket();
    let mut user = imitate(&scene.alpha, &socket);
    let listed = scene.alpha.shell("cat /proc/net/unix").unwrap();
    assert!(listed.matches(&socket).count() > 2, "ours and his: {listed}");
    gate.open();
    run.end().await.unwrap();
    scene.assert_one_point();
    scene.assert_source_unharmed();
    drop(user.stdin.take());
    assert!(user.wait().unwrap().success());
}

/// A process of an ordinary user that listens at a socket of this name where only he sees it, and is connected to it.
fn imitate(host: &Host, socket: &str) -> Child {
    let script = "mount -t tmpfs none /var/lib/libvirt && mkdir -p ${0%/*} && exec perl -MIO::Socket::UNIX -e \
        '$l = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 1) or die; $c = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die; \
         $a = $l->accept or die; syswrite STDOUT, q(here); <STDIN>' \"$0\"";
    let mut shell = host.command("setpriv");
    shell.args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urm", "sh", "-c", script, socket]);
    until_here(shell)
}

/// As where one logs in to a container that has libvirt's directories: the kernel tells there of no socket of qemu's.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_agent_does_not_see_is_refused_and_ended() {
    let alpha = HostSpec::named("alpha").logins_apart();
    let Some(scene) = Scene::on("a_job_that_the_agent_does_not_see", alpha, |machine| machine) else { return };
    let error = scene.clone().await.unwrap_err();
    assert_eq!(number(&error), 1013, "{error:?}");
    assert!(error.message.contains("does not see the backup job"), "{error:?}");
    scene.assert_guest_works();
    scene.assert_source_unharmed();
    scene.assert_nothing_at_target();
}

/// A process of the host's that is connected to the socket until its input ends.
fn connect(host: &Host, socket: &str) -> Child {
    let script = "$socket = IO::Socket::UNIX->new(Peer => shift) or die; syswrite STDOUT, q(here); <STDIN>";
    let mut perl = host.command("perl");
    perl.args(["-MIO::Socket::UNIX", "-e", script, socket]);
    until_here(perl)
}

/// Starts a process, and waits until it says that it is where it should be. It ends with its input.
fn until_here(mut command: Command) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"here");
    child
}

/// Nobody tells the source's agent anything any more: it must end the job by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_controller_leaves_no_job() {
    let Some(scene) = Scene::new("a_killed_controller_leaves_no_job") else { return };
    let mut controller = Task::in_lab(&scene.lab).gate().start();
    controller.says("midway");
    assert!(job(&scene.alpha).contains("Backup"));
    controller.kill();
    for host in [&scene.alpha, &scene.beta] {
        fault::wait_gone(host, "kvm-clone-agent", PATIENCE).unwrap();
    }
    scene.assert_source_unharmed();
    scene.assert_guest_works();
    scene.client().await.recover(&spec("beta"), Recovery::Act).await.unwrap();
    scene.assert_clean_and_clone_again().await;
}

/// Nobody else would watch what the guest overwrites.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_be_ended_is_guarded_until_it_can() {
    let Some(scene) = Scene::new("a_job_that_cannot_be_ended_is_guarded_until_it_can") else { return };
    let mut controller = Task::in_lab(&scene.lab).gate().start();
    controller.says("midway");
    assert!(fault::freeze(&scene.alpha, "libvirtd").unwrap() > 0);
    controller.kill();
    // It asks libvirt, and waits for the answer in vain.
    fault::wait_for(&scene.alpha, "virsh", PATIENCE).unwrap();
    fault::wait_gone(&scene.alpha, "virsh", PATIENCE).unwrap();
    let agents = fault::find(&scene.alpha, "kvm-clone-agent control").unwrap();
    assert_eq!(agents.len(), 1, "the agent stays, with its locks: {agents:?}");
    fault::thaw(&scene.alpha, "libvirtd").unwrap();
    for host in [&scene.alpha, &scene.beta] {
        fault::wait_gone(host, "kvm-clone-agent", PATIENCE).unwrap();
    }
    scene.assert_source_unharmed();
    scene.client().await.recover(&spec("beta"), Recovery::Act).await.unwrap();
    scene.assert_clean_and_clone_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_network_leaves_no_job() {
    let Some(scene) = Scene::new("a_cut_network_leaves_no_job") else { return };
    let (run, gate) = scene.start_and_hold(|settings| settings).await;
    scene.lab.cut(&scene.alpha).unwrap();
    fault::wait_gone(&scene.alpha, "kvm-clone-agent", PATIENCE).unwrap();
    scene.assert_source_unharmed();
    scene.lab.heal(&scene.alpha).unwrap();
    gate.open();
    run.fails().await;
    scene.assert_clean_and_clone_again().await;
}

/// The agent that would have ended the job is killed: whoever takes the machine's lock next does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agents_job_is_ended_by_the_next() {
    let Some(scene) = Scene::new("a_killed_agents_job_is_ended_by_the_next") else { return };
    let mut controller = Task::in_lab(&scene.lab).gate().start();
    controller.says("midway");
    fault::kill(&scene.alpha, "kvm-clone-agent").unwrap();
    controller.kill();
    fault::wait_gone(&scene.beta, "kvm-clone-agent", PATIENCE).unwrap();
    assert!(job(&scene.alpha).contains("Backup"), "nobody was left to end it");
    scene.assert_guest_works();

    let client = scene.client().await;
    let looked = client.recover(&spec("alpha"), Recovery::Look).await.unwrap();
    assert_eq!(looked.len(), 1, "{looked:?}");
    assert!(job(&scene.alpha).contains("Backup"), "a look changes nothing");
    let recovered = client.recover(&spec("alpha"), Recovery::Act).await.unwrap();
    assert!(recovered[0].error.is_none() && recovered[0].action == Action::Undo, "{recovered:?}");
    client.recover(&spec("beta"), Recovery::Act).await.unwrap();
    drop(client);
    scene.assert_clean_and_clone_again().await;
}

/// As above, but the controller lives and undoes over a new connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_controller_whose_agent_is_killed_ends_the_job() {
    let Some(scene) = Scene::new("a_controller_whose_agent_is_killed_ends_the_job") else { return };
    let (run, gate) = scene.start_and_hold(|settings| settings).await;
    fault::kill(&scene.alpha, "kvm-clone-agent").unwrap();
    gate.open();
    run.fails().await;
    scene.client().await.list(&spec("alpha")).await.unwrap();
    scene.assert_clean_and_clone_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_overwrites_too_much_goes_on_and_the_copy_is_given_up() {
    let Some(scene) = Scene::new("a_guest_that_overwrites_too_much") else { return };
    let gate = Gate::after(4 * MIB);
    let limit = CloneSettings { scratch_limit: Some(512 << 10), ..gate.settings() };
    let run = crate::oracle::Run::start(scene.client().await, CloneRequest::default(), limit);
    // A slow copy may be given up before it comes to the gate.
    wait_for("the copy", || gate.is_reached() || run.has_ended());
    wait_for("the end of the job", || job(&scene.alpha).contains("None"));
    scene.assert_guest_works();
    gate.open();
    let error = run.fails().await;
    assert_eq!(number(&error), 1005, "{error:?}");
    assert!(error.message.contains("overwrote"), "{error:?}");
    scene.assert_clean_and_clone_again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_job_is_left_alone() {
    let Some(scene) = Scene::new("somebody_elses_job_is_left_alone") else { return };
    let xml = "<domainbackup mode='pull'><server transport='unix' socket='/run/other.sock'/></domainbackup>";
    std::fs::write(scene.alpha.path("/root/backup.xml"), xml).unwrap();
    scene.alpha.exec(&["virsh", "-q", "backup-begin", "web1", "/root/backup.xml"]).unwrap();
    let error = scene.clone().await.unwrap_err();
    assert_eq!(number(&error), 1011);
    assert!(error.message.contains("a backup"), "{error:?}");
    assert!(job(&scene.alpha).contains("Backup"), "it goes on");
    scene.alpha.exec(&["virsh", "-q", "domjobabort", "web1"]).unwrap();
    scene.assert_clean_and_clone_again().await;
}

/// What happens to the source midway is noticed, undone and said.
async fn changed_midway(test: &str, change: impl FnOnce(&Scene)) -> Option<(Scene, Error)> {
    let scene = Scene::new(test)?;
    let (run, gate) = scene.start_and_hold(|settings| settings).await;
    change(&scene);
    gate.open();
    let error = run.fails().await;
    assert!(!error.help.is_empty());
    scene.assert_nothing_at_target();
    Some((scene, error))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_stops_midway_is_no_copy() {
    let stop = |scene: &Scene| scene.machine.destroy().unwrap();
    let Some((scene, error)) = changed_midway("a_machine_that_stops_midway_is_no_copy", stop).await else { return };
    assert_eq!(number(&error), 1014, "{error:?}");
    assert!(error.message.contains("stopped"), "{error:?}");
    scene.assert_source_unharmed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_restarted_midway_is_no_copy() {
    let restart = |scene: &Scene| {
        scene.machine.destroy().unwrap();
        scene.machine.start().unwrap();
    };
    let Some((_, error)) = changed_midway("a_machine_that_is_restarted_midway", restart).await else { return };
    assert_eq!(number(&error), 1014, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_plugged_midway_is_noticed() {
    let plug = |scene: &Scene| {
        scene
            .alpha
            .exec(&["qemu-img", "create", "-q", "-f", "raw", "/var/lib/libvirt/images/extra.img", "1M"])
            .unwrap();
        let image = "/var/lib/libvirt/images/extra.img";
        scene.alpha.exec(&["virsh", "-q", "attach-disk", "web1", image, "vdd", "--live"]).unwrap();
    };
    let Some((scene, error)) = changed_midway("a_disk_that_is_plugged_midway_is_noticed", plug).await else { return };
    assert_eq!(number(&error), 1014, "{error:?}");
    scene.assert_guest_works();
    scene.assert_source_unharmed();
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_refuses_a_machine_that_runs() {
    let Some(scene) = Scene::new("offline_refuses_a_machine_that_runs") else { return };
    let request = CloneRequest { presence: Presence::Offline, ..CloneRequest::default() };
    let client = scene.client().await;
    let refused = clone_with(&client, "alpha", "beta", "web1", request, &CloneSettings::default()).await.unwrap_err();
    assert_eq!(number(&refused), 1013);
    scene.assert_nothing_at_target();
}
