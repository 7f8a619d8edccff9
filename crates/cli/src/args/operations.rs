//! Commands about operations: `status`, `cancel`.

use clap::Args;
use kvm_clone_core::journal::IdPart;

const STATUS_EXAMPLES: &str = "Examples:
  kvm-clone status                           What runs, was interrupted, or ended of late
  kvm-clone status --active -f               What runs, until nothing runs any more
  kvm-clone status 0c1d2e3f4a5b              One operation, with its result or its error
  kvm-clone status 0c1d2e3f4a5b -f -o json   ... each change as a line of JSON, until it ends";

/// Show operations: those that run, those that were interrupted, and those that ended.
///
/// An operation is pending, running, completed, failed (everything is undone), cancelled (everything is undone) or
/// interrupted: its controller is gone, or undoing failed; "kvm-clone resume ID" goes on with it, and "kvm-clone recover HOST"
/// finishes or undoes it. Known are the operations that this user began on this computer. The exit status of --follow with an
/// ID is 0 if the operation was completed, else that of its error.
#[derive(Debug, Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub(crate) struct StatusArgs {
    /// The operation: its id, or four characters and more of its beginning or end
    #[arg(conflicts_with_all = ["all", "active"])]
    pub(crate) id: Option<IdPart>,
    /// Every operation; without it, of those that ended only the last 20
    #[arg(short, long, conflicts_with_all = ["active", "follow"])]
    pub(crate) all: bool,
    /// Only those that run: pending and running
    #[arg(long)]
    pub(crate) active: bool,
    /// Show each change until the operation has ended; without an ID, until none runs
    #[arg(short, long)]
    pub(crate) follow: bool,
}

const CANCEL_EXAMPLES: &str = "Examples:
  kvm-clone status --active              The operations that run, with their ids
  kvm-clone cancel 0c1d2e3f4a5b          Stop one of them, and undo it";

/// Stop an operation that runs, and wait until everything is undone.
///
/// The command that began it ends as after Ctrl-C, with exit status 130. An operation whose machine stands is committed: it is
/// not stopped any more, and that is said. One whose controller is gone cannot be stopped: "kvm-clone recover HOST" undoes it.
#[derive(Debug, Args)]
#[command(after_help = CANCEL_EXAMPLES)]
pub(crate) struct CancelArgs {
    /// The operation: its id, or four characters and more of its beginning or end
    pub(crate) id: IdPart,
}
