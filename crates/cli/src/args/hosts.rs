//! Commands that look after hosts: `list`, `doctor`, `recover`.

use clap::{Args, ValueEnum};
use kvm_clone_core::host::HostAddr;
use kvm_clone_core::inventory::MachineState;

use super::SshArgs;

const LIST_EXAMPLES: &str = "Examples:
  kvm-clone list                             The machines of this host
  kvm-clone list alpha beta -s running       What runs on two hosts
  kvm-clone list alpha --format list         With disks and networks
  kvm-clone list alpha beta -o json";

/// Show the machines of hosts.
///
/// All hosts are asked at once. One that cannot be reached does not hide the others: its error goes to stderr, and the
/// exit status is that of the first such error.
#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct ListArgs {
    /// The hosts
    #[arg(value_name = "HOST", default_value = "local")]
    pub(crate) hosts: Vec<HostAddr>,
    /// Only machines in this state
    #[arg(short, long, value_enum, default_value = "all", hide_possible_values = false)]
    pub(crate) status: StateFilter,
    /// How to show them: a line for each, all that is known of each, or JSON (as -o json)
    #[arg(long, value_enum)]
    pub(crate) format: Option<ListFormat>,
    #[command(flatten)]
    pub(crate) ssh: SshArgs,
}

/// Which machines to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StateFilter {
    /// Every machine.
    #[value(help = None)]
    All,
    /// Those that run.
    #[value(help = None)]
    Running,
    /// Those that are stopped.
    #[value(help = None)]
    Stopped,
    /// Those that are paused.
    #[value(help = None)]
    Paused,
}

impl StateFilter {
    /// Whether a machine in this state is to be shown.
    pub(crate) fn shows(self, state: MachineState) -> bool {
        match self {
            Self::All => true,
            Self::Running => state == MachineState::Running,
            Self::Stopped => state == MachineState::Stopped,
            Self::Paused => state == MachineState::Paused,
        }
    }
}

/// How machines are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// A line for each.
    #[value(help = None)]
    Table,
    /// All that is known of each.
    #[value(help = None)]
    List,
    /// As `-o json`.
    #[value(help = None)]
    Json,
}

const DOCTOR_EXAMPLES: &str = "Examples:
  kvm-clone doctor alpha
  kvm-clone doctor local root@beta:2222
  kvm-clone doctor alpha -o json";

/// Look at everything that a clone relies on, host by host.
///
/// A line for each finding: ok, warn or fail, what was found, and what mends it. The exit status is 0 if nothing
/// failed, else 69. Nothing is changed, except that the agent may be installed.
#[derive(Debug, Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// The hosts
    #[arg(value_name = "HOST", required = true)]
    pub(crate) hosts: Vec<HostAddr>,
    #[command(flatten)]
    pub(crate) ssh: SshArgs,
}

const RECOVER_EXAMPLES: &str = "Examples:
  kvm-clone recover beta --dry-run     Show what interrupted operations left
  kvm-clone recover alpha beta         Finish or undo it";

/// Finish or undo what interrupted operations left on hosts.
///
/// Works with and without the journal of the controller that began them. What somebody still works on is left alone. To go on with an operation
/// instead of undoing it: kvm-clone resume ID.
#[derive(Debug, Args)]
#[command(after_help = RECOVER_EXAMPLES)]
pub(crate) struct RecoverArgs {
    /// The hosts
    #[arg(value_name = "HOST", default_value = "local")]
    pub(crate) hosts: Vec<HostAddr>,
    /// Only show what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) ssh: SshArgs,
}
