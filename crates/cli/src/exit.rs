//! How the command ends.

use std::process::ExitCode;

use kvm_clone_core::Code;

/// The exit status of a code; the table is in `kvm_clone_core::error`.
pub(crate) fn status(code: Code) -> ExitCode {
    ExitCode::from(code.exit_status())
}

/// The exit status where several things were done: that of the first failure.
pub(crate) fn first(failures: &[Code]) -> ExitCode {
    failures.first().map_or(ExitCode::SUCCESS, |code| status(*code))
}
