//! `kvm-clone resume`.

use clap::Args;
use kvm_clone_core::journal::IdPart;

use super::SshArgs;
use crate::settings::Seconds;

const EXAMPLES: &str = "Examples:
  kvm-clone status                     What was interrupted, with its id
  kvm-clone resume 5f0e8a3b2c1d        Go on with it";

/// Go on with an interrupted clone or sync.
///
/// What is at the target already is compared with the source block by block, and only what differs is sent: nothing is believed, so it may be
/// resumed after anything, also after a reboot of the hosts. It is done as it was begun, and a running source is copied as of a new moment. The id
/// is the operation's, as kvm-clone status and errors name it; it is looked up in this controller's journal. What fails in passing
/// leaves what is staged, to be resumed again; kvm-clone recover undoes it instead.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ResumeArgs {
    /// The operation: its id, or four characters and more of its beginning or end
    pub(crate) id: IdPart,
    /// Seconds that it may take, 1 to 86400
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<Seconds>,
    #[command(flatten)]
    pub(crate) ssh: SshArgs,
}
