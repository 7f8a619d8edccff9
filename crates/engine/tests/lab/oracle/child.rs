//! A controller in a process of its own, which can be killed or stopped: the test program started once more, with its task
//! in the environment.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kvm_clone_core::blocks::BlockSize;
use kvm_clone_core::event::Event;
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::{CloneRequest, SyncRequest, Update};
use kvm_clone_engine::{Boundary, Client, ClientOptions, CloneSettings, Events, Moment, Recovery, SshOptions, Then};
use kvm_clone_lab::Lab;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Gate, PATIENCE, SILENCE, Scene};
use crate::common::{MIB, agent, spec};

const TASK: &str = "KVM_CLONE_TEST_TASK";
/// The test below, by the name that the test program has for it.
const CONTROLLER: &str = "oracle::child::a_controller_of_its_own";

/// What the other process is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    journal: PathBuf,
    ssh_config: PathBuf,
    request: CloneRequest,
    /// Whether it syncs the replica instead of making one.
    sync: bool,
    /// Whether it writes the replica's own disks for that.
    in_place: bool,
    /// How long the blocks are that it compares.
    block_size: Option<BlockSize>,
    /// The phase at whose beginning it stands still.
    hold_at: Option<String>,
    /// The moment of a step at which it dies, in words.
    die_at: Option<String>,
    /// Whether the copy stands still midway.
    gate: bool,
    /// After how many bytes of each lane it does.
    gate_after: u64,
    /// Whether it is cancelled when it stands there.
    cancel: bool,
}

impl Task {
    pub fn new(scene: &Scene) -> Self {
        Self { request: scene.request.clone(), ..Self::in_lab(&scene.lab) }
    }

    pub fn in_lab(lab: &Lab) -> Self {
        Self {
            journal: lab.dir().join("child.db"),
            ssh_config: lab.ssh_config(),
            request: CloneRequest::default(),
            sync: false,
            in_place: false,
            block_size: None,
            hold_at: None,
            die_at: None,
            gate: false,
            gate_after: 4 * MIB,
            cancel: false,
        }
    }

    /// Syncs the replica.
    pub fn sync(mut self) -> Self {
        self.sync = true;
        self
    }

    /// Writes the replica's own disks.
    pub fn in_place(mut self) -> Self {
        (self.sync, self.in_place) = (true, true);
        self
    }

    /// Syncs by blocks of this size.
    pub fn blocks_of(mut self, size: BlockSize) -> Self {
        (self.sync, self.block_size) = (true, Some(size));
        self
    }

    /// Stands still at the beginning of a phase.
    pub fn hold_at(mut self, phase: &str) -> Self {
        self.hold_at = Some(phase.to_owned());
        self
    }

    /// Dies at a moment of a step, as by `kill -9`.
    pub fn die_at(mut self, step: Step, moment: Moment) -> Self {
        self.die_at = Some(words(step, moment));
        self
    }

    /// Stands still in the middle of the copy.
    pub fn gate(mut self) -> Self {
        self.gate = true;
        self
    }

    /// Stands still after so many bytes of each lane.
    pub fn gate_after(mut self, bytes: u64) -> Self {
        (self.gate, self.gate_after) = (true, bytes);
        self
    }

    /// Is cancelled in the middle of the copy.
    pub fn cancel(mut self) -> Self {
        (self.gate, self.cancel) = (true, true);
        self
    }

    /// The file that lets it go on from where it stands still.
    fn go(&self) -> PathBuf {
        self.journal.with_extension("go")
    }

    pub fn start(&self) -> Controller {
        // The word that let an earlier one go on is not for this one.
        let _ = std::fs::remove_file(self.go());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", CONTROLLER, "--nocapture"])
            .env(TASK, serde_json::to_string(self).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Controller { child, lines, go: self.go() }
    }
}

/// The other process, as the test sees it. Dropping it kills it.
pub struct Controller {
    child: Child,
    lines: Receiver<String>,
    go: PathBuf,
}

impl Controller {
    /// Waits for a line.
    pub fn says(&self, wanted: &str) -> String {
        let mut heard = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {wanted:?} but {heard:?}"));
            if line.starts_with(wanted) {
                return line;
            }
            heard.push(line);
        }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Lets it go on from where it stands still.
    pub fn go(&self) {
        std::fs::write(&self.go, "").unwrap();
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Whether it ended by itself within this time.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        let end = std::time::Instant::now() + limit;
        while std::time::Instant::now() < end {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Not a test of its own: the other process's side, which carries its task out, if it has one.
#[tokio::test(flavor = "multi_thread")]
async fn a_controller_of_its_own() {
    let Some(text) = std::env::var_os(TASK) else { return };
    let task: Task = serde_json::from_str(text.to_str().unwrap()).unwrap();
    end_with_the_test();
    match clone(&task).await {
        Ok(()) => say("done"),
        Err(error) => say(&format!("error {} {error}", error.code.number())),
    }
}

async fn clone(task: &Task) -> kvm_clone_core::Result<()> {
    let mut options = ClientOptions::new(agent(), task.journal.clone());
    options.ssh = SshOptions { configs: vec![task.ssh_config.clone()], ..SshOptions::default() };
    options.silence = SILENCE;
    let client = Client::new(options).await?;
    let (hold_at, go) = (task.hold_at.clone(), task.go());
    let events: Events = Arc::new(move |event| {
        let Event::Phase { phase } = event else { return };
        say(&format!("phase {}", phase.word()));
        if hold_at.as_deref() == Some(phase.word()) {
            say("held");
            while !go.exists() {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
    });
    let (alpha, beta, name) = (spec("alpha"), spec("beta"), "web1".parse()?);
    let prepared = if task.sync {
        let update = Update { in_place: task.in_place, ..Update::default() };
        let asked = SyncRequest { update, block_size: task.block_size, ..SyncRequest::default() };
        client.prepare_sync(&alpha, &beta, &name, &asked, Recovery::Act, Arc::clone(&events)).await?
    } else {
        client.prepare(&alpha, &beta, &name, task.request.clone(), Recovery::Act, Arc::clone(&events)).await?
    };
    let cancel = CancellationToken::new();
    let mut settings = CloneSettings::default();
    if task.gate {
        let (gate, cancel, task) = (Gate::after(task.gate_after), cancel.clone(), task.clone());
        settings = gate.settings();
        tokio::spawn(async move {
            gate.reached().await;
            say("midway");
            if task.cancel {
                cancel.cancel();
            }
        });
    }
    if let Some(moment) = task.die_at.clone() {
        settings.boundary = Arc::new(Death(moment));
    }
    prepared.execute(&settings, events, cancel).await.map(drop)
}

fn words(step: Step, moment: Moment) -> String {
    format!("{} {moment:?}", step.word())
}

/// The end of this process, at the moment that these words name.
#[derive(Debug)]
struct Death(String);

impl Boundary for Death {
    fn pass(&self, step: Step, moment: Moment) -> BoxFuture<'_, kvm_clone_core::Result<Then>> {
        if words(step, moment) == self.0 {
            say("dies");
            std::process::abort();
        }
        Box::pin(async { Ok(Then::Go) })
    }
}

/// Past the test harness, which would keep it back.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The test holds our standard input open as long as it lives.
fn end_with_the_test() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::abort();
    });
}
