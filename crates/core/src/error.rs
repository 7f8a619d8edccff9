//! The error that every part of kvm-clone speaks: a stable code, a sentence, its evidence, and a way out.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Result with this project's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $kind:literal, $exit:literal, $when:literal, $way_out:literal;)*) => {
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

            /// When it is raised, for the page about errors.
            #[must_use]
            pub const fn when(self) -> &'static str { match self { $(Code::$name => $when,)* } }

            /// What to do next where an error does not know anything better.
            #[must_use]
            pub const fn way_out(self) -> &'static str { match self { $(Code::$name => $way_out,)* } }
        }
    };
}

codes! {
    /// A defect of kvm-clone itself.
    Internal = 1000, "internal", 70,
        "a defect of kvm-clone: please report it with its message",
        "This is a defect of kvm-clone; please report it with this message";
    /// The configuration file, the environment or a setting is wrong.
    Configuration = 1001, "configuration", 78,
        "the configuration file, a variable or a setting is wrong; the agent program is missing; the journal cannot be used",
        "kvm-clone config show says what holds, and where it came from";
    /// A host cannot be reached or used.
    Connection = 1002, "connection", 69,
        "a host cannot be reached or used: see [what a host needs](hosts.md)",
        "kvm-clone doctor HOST looks at everything that a host needs";
    /// The machine is not there.
    VmNotFound = 1003, "vm_not_found", 66,
        "the machine is not there",
        "kvm-clone list HOST shows the machines of a host";
    /// A machine or file of that name is there already.
    VmExists = 1004, "vm_exists", 73,
        "a machine, UUID or file of that name is there already",
        "Choose another name with --new-name, or replace what is there with --force";
    /// Space, a pool, a network or a program is missing.
    InsufficientResources = 1005, "insufficient_resources", 72,
        "space, a pool, a network, memory, a file or a program is missing",
        "kvm-clone doctor HOST names what is missing on a host";
    /// Moving data between hosts failed.
    Transfer = 1006, "transfer", 74,
        "moving data failed: a stream broke, a frame or a block arrived damaged, a file could not be read or written",
        "Run the command again; if it fails at the same place, look at the kernel logs of both hosts";
    /// What the user wrote is not valid.
    Validation = 1007, "validation", 64,
        "what the user wrote is not valid; found before any connection",
        "kvm-clone COMMAND --help has examples";
    /// The user stopped it.
    Cancelled = 1008, "cancelled", 130,
        "the user stopped it; everything is undone",
        "Run the command again when you like";
    /// libvirt refused or failed.
    Libvirt = 1009, "libvirt", 71,
        "libvirt refused, or gave a definition that cannot be used",
        "Look at libvirt's log on that host: journalctl -u libvirtd -u virtqemud";
    /// It took longer than allowed.
    Timeout = 1010, "timeout", 75,
        "it took longer than allowed, nothing moved for too long, or somebody did not answer",
        "Look at the network and the disks, or allow more time with --timeout and --stall-timeout";
    /// Another operation works on this machine.
    Locked = 1011, "locked", 75,
        "another operation works on this machine; the message names who",
        "Wait for the other operation; kvm-clone recover HOST ends what a dead one left";
    /// What arrived is not what was sent, or the image is broken.
    Verification = 1012, "verification", 65,
        "what was read back is not what was sent, a disk that was verified is not what it should be, or an image is broken",
        "Look at the image with qemu-img check, and at the kernel log of its host";
    /// This cannot be done, or not in this version.
    Unsupported = 1013, "unsupported", 76,
        "it cannot be done, or not in this version",
        "kvm-clone clone --help has the options that leave things out";
    /// The machine is in a state, or changed in a way, that the operation must not touch.
    Conflict = 1014, "conflict", 77,
        "the machine is in a state, or changed in a way, that must not be touched: the source was started or written to, the plan is out of date",
        "Look at the machine; run the command again to see the plan as it is now";
    /// Undoing failed; a person must look.
    UndoFailed = 1015, "undo_failed", 20,
        "it failed, and undoing failed too: the message says what is left where, and `recover` how to go on",
        "kvm-clone recover HOST finishes or undoes what is left there";
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

    /// What the user can do next; never nothing.
    #[must_use]
    pub fn ways_out(&self) -> Vec<&str> {
        match self.help.as_slice() {
            [] => vec![self.code.way_out()],
            known => known.iter().map(String::as_str).collect(),
        }
    }

    /// A defect of kvm-clone itself: an invariant that did not hold.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
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
