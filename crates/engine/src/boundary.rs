//! The moments between the steps of an operation, where tests set faults off: what a fault may leave is decided there.

use std::fmt::Debug;

use futures_util::future::BoxFuture;
use kvm_clone_core::Result;
use kvm_clone_core::journal::Step;

/// A moment of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The step before is done.
    Begun,
    /// It is journaled as intended, and nothing of it is done.
    Intended,
    /// It is done, and not journaled as done.
    Acted,
}

/// How it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// As it should.
    Go,
    /// A step that was just done is done once more.
    Again,
}

/// Told of each moment of each step.
pub trait Boundary: Debug + Send + Sync {
    /// The moment has come. An error fails the step.
    fn pass(&self, step: Step, moment: Moment) -> BoxFuture<'_, Result<Then>>;
}

/// Goes straight on.
#[derive(Debug, Clone, Copy)]
pub struct Straight;

impl Boundary for Straight {
    fn pass(&self, _: Step, _: Moment) -> BoxFuture<'_, Result<Then>> {
        Box::pin(async { Ok(Then::Go) })
    }
}
