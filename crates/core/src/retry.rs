//! What is tried again, and when: one table, one formula.

use std::time::Duration;

use crate::error::{Code, Error};

/// How often, and how long to wait between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all; 1 tries once.
    pub attempts: u32,
    /// The wait after the first try; it doubles with each.
    pub base_delay: Duration,
    /// No wait is longer.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 3, base_delay: Duration::from_secs(2), max_delay: Duration::from_secs(60) }
    }
}

/// Whether failures of this code can pass by themselves. An error must be marked as transient as well: that a host is
/// not known is a connection that fails, too.
#[must_use]
pub const fn can_pass(code: Code) -> bool {
    match code {
        // The network, a daemon, a slow disk, another operation, a machine that just changed: later it may be otherwise.
        Code::Connection | Code::Transfer | Code::Libvirt | Code::Timeout | Code::Locked | Code::Conflict => true,
        // What the user wrote, what is missing, what is broken, what nobody can do: the next try fails like the last. And
        // what could not be undone is not to be piled up.
        Code::Internal
        | Code::Configuration
        | Code::VmNotFound
        | Code::VmExists
        | Code::InsufficientResources
        | Code::Validation
        | Code::Cancelled
        | Code::Verification
        | Code::Unsupported
        | Code::UndoFailed => false,
    }
}

/// Whether what keeps us out is our own former try, which failed with `former`: its agent, if the link to it was cut, holds
/// the locks until it has noticed, and what worked for it may take a moment longer. That passes, and says nothing new.
#[must_use]
pub fn is_our_own_lock(error: &Error, former: &Error) -> bool {
    let Some(operation) = former.context.get("operation_id") else { return false };
    let is_ours = error.context.get("holder").is_none_or(|holder| holder.contains(operation.as_str()));
    error.code == Code::Locked && error.context.contains_key("lock") && is_ours
}

impl RetryPolicy {
    /// How long to wait before the next try; nothing where there is none. `tried` counts the tries so far; `random` is
    /// between 0 and 1: the wait is between half and all of what the doubling gives, so that hosts that were cut off
    /// together do not come back together.
    #[must_use]
    pub fn wait(&self, error: &Error, tried: u32, random: f64) -> Option<Duration> {
        if !error.transient || !can_pass(error.code) || tried >= self.attempts {
            return None;
        }
        let doubled = self.base_delay.saturating_mul(2u32.saturating_pow(tried.saturating_sub(1))).min(self.max_delay);
        Some(doubled.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy =
        RetryPolicy { attempts: 4, base_delay: Duration::from_secs(2), max_delay: Duration::from_secs(5) };

    #[test]
    fn what_can_pass_is_tried_again_where_it_is_marked_and_nothing_else() {
        let passing = [1002, 1006, 1009, 1010, 1011, 1014];
        for code in Code::ALL {
            let (marked, plain) = (Error::new(*code, "x").transient(), Error::new(*code, "x"));
            assert_eq!(POLICY.wait(&marked, 1, 0.0).is_some(), passing.contains(&code.number()), "{code}");
            assert_eq!(POLICY.wait(&plain, 1, 0.0), None, "{code}");
        }
    }

    #[test]
    fn a_lock_of_our_own_former_try_is_known_by_its_operation() {
        let former = Error::connection("lost").transient().with("operation_id", "0199-a");
        let locked = |holder: &str| Error::new(Code::Locked, "x").with("lock", "uuid-1").with("holder", holder);
        assert!(is_our_own_lock(&locked("operation 0199-a of me@here"), &former));
        assert!(is_our_own_lock(&Error::new(Code::Locked, "still ending").with("lock", "uuid-1"), &former));
        assert!(!is_our_own_lock(&locked("operation 0199-b of me@here"), &former));
        assert!(!is_our_own_lock(&Error::new(Code::Locked, "a job of libvirt's"), &former));
        assert!(!is_our_own_lock(&locked("operation 0199-a"), &Error::connection("not begun")));
    }

    #[test]
    fn waits_double_up_to_the_most_and_end_with_the_tries() {
        let lost = Error::connection("lost").transient();
        let wait = |tried, random| POLICY.wait(&lost, tried, random).map(|wait| wait.as_millis());
        assert_eq!([1, 2, 3, 4].map(|tried| wait(tried, 1.0)), [Some(2000), Some(4000), Some(5000), None]);
        assert_eq!([0.0, 0.5, 1.0, 7.0].map(|random| wait(1, random)), [1000, 1500, 2000, 2000].map(Some));
        assert_eq!(RetryPolicy { attempts: 1, ..POLICY }.wait(&lost, 1, 0.0), None);
        assert!(RetryPolicy { attempts: u32::MAX, ..POLICY }.wait(&lost, 4_000_000, 1.0).is_some());
    }
}
