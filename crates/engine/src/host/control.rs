//! The controller's end of a control agent: questions and answers, heartbeats, lane events, relayed libvirt bytes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_clone_core::wire::PROTOCOL_VERSION;
use kvm_clone_core::wire::control::{FromAgent, Hello, LaneId, Reply, Request, StreamId, ToAgent, Welcome};
use kvm_clone_core::wire::frame::{Kind, decode};
use kvm_clone_core::wire::lane::{LaneCommand, LaneEvent};
use kvm_clone_core::{Error, Result};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::answers::Answers;
use super::frames::{FrameReader, FrameWriter};
use super::install::read_limited;
use super::transport::Started;

/// Messages that wait to be written to the agent.
const OUTGOING: usize = 256;
/// Pieces that wait for libvirt's client library.
const RELAY_WAITING: usize = 2048;
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long an agent that is going may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long an agent may take from its start to its hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(30);

enum Outgoing {
    Message(Box<ToAgent>),
    Relay(StreamId, Vec<u8>),
}

/// A running control agent.
#[derive(Clone)]
pub(crate) struct Control {
    shared: Arc<Shared>,
}

struct Shared {
    host: String,
    hello: Hello,
    out: mpsc::Sender<Outgoing>,
    /// How long the agent may work on a request without progress.
    stall: Duration,
    /// When the agent was heard last.
    heard: Mutex<Instant>,
    next: AtomicU32,
    answers: Answers,
    relays: Mutex<HashMap<StreamId, mpsc::Sender<Vec<u8>>>>,
    lanes: Mutex<Option<mpsc::Sender<(LaneId, LaneEvent)>>>,
    /// Why the agent is gone, once it is.
    gone: watch::Sender<Option<Error>>,
}

/// How long an agent is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Without any message of it.
    pub(crate) silence: Duration,
    /// Without progress of what it works on.
    pub(crate) stall: Duration,
}

/// Why no agent spoke: the exit status and the log of what was started instead.
pub(crate) struct NoAgent {
    pub(crate) status: Option<i32>,
    pub(crate) log: String,
}

impl Control {
    /// Shakes hands with an agent that was just started.
    ///
    /// # Errors
    /// The outer: it broke the protocol. The inner: no agent spoke.
    pub(crate) async fn greet(
        host: &str,
        started: Started,
        patience: Patience,
        controller: String,
    ) -> Result<Result<Self, NoAgent>> {
        let Patience { silence, stall } = patience;
        let Started { stdin, stdout, mut stderr, child } = started;
        let mut reader = FrameReader::new(stdout);
        let heard = tokio::time::timeout(HELLO_DEADLINE, reader.expect_magic()).await;
        let spoke = heard.map_err(|_| {
            Error::timeout(format!("the agent on {host} did not answer in {} s", HELLO_DEADLINE.as_secs()))
        })??;
        if !spoke {
            let log = read_limited(&mut stderr).await;
            return Ok(Err(NoAgent { status: child.wait().await, log }));
        }
        let hello = match reader.next().await? {
            Some((header, body, _)) if header.kind == Kind::Message => match decode(&body)? {
                FromAgent::Hello(hello) => hello,
                _ => return Err(Error::connection("the agent did not greet")),
            },
            _ => return Err(Error::connection("the agent did not greet")),
        };
        let (out, outgoing) = mpsc::channel(OUTGOING);
        let shared = Arc::new(Shared {
            host: host.to_owned(),
            hello,
            out,
            stall,
            heard: Mutex::new(Instant::now()),
            next: AtomicU32::new(1),
            answers: Answers::default(),
            relays: Mutex::default(),
            lanes: Mutex::default(),
            gone: watch::Sender::new(None),
        });
        let silence_seconds = u32::try_from(silence.as_secs()).unwrap_or(u32::MAX);
        let welcome = Welcome { protocol: PROTOCOL_VERSION, silence_seconds, controller };
        tokio::spawn(write(Arc::downgrade(&shared), FrameWriter::new(stdin), outgoing, welcome));
        tokio::spawn(read(Arc::downgrade(&shared), reader, stderr, child, silence));
        Ok(Ok(Self { shared }))
    }

    /// What the agent said of itself.
    pub(crate) fn hello(&self) -> &Hello {
        &self.shared.hello
    }

