//! The one error type of the lab.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// What a lab call returns.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// Why the lab could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file or directory of the lab could not be read, written or made.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried, as a verb: "write".
        action: &'static str,
        /// The file in question.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A program could not be started at all.
    #[error("cannot start {program}")]
    Start {
        /// The program's name.
        program: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A program ran and failed.
    #[error("{command} ended with {status}: {stderr}")]
    Command {
        /// The words of the command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// Something that was waited for did not come.
    #[error("{what} did not happen within {waited:?}: {seen}")]
    Late {
        /// What was waited for.
        what: String,
        /// The deadline that passed.
        waited: Duration,
        /// The state that was seen instead.
        seen: String,
    },
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    Refused(String),
    /// A system call of the lab failed.
    #[error("{call}")]
    System {
        /// The call and its object.
        call: String,
        /// Why it failed.
        source: rustix::io::Errno,
    },
}

impl LabError {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn system(call: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let call = call.into();
        move |source| Self::System { call, source }
    }
}
