//! The error that every part of kvm-clone speaks: a stable code, a sentence, its evidence, and a way out.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Result with this project's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $kind:literal, $exit:literal;)*) => {
        /// What kind of failure it was. The numbers, kinds and exit statuses are a contract with users.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, in numeric order.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The stable number shown to users.
            #[must_use]
            pub const fn number(self) -> u16 { match self { $(Code::$name => $code,)* } }

            /// The stable word of this code in JSON.
            #[must_use]
            pub const fn kind(self) -> &'static str { match self { $(Code::$name => $kind,)* } }

            /// The exit status of a command that ends with this code.
            #[must_use]
            pub const fn exit_status(self) -> u8 { match self { $(Code::$name => $exit,)* } }
        }
    };
}

codes! {
    /// A defect of kvm-clone itself.
    Internal = 1000, "internal", 70;
    /// The configuration file, the environment or a setting is wrong.
    Configuration = 1001, "configuration", 78;
    /// A host cannot be reached or used.
    Connection = 1002, "connection", 69;
    /// The machine is not there.
    VmNotFound = 1003, "vm_not_found", 66;
    /// A machine or file of that name is there already.
    VmExists = 1004, "vm_exists", 73;
    /// Space, a pool, a network or a program is missing.
    InsufficientResources = 1005, "insufficient_resources", 72;
    /// Moving data between hosts failed.
    Transfer = 1006, "transfer", 74;
    /// What the user wrote is not valid.
    Validation = 1007, "validation", 64;
    /// The user stopped it.
    Cancelled = 1008, "cancelled", 130;
    /// libvirt refused or failed.
    Libvirt = 1009, "libvirt", 71;
    /// It took longer than allowed.
    Timeout = 1010, "timeout", 75;
    /// Another operation works on this machine.
    Locked = 1011, "locked", 75;
    /// What arrived is not what was sent, or the image is broken.
    Verification = 1012, "verification", 65;
    /// This cannot be done, or not in this version.
    Unsupported = 1013, "unsupported", 76;
    /// The machine is in a state, or changed in a way, that the operation must not touch.
    Conflict = 1014, "conflict", 77;
    /// Undoing failed; a person must look.
    UndoFailed = 1015, "undo_failed", 20;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number(), self.kind())
    }
}

/// What failed, where, why, and what to do next.
///
/// It crosses the wire between agent and controller unchanged, so nothing of the chain is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The stable code.
    pub code: Code,
    /// One sentence: what failed and why. Never ends with a full stop.
    pub message: String,
    /// The evidence, by name: `host`, `path`, `disk`, `offset`, …
    pub context: BTreeMap<String, String>,
    /// What the user can do next, most likely first.
    pub help: Vec<String>,
    /// Whether trying again may succeed without anybody changing anything.
    pub transient: bool,
}

impl Error {
    /// An error of this code that says `message`.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), context: BTreeMap::new(), help: Vec::new(), transient: false }
    }

    /// Adds a piece of evidence; one that is there already stays, since it was nearer to the failure.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.context.entry(name.to_owned()).or_insert_with(|| value.to_string());
        self
    }

    /// Adds a way out.
    #[must_use]
    pub fn help(mut self, hint: impl Into<String>) -> Self {
        self.help.push(hint.into());
        self
    }

    /// Marks the error as worth a retry.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.transient = true;
        self
    }

    /// A defect of kvm-clone itself: an invariant that did not hold.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message).help("This is a defect of kvm-clone; please report it with this message")
    }
}

/// Shorthand constructors, one for each code that is raised in many places.
macro_rules! shorthand {
    ($($name:ident => $code:ident;)*) => {
        impl Error {
            $(
                #[doc = concat!("An error of code [`Code::", stringify!($code), "`].")]
                pub fn $name(message: impl Into<String>) -> Self { Self::new(Code::$code, message) }
            )*
        }
    };
}

shorthand! {
    connection => Connection;
    transfer => Transfer;
    validation => Validation;
    libvirt => Libvirt;
    timeout => Timeout;
    verification => Verification;
    unsupported => Unsupported;
    conflict => Conflict;
    insufficient => InsufficientResources;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_order_and_unique() {
        let numbers: Vec<u16> = Code::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(numbers, (1000..=1015).collect::<Vec<_>>());
    }

    #[test]
    fn the_nearest_evidence_stays() {
        let error = Error::transfer("x").with("host", "inner").with("host", "outer");
        assert_eq!(error.context["host"], "inner");
    }
}