    /// Asks, and waits for the answer for as long as the agent lives and gets on with it.
    pub(crate) async fn ask(&self, request: Request) -> Result<Reply> {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let mut expected = self.shared.answers.expect(number);
        let patience = request.patience(self.shared.stall);
        let stalled = request.stalled(&self.shared.host, patience);
        let asked = Asked::new(&request);
        self.send(ToAgent::Request(number, request)).await?;
        let mut gone = self.shared.gone.subscribe();
        let reply = loop {
            tokio::select! {
                biased;
                answer = &mut expected.answer => break answer.map_err(|_| self.why_gone())?,
                _ = gone.wait_for(Option::is_some) => break Err(self.why_gone()),
                // The wait begins anew.
                Ok(()) = expected.progress.changed() => {}
                () = self.shared.stalls(patience) => break Err(stalled),
            }
        };
        asked.log(&self.shared.host);
        reply.map_err(|error| error.with("host", &self.shared.host))
    }

    /// Whether the agent is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.shared.gone.borrow().is_some()
    }

    /// Asks for something whose answer is only that it is done.
    pub(crate) async fn order(&self, request: Request) -> Result<()> {
        match self.ask(request).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn lane(&self, lane: LaneId, command: LaneCommand) -> Result<()> {
        self.send(ToAgent::Lane(lane, command)).await
    }

    /// From now on events of this host's lane agents go here.
    pub(crate) fn lane_events(&self, events: mpsc::Sender<(LaneId, LaneEvent)>) {
        *lock(&self.shared.lanes) = Some(events);
    }

    /// Opens libvirt's socket on the host; what libvirt says arrives at the returned end.
    pub(crate) async fn open_relay(&self) -> Result<(StreamId, mpsc::Receiver<Vec<u8>>)> {
        match self.ask(Request::OpenLibvirt).await? {
            Reply::Relay(stream) => {
                // libvirt speaks only when spoken to, so nothing can arrive before this entry is there.
                let (bytes, arriving) = mpsc::channel(RELAY_WAITING);
                lock(&self.shared.relays).insert(stream, bytes);
                Ok((stream, arriving))
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn relay(&self, stream: StreamId, bytes: Vec<u8>) -> Result<()> {
        match self.shared.out.send(Outgoing::Relay(stream, bytes)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.gone().await),
        }
    }

    pub(crate) async fn close_relay(&self, stream: StreamId) {
        lock(&self.shared.relays).remove(&stream);
        let _ = self.send(ToAgent::RelayClosed(stream)).await;
    }

    /// Resolves when the agent is gone.
    pub(crate) async fn gone(&self) -> Error {
        let _ = self.shared.gone.subscribe().wait_for(Option::is_some).await;
        self.why_gone()
    }

    async fn send(&self, message: ToAgent) -> Result<()> {
        match self.shared.out.send(Outgoing::Message(Box::new(message))).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.gone().await),
        }
    }

    fn why_gone(&self) -> Error {
        let why = self.shared.gone.borrow().clone();
        why.unwrap_or_else(|| Error::connection("the agent is gone").transient()).with("host", &self.shared.host)
    }
}

/// A question for the debugging log: what is asked and how long its answer takes.
struct Asked(Option<(String, Instant)>);

impl Asked {
    fn new(request: &Request) -> Self {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return Self(None);
        }
        // The name alone: what it carries may be secret, as keys are.
        let name: String = format!("{request:?}").chars().take_while(|c| c.is_alphanumeric()).collect();
        Self(Some((name, Instant::now())))
    }

    fn log(self, host: &str) {
        if let Self(Some((name, since))) = self {
            tracing::debug!(host, request = name, micros = since.elapsed().as_micros(), "answered");
        }
    }
}

