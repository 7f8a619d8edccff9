//! `kvm-clone verify`.

use clap::Args;
use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::host::HostAddr;
use kvm_clone_core::name::SourceName;

use super::SshArgs;
use crate::settings::Seconds;

const EXAMPLES: &str = "Examples:
  kvm-clone verify beta web1_clone                        Is it what it was at its last point?
  kvm-clone verify beta web1_clone --against alpha web1   Is it what its source is?
  kvm-clone verify beta web1 --against alpha              ... under the same name
  kvm-clone verify beta web1_clone --against alpha web1 --full   ... bit for bit
  kvm-clone verify beta web1_clone --checksum sha256      ... with checksums, as of sha256sum";

/// Compare the disks of a machine with the digests of its last point, or with those of another machine.
///
/// With digests, firmware variables and a TPM's state that came along are compared too; with another machine, disks alone. Every block is read,
/// and every range that differs is listed with its disk. Nothing is written, on either host; machines must be stopped, and are locked
/// meanwhile. Between two hosts only digests travel, under a key that is made for this comparison alone. The exit status is 0 where nothing
/// differs, else 65.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// The host of the machine
    pub(crate) host: HostAddr,
    /// The machine
    #[arg(value_name = "VM")]
    pub(crate) machine: SourceName,
    /// Compare the disks with another machine's [default for its name: VM]; without this, with the digests of the last point
    #[arg(long, num_args = 1..=2, value_names = ["HOST", "VM"])]
    pub(crate) against: Option<Vec<String>>,
    /// Compare bit for bit: of both disks, whatever may hold data travels to this machine
    #[arg(long, requires = "against")]
    pub(crate) full: bool,
    /// Sum up whole disks, too, and compare: blake3, sha256 or md5. Reads them once more
    #[arg(long, value_name = "ALGORITHM")]
    pub(crate) checksum: Option<Algorithm>,
    /// Seconds without progress after which it has failed [default: 120]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) stall_timeout: Option<Seconds>,

    #[command(flatten)]
    pub(crate) ssh: SshArgs,
}
