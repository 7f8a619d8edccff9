//! A controller that dies, hangs or is cut off leaves nothing that works on the hosts, and can do nothing more itself.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::*;
use kvm_clone_core::plan::CloneRequest;
use kvm_clone_engine::{Client, CloneSettings, Recovery};
use kvm_clone_lab::{Host, HostSpec, Lab, available, fault};
use rustix::process::{Pid, Signal, kill_process};
use tokio_util::sync::CancellationToken;

/// Short, so that a test need not wait; the default is 30 s.
const SILENCE: Duration = Duration::from_secs(4);
/// What an end may take beyond the silence: the switch looks a few times in that time, and the machine may be busy.
const SLACK: Duration = Duration::from_secs(30);
const LAB_DIR: &str = "KVM_CLONE_TEST_LAB_DIR";
const SSH_CONFIG: &str = "KVM_CLONE_TEST_SSH_CONFIG";

/// A controller in a process of its own, connected to both hosts.
struct Controller {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Controller {
    /// This test program again, as [`controller`].
    fn start(lab: &Lab) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "dead_man::controller", "--nocapture"])
            .env(LAB_DIR, lab.dir())
            .env(SSH_CONFIG, lab.ssh_config());
        // What a killed process leaves goes with the lab.
        command.env("TMPDIR", lab.dir()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut controller = Self { child, orders, answers: BufReader::new(answers) };
        controller.expect("ready");
        controller
    }

    /// The rest of the next line that has this word.
    fn expect(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the controller ended without {word:?}");
            // The test harness writes into the same line.
            if let Some((_, rest)) = line.split_once(&format!("controller: {word}")) {
                return rest.trim().to_owned();
            }
        }
    }

    fn order(&mut self) {
        writeln!(self.orders, "go").unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test of its own: the other tests run it as their controller. It connects, waits for an order and clones.
#[tokio::test(flavor = "multi_thread")]
async fn controller() {
    let (Some(dir), Some(config)) = (std::env::var_os(LAB_DIR), std::env::var_os(SSH_CONFIG)) else { return };
    let mut options = kvm_clone_engine::ClientOptions::new(agent(), std::path::Path::new(&dir).join("journal.db"));
    options.ssh.configs = vec![config.into()];
    options.silence = SILENCE;
    let client = Client::new(options).await.unwrap();
    let (alpha, beta, name) = (spec("alpha"), spec("beta"), "web1".parse().unwrap());
    let prepared =
        client.prepare(&alpha, &beta, &name, CloneRequest::default(), Recovery::Act, silent()).await.unwrap();
    println!("controller: ready");
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await.unwrap().unwrap();
    match prepared.execute(&CloneSettings::default(), silent(), CancellationToken::new()).await {
        Ok(_) => println!("controller: cloned"),
        Err(error) => println!("controller: failed {} {} {}", number(&error), error.context["host"], error.message),
    }
}

fn raise(lab: &Lab) -> [Host; 2] {
    let hosts = lab.hosts(vec![HostSpec::named("alpha"), HostSpec::named("beta")]).unwrap();
    make_machine(&hosts[0], "web1", MIB);
    hosts[1].provide_guest().unwrap();
    hosts.try_into().unwrap()
}

fn agents(host: &Host) -> usize {
    fault::find(host, "kvm-clone-agent control").unwrap().len()
}

/// The host's agent is gone before `limit`.
fn wait_gone(host: &Host, limit: Duration) {
    fault::wait_gone(host, "kvm-clone-agent", limit).unwrap();
}

#[test]
fn an_idle_controller_keeps_its_agents() {
    if !available("an_idle_controller_keeps_its_agents") {
        return;
    }
    let lab = Lab::new().unwrap();
    let [alpha, beta] = raise(&lab);
    let mut controller = Controller::start(&lab);
    std::thread::sleep(SILENCE * 3);
    assert_eq!((agents(&alpha), agents(&beta)), (1, 1), "heartbeats are enough");
    controller.order();
    controller.expect("cloned");
}

#[test]
fn a_killed_controller_leaves_no_agent() {
    if !available("a_killed_controller_leaves_no_agent") {
        return;
    }
    let lab = Lab::new().unwrap();
    let hosts = raise(&lab);
    let controller = Controller::start(&lab);
    assert_eq!((agents(&hosts[0]), agents(&hosts[1])), (1, 1));
    controller.signal(Signal::KILL);
    for host in &hosts {
        wait_gone(host, SILENCE + SLACK);
        let sessions = host.shell("ls -A /run/kvm-clone/sessions").unwrap();
        assert_eq!(sessions.trim(), "", "its session is tidied up");
    }
}

#[test]
fn a_host_that_is_cut_off_ends_its_agent_after_the_silence() {
    if !available("a_host_that_is_cut_off_ends_its_agent_after_the_silence") {
        return;
    }
    let lab = Lab::new().unwrap();
    let [alpha, beta] = raise(&lab);
    let mut controller = Controller::start(&lab);
    let cut = Instant::now();
    lab.cut(&alpha).unwrap();
    wait_gone(&alpha, SILENCE + SLACK);
    assert!(cut.elapsed() > SILENCE / 2, "it was given time: {:?}", cut.elapsed());
    assert_eq!(agents(&beta), 1, "the other one still hears its controller");
    controller.order();
    let failed = controller.expect("failed");
    assert!(failed.contains("alpha"), "{failed}");
    assert!(machines(&beta).is_empty());
}

#[test]
fn a_controller_that_slept_too_long_can_do_nothing_more() {
    if !available("a_controller_that_slept_too_long_can_do_nothing_more") {
        return;
    }
    let lab = Lab::new().unwrap();
    let hosts = raise(&lab);
    let mut controller = Controller::start(&lab);
    controller.signal(Signal::STOP);
    // The order is there before it wakes, so that it acts on it before it can notice anything else.
    controller.order();
    for host in &hosts {
        wait_gone(host, SILENCE + SLACK);
    }
    controller.signal(Signal::CONT);
    let failed = controller.expect("failed");
    assert!(["1002", "1010"].iter().any(|code| failed.starts_with(code)), "{failed}");
    drop(controller);
    assert!(machines(&hosts[1]).is_empty());
    hosts.iter().for_each(assert_nothing_left);
}