/// An answer to another question.
pub(crate) fn unexpected(reply: &Reply) -> Error {
    Error::internal(format!("the agent gave another answer than the one asked for: {reply:?}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes until the last holder of the control is gone; closing the agent's stdin then ends it.
async fn write(
    shared: std::sync::Weak<Shared>,
    mut output: FrameWriter,
    mut outgoing: mpsc::Receiver<Outgoing>,
    welcome: Welcome,
) {
    let work = async {
        let silence = Duration::from_secs(u64::from(welcome.silence_seconds.max(1)));
        output.magic().await?;
        output.send(Kind::Message, &ToAgent::Welcome(welcome), &[]).await?;
        // Two may be late before the third counts.
        let mut beat = tokio::time::interval(HEARTBEAT.min(silence / 3));
        loop {
            tokio::select! {
                message = outgoing.recv() => match message {
                    Some(Outgoing::Message(message)) => output.send(Kind::Message, &*message, &[]).await?,
                    Some(Outgoing::Relay(stream, bytes)) => output.send(Kind::Relay, &stream, &bytes).await?,
                    None => return Ok(()),
                },
                _ = beat.tick() => output.send(Kind::Message, &ToAgent::Heartbeat, &[]).await?,
            }
        }
    };
    // A broken pipe says little; the agent's end, which the reader sees with the agent's last words, says why.
    let outcome: Result<()> = work.await;
    if let (Err(error), Some(shared)) = (outcome, shared.upgrade()) {
        tokio::time::sleep(LAST_WORDS).await;
        shared.end(error);
    }
}

async fn read(
    shared: std::sync::Weak<Shared>,
    mut input: FrameReader,
    mut log: super::transport::Reading,
    // Held, because OpenSSH ends a session whose client is gone.
    _child: super::transport::Child,
    silence: Duration,
) {
    let log = tokio::spawn(async move { read_limited_forever(&mut log).await });
    let mut heard = Instant::now();
    let outcome = loop {
        let next = tokio::time::timeout_at(heard + silence, input.next()).await;
        heard = Instant::now();
        let Some(shared) = shared.upgrade() else { return };
        match next {
            Err(_) => break Error::timeout(format!("the agent was silent for {} s", silence.as_secs())).transient(),
            Ok(Err(error)) => break error,
            Ok(Ok(None)) => break Error::connection("the connection to the agent was lost").transient(),
            Ok(Ok(Some((header, body, payload)))) => {
                *lock(&shared.heard) = heard;
                if let Err(error) = shared.take(header.kind, &body, payload).await {
                    break error;
                }
            }
        }
    };
    let Some(shared) = shared.upgrade() else { return };
    let log = tokio::time::timeout(Duration::from_millis(200), log).await;
    let log = log.ok().and_then(Result::ok).unwrap_or_default();
    let last: String = log.lines().last().unwrap_or("").chars().take(500).collect();
    shared.end(if last.is_empty() { outcome } else { outcome.with("agent_log", last) });
}

/// Keeps the end of the agent's log.
async fn read_limited_forever(stream: &mut super::transport::Reading) -> String {
    use tokio::io::AsyncReadExt;
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(8192);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

impl Shared {
    /// Resolves after this time. An agent that is not heard at all tells of no progress either: how long it may be silent is for
    /// [`read`] to decide.
    async fn stalls(&self, patience: Duration) {
        tokio::time::sleep(patience).await;
        while lock(&self.heard).elapsed() > HEARTBEAT * 2 {
            tokio::time::sleep(HEARTBEAT).await;
        }
    }

    async fn take(&self, kind: Kind, body: &[u8], payload: Vec<u8>) -> Result<()> {
        match kind {
            Kind::Message => self.message(decode(body)?).await,
            Kind::Relay => {
                let stream: StreamId = decode(body)?;
                let mut relays = lock(&self.relays);
                if relays.get(&stream).is_some_and(|relay| relay.try_send(payload).is_err()) {
                    relays.remove(&stream);
                }
                Ok(())
            }
            Kind::Lane => Err(Error::transfer("the control agent sent a lane's frame")),
        }
    }

    async fn message(&self, message: FromAgent) -> Result<()> {
        match message {
            FromAgent::Heartbeat | FromAgent::Hello(_) => {}
            FromAgent::Response(number, reply) => self.answers.answered(number, reply),
            FromAgent::Progress(number, count) => self.answers.progressed(number, count),
            FromAgent::Lane(lane, event) => {
                let events = lock(&self.lanes).clone();
                if let Some(events) = events {
                    let _ = events.send((lane, event)).await;
                }
            }
            FromAgent::RelayClosed(stream) => drop(lock(&self.relays).remove(&stream)),
        }
        Ok(())
    }

    /// The agent is gone: whoever waits for it hears why. The first reason counts.
    fn end(&self, error: Error) {
        self.gone.send_if_modified(|gone| {
            let first = gone.is_none();
            gone.get_or_insert(error);
            first
        });
        self.answers.end();
        lock(&self.relays).clear();
        *lock(&self.lanes) = None;
    }
}
