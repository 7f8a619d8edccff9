//! How disks travel: the same for every command that copies.

use clap::Args;
use kvm_clone_core::checksum::Algorithm;

use crate::settings::{Lanes, Route, Seconds, VerifyMode};

/// How disks travel.
#[derive(Debug, Args)]
#[command(next_help_heading = "Transfer")]
pub(crate) struct TransferArgs {
    /// Lanes that copy at once, 1 to 16 [default: 4]
    #[arg(short, long, value_name = "N")]
    pub(crate) parallel: Option<Lanes>,
    /// The way between the hosts: auto, relay (over SSH, no port is opened) or direct (from host to host, sealed) [default: auto]
    #[arg(long, value_name = "ROUTE")]
    pub(crate) route: Option<Route>,
    /// Read back what was written (the default); "--verify media" reads from the medium, not from the page cache
    #[arg(
        long,
        value_name = "MODE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "on",
        conflicts_with = "no_verify"
    )]
    verify: Option<VerifyMode>,
    /// Do not read back what was written
    #[arg(long)]
    no_verify: bool,
    /// Sum up whole disks of both sides, and compare: blake3, sha256 or md5. Reads both once more
    #[arg(long, value_name = "ALGORITHM")]
    pub(crate) checksum: Option<Algorithm>,
    /// Seconds that the whole operation may take, 1 to 86400
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<Seconds>,
    /// Seconds without progress after which it has failed [default: 120]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) stall_timeout: Option<Seconds>,
}

impl TransferArgs {
    /// How to verify, if it was said.
    pub(crate) fn verify_mode(&self) -> Option<VerifyMode> {
        if self.no_verify { Some(VerifyMode::Off) } else { self.verify }
    }
}
