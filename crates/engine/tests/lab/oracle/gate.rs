//! A lane that can be held midway, so that faults strike at a known moment and not after a guessed time.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};

use kvm_clone_engine::{CloneSettings, Ends, Joint, RoutePolicy};

#[derive(Debug, Default)]
struct State {
    reached: bool,
    open: bool,
}

#[derive(Debug, Clone)]
pub struct Gate {
    bytes: u64,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Gate {
    /// Closed after so many bytes of each lane.
    pub fn after(bytes: u64) -> Self {
        Self { bytes, state: Arc::default() }
    }

    pub fn settings(&self) -> CloneSettings {
        CloneSettings { joint: Arc::new(self.clone()), route: RoutePolicy::Relay, ..CloneSettings::default() }
    }

    /// Waits until a lane stands before it.
    pub async fn reached(&self) {
        let gate = self.clone();
        let waiting = move || {
            let (state, changed) = &*gate.state;
            let state = state.lock().unwrap();
            changed.wait_timeout_while(state, super::PATIENCE, |state| !state.reached).unwrap().1.timed_out()
        };
        let late = tokio::task::spawn_blocking(waiting).await.unwrap();
        assert!(!late, "the copy did not come to the gate");
    }

    pub fn is_reached(&self) -> bool {
        self.state.0.lock().unwrap().reached
    }

    /// Lets everything pass.
    pub fn open(&self) {
        self.state.0.lock().unwrap().open = true;
        self.state.1.notify_all();
    }

    fn stand_before_it(&self) {
        let (state, changed) = &*self.state;
        let mut state = state.lock().unwrap();
        state.reached = true;
        changed.notify_all();
        drop(changed.wait_while(state, |state| !state.open).unwrap());
    }

    fn carry(&self, mut input: File, mut output: File) -> std::io::Result<()> {
        let (mut passed, mut buffer) = (0, vec![0; 64 << 10]);
        loop {
            let count = input.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            if passed >= self.bytes {
                self.stand_before_it();
            }
            output.write_all(&buffer[..count])?;
            passed += count as u64;
        }
    }
}

impl Joint for Gate {
    fn join(&self) -> std::io::Result<Ends> {
        let (from_source, source_out) = std::io::pipe()?;
        let (target_in, to_target) = std::io::pipe()?;
        let (source_in, target_out) = std::io::pipe()?;
        let gate = self.clone();
        std::thread::spawn(move || {
            // A broken pipe is what a fault at either end looks like.
            let _ = gate.carry(OwnedFd::from(from_source).into(), OwnedFd::from(to_target).into());
        });
        Ok(Ends {
            source_out: source_out.into(),
            target_in: target_in.into(),
            target_out: target_out.into(),
            source_in: source_in.into(),
        })
    }
}
