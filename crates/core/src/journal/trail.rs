//! How far an operation went, by its records: which of its steps may have happened, and which of them is undone next.

use super::{Mark, Step};
use crate::error::{Error, Result};

/// The steps of one operation that may have happened and are not undone. They are done in the one order there is, so
/// how many of them have begun says which; those that only a sync has are passed over by others, and then count as done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trail {
    begun: usize,
    done: usize,
    undoing: bool,
}

impl Trail {
    /// The trail that these records, as words, leave.
    ///
    /// # Errors
    /// As [`Trail::take`], and where a word is none of ours.
    pub fn read<'a>(records: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut trail = Self::default();
        for (step, mark) in records {
            trail.take(step.parse()?, mark.parse()?)?;
        }
        Ok(trail)
    }

    /// Takes up one more record.
    ///
    /// A step that is undone takes with it all that came after it: these were undone before it, and of that the record may
    /// be missing, because undoing goes on where the journal cannot be written.
    ///
    /// # Errors
    /// [`Code::Internal`](crate::Code::Internal) where the record cannot follow those before it: a step is begun once,
    /// after those before it are done; it is done once it has begun; and from the first undone one on nothing is begun, until
    /// the operation is resumed.
    pub fn take(&mut self, step: Step, mark: Mark) -> Result<()> {
        let place = Step::ALL.iter().position(|other| *other == step).unwrap_or(Step::ALL.len());
        match mark {
            Mark::Intended if !self.undoing && self.done == self.begun && self.is_next(place) => {
                (self.begun, self.done) = (place + 1, place);
            }
            Mark::Done if !self.undoing && place == self.done && place < self.begun => self.done += 1,
            Mark::Undone if place < self.begun => {
                (self.begun, self.done, self.undoing) = (place, self.done.min(place), true);
            }
            // Whatever was begun before is taken up by the steps that follow: they can all be done again.
            Mark::Resumed if place <= self.begun => {
                (self.begun, self.done, self.undoing) = (place, self.done.min(place), false);
            }
            _ => return Err(Error::internal(format!("the journal says {mark} of step {step}, which cannot be here"))),
        }
        Ok(())
    }

    /// Whether all steps between the last one and this one may be passed over.
    fn is_next(&self, place: usize) -> bool {
        Step::ALL.get(self.begun..place).is_some_and(|between| between.iter().all(|step| step.is_of_sync()))
    }

    /// The steps that may have happened, in the order in which they were begun.
    #[must_use]
    pub fn open(&self) -> &'static [Step] {
        Step::ALL.get(..self.begun).unwrap_or(&Step::ALL)
    }

    /// The step that is to be undone next: the last that was begun.
    #[must_use]
    pub fn to_undo(&self) -> Option<Step> {
        self.open().last().copied()
    }

    /// Whether the definition may have been made: it was begun, and neither its end nor its undoing is told.
    #[must_use]
    pub fn may_be_committed(&self) -> bool {
        self.open().contains(&Step::Define) && !self.is_committed()
    }

    /// Whether the definition was made and not taken back.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        Step::ALL.get(..self.done).is_some_and(|done| done.contains(&Step::Define))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn forward(steps: usize) -> Trail {
        let mut trail = Trail::default();
        for step in &Step::ALL[..steps] {
            trail.take(*step, Mark::Intended).unwrap();
            trail.take(*step, Mark::Done).unwrap();
        }
        trail
    }

    #[test]
    fn what_was_begun_is_undone_in_reverse() {
        let mut trail = forward(4);
        trail.take(Step::ALL[4], Mark::Intended).unwrap();
        let mut undone = Vec::new();
        while let Some(step) = trail.to_undo() {
            undone.push(step);
            trail.take(step, Mark::Undone).unwrap();
        }
        undone.reverse();
        assert_eq!(undone, Step::ALL[..5]);
    }

    #[test]
    fn from_the_definition_until_it_is_taken_back_it_is_committed() {
        let place = Step::ALL.iter().position(|step| *step == Step::Define).unwrap();
        assert!(!forward(place).is_committed());
        let mut trail = forward(place + 1);
        assert!(trail.is_committed());
        trail.take(Step::Define, Mark::Undone).unwrap();
        assert!(!trail.is_committed());
    }

    #[test]
    fn while_the_definition_is_made_nobody_knows() {
        let place = Step::ALL.iter().position(|step| *step == Step::Define).unwrap();
        let mut trail = forward(place);
        assert!(!trail.may_be_committed());
        trail.take(Step::Define, Mark::Intended).unwrap();
        assert!(trail.may_be_committed() && !trail.is_committed());
        for (mark, is_committed) in [(Mark::Done, true), (Mark::Undone, false)] {
            let mut trail = trail;
            trail.take(Step::Define, mark).unwrap();
            assert_eq!((trail.may_be_committed(), trail.is_committed()), (false, is_committed));
        }
    }

    #[test]
    fn a_missing_record_of_undoing_does_not_bring_a_step_back() {
        let mut trail = forward(3);
        trail.take(Step::Mark, Mark::Undone).unwrap();
        assert_eq!(trail.open(), []);
    }

    #[test]
    fn a_resumed_operation_begins_again() {
        let mut trail = forward(3);
        trail.take(Step::Mark, Mark::Resumed).unwrap();
        assert_eq!(trail, Trail::default());
        trail.take(Step::Mark, Mark::Intended).unwrap();
        trail.take(Step::Mark, Mark::Undone).unwrap();
        trail.take(Step::Mark, Mark::Resumed).unwrap();
        trail.take(Step::Mark, Mark::Intended).unwrap();
        assert_eq!(trail.to_undo(), Some(Step::Mark));
        assert!(forward(2).take(Step::Copy, Mark::Resumed).is_err());
    }

    #[test]
    fn the_steps_of_a_sync_may_be_passed_over_and_no_others() {
        let place = |step| Step::ALL.iter().position(|other| *other == step).unwrap();
        let defined = forward(place(Step::Define) + 1);
        for next in [Step::Renew, Step::Flatten, Step::Settle, Step::Clean] {
            let mut trail = defined;
            trail.take(next, Mark::Intended).unwrap();
            trail.take(next, Mark::Done).unwrap();
            assert_eq!(trail.to_undo(), Some(next));
            assert!(trail.take(Step::Renew, Mark::Intended).is_err() || next == Step::Renew);
        }
        assert!(forward(place(Step::Place)).take(Step::Flatten, Mark::Intended).is_err());
        // One in place has one more before it copies.
        let mut trail = forward(place(Step::Point) + 1);
        assert!(trail.take(Step::Copy, Mark::Intended).is_ok());
        assert!(forward(place(Step::Stage) + 1).take(Step::Withdraw, Mark::Intended).is_err());
        // What is begun holds the next one up, whatever it is.
        let mut trail = defined;
        trail.take(Step::Flatten, Mark::Intended).unwrap();
        assert!(trail.take(Step::Clean, Mark::Intended).is_err());
    }

    #[test]
    fn records_that_cannot_be_are_refused() {
        for records in [
            &[("mark", "done")][..],
            &[("stage", "intended")],
            &[("mark", "intended"), ("mark", "intended")],
            &[("mark", "intended"), ("stage", "intended")],
            &[("mark", "intended"), ("mark", "undone"), ("mark", "intended")],
            &[("mark", "undone")],
            &[("sweep", "intended")],
            &[("mark", "meant")],
        ] {
            assert!(Trail::read(records.iter().copied()).is_err(), "{records:?}");
        }
    }

    proptest! {
        #[test]
        fn no_records_make_it_panic(records in proptest::collection::vec((0..Step::ALL.len(), 0..4usize), 0..40)) {
            let mut trail = Trail::default();
            for (step, mark) in records {
                let before = trail;
                if trail.take(Step::ALL[step], Mark::ALL[mark]).is_err() {
                    prop_assert_eq!(trail, before);
                }
                prop_assert!(trail.done <= trail.begun && trail.begun <= trail.done + 1);
            }
        }
    }
}
