//! The threads of a lane agent: the first of them that fails is why the lane failed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, SyncSender};

use kvm_clone_core::{Error, Result};

/// Threads that a lane agent has at most, its readers not counted.
const MOST: usize = 8;

/// The threads that work on one lane. Who fails may leave others waiting for a stream that says nothing more: nobody
/// waits for those, since the end of the lane agent is their end.
pub(super) struct Crew {
    tell: SyncSender<Result<()>>,
    told: Receiver<Result<()>>,
    awaited: usize,
}

impl Crew {
    pub(super) fn new() -> Self {
        let (tell, told) = mpsc::sync_channel(MOST);
        Self { tell, told, awaited: 0 }
    }

    /// A thread whose success the lane waits for.
    pub(super) fn work(&mut self, work: impl FnMut() -> Result<()> + Send + 'static) {
        self.awaited += 1;
        self.start(work, true);
    }

    /// A thread that serves the others: only its failure counts.
    pub(super) fn serve(&mut self, work: impl FnMut() -> Result<()> + Send + 'static) {
        self.start(work, false);
    }

    /// `work` is called once, and by reference: the ends of channels that it holds close only after its outcome was told,
    /// so a failure is told before those that follow from it.
    fn start(&self, mut work: impl FnMut() -> Result<()> + Send + 'static, awaited: bool) {
        let tell = self.tell.clone();
        std::thread::spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(&mut work));
            let outcome = outcome.unwrap_or_else(|_| Err(Error::internal("a thread of the lane panicked")));
            if awaited || outcome.is_err() {
                // Fails where nobody asks any more.
                let _ = tell.try_send(outcome);
            }
        });
    }

    /// Returns when all is done, or with the first failure.
    pub(super) fn end(self) -> Result<()> {
        (0..self.awaited).try_for_each(|_| {
            self.told.recv().unwrap_or_else(|_| Err(Error::internal("the threads of the lane are gone")))
        })
    }
}

/// The other thread of a channel is gone; it told why itself.
pub(super) fn gone<T>(_: T) -> Error {
    Error::internal("another thread of the lane stopped")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_told_and_nobody_is_waited_for_then() {
        let mut crew = Crew::new();
        let (items, taken) = mpsc::sync_channel::<u8>(0);
        let (never, silence) = mpsc::sync_channel::<u8>(0);
        crew.work(move || items.send(1).and_then(|()| items.send(2)).map_err(gone));
        crew.work(move || taken.recv().map_err(gone).and_then(|_| Err(Error::transfer("the disk is full"))));
        crew.work(move || silence.recv().map(drop).map_err(gone));
        assert_eq!(crew.end().unwrap_err().message, "the disk is full");
        drop(never);
    }

    #[test]
    fn a_lane_is_done_when_its_work_is() {
        let mut crew = Crew::new();
        let (never, silence) = mpsc::sync_channel::<u8>(0);
        crew.serve(move || silence.recv().map(drop).map_err(gone));
        crew.serve(|| Ok(()));
        crew.work(|| Ok(()));
        crew.work(|| Ok(()));
        crew.end().unwrap();
        drop(never);
        let mut crew = Crew::new();
        crew.work(|| panic!("a defect"));
        assert!(crew.end().unwrap_err().message.contains("panicked"));
    }
}
