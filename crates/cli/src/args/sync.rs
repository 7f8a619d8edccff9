//! `kvm-clone sync`.

use clap::Args;
use kvm_clone_core::blocks::BlockSize;
use kvm_clone_core::host::HostAddr;
use kvm_clone_core::name::{SourceName, VmName};

use super::{SshArgs, TransferArgs};

const EXAMPLES: &str = "Examples:
  kvm-clone sync alpha beta web1                        Bring beta's replica of web1 to the present point of web1
  kvm-clone sync alpha beta web1 --dry-run              Show what would be done, and what hinders it
  kvm-clone sync alpha beta web1 -t web1-standby        ... of several replicas, this one
  kvm-clone sync alpha beta web1 --safety-snapshot      Keep the point that the replica had before
  kvm-clone sync alpha beta db1 --block-size 4K         Send less of many small writes, now and later
  kvm-clone sync alpha beta web1 --full                 Copy all disks whole, into new images
  kvm-clone sync alpha beta web1 --in-place             Write into the replica's disks: no room for staging, and no old point meanwhile
  kvm-clone sync alpha beta web1 --discard-target-changes   Throw away what was written on the replica since";

/// Bring a replica to its source's present point.
///
/// The replica is the machine on DEST whose definition says that it was copied from this source. What differs is sent and staged beside the
/// replica's disks, verified, and then taken over by one definition: until then the replica is the old point, from then on the new one. The
/// choices made when it was cloned hold again. Firmware variables come along, and the state of the TPM if it was copied then. A replica that
/// runs is never written to, nor one that was changed since, unless asked. With --in-place alone its disks are written themselves.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SyncArgs {
    /// The host of the source
    pub(crate) source: HostAddr,
    /// The host of the replica
    pub(crate) dest: HostAddr,
    /// The source machine
    #[arg(value_name = "VM")]
    pub(crate) machine: SourceName,
    /// The replica [default: the one that was copied from this source]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) target_name: Option<VmName>,
    /// Show what would be done; nothing is touched
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Sync only while the source runs, all disks as of one moment (what is done when it runs, unless --offline)
    #[arg(long, conflicts_with = "offline")]
    pub(crate) live: bool,
    /// Sync only while the source is stopped
    #[arg(long)]
    pub(crate) offline: bool,

    #[command(flatten)]
    pub(crate) update: UpdateArgs,
    #[command(flatten)]
    pub(crate) transfer: TransferArgs,
    #[command(flatten)]
    pub(crate) ssh: SshArgs,
}

/// How the replica is brought to the newer point.
#[derive(Debug, Args)]
#[command(next_help_heading = "The replica")]
pub(crate) struct UpdateArgs {
    /// Copy all disks whole, into new images
    #[arg(long)]
    pub(crate) full: bool,
    /// Refuse where a disk would be copied whole
    #[arg(long, conflicts_with = "full")]
    pub(crate) delta_only: bool,
    /// Leave the replica's definition as it is, and with it its firmware variables and its TPM
    #[arg(long)]
    pub(crate) disks_only: bool,
    /// Keep the point that the replica had before, as images under its disks; safety.snapshot_retention says for how long
    #[arg(long, conflicts_with = "full")]
    pub(crate) safety_snapshot: bool,
    /// Write into the replica's own disks, without staging, where there is no room for it or a disk is a device. RISK: from the
    /// first byte until the last one the replica is out of service, and its old point is lost; if that is interrupted, it stays so
    /// until a sync completes it. Asks first
    #[arg(long, conflicts_with_all = ["full", "safety_snapshot"])]
    pub(crate) in_place: bool,
    /// Remove the images of disks that the source has no longer; otherwise they stay as files, and that is said
    #[arg(long, conflicts_with_all = ["disks_only", "in_place"])]
    pub(crate) remove_lost_disks: bool,
    /// Overwrite what was written on the replica since its last point; otherwise that is an error
    #[arg(long)]
    pub(crate) discard_target_changes: bool,
    /// Read and compare everything, whatever is known of both sides
    #[arg(long)]
    pub(crate) paranoid: bool,
    /// The unit of comparison, a power of two from 4K to 1M: small ones send less after small writes, large ones keep fewer digests.
    /// Later syncs of the replica keep it. Changing it has all of the replica read once [default: as at its last sync; 64K at first]
    #[arg(long, value_name = "SIZE")]
    pub(crate) block_size: Option<BlockSize>,
    /// Leave out the source's memory that was saved with "virsh managedsave"; the disks are as after a power cut
    #[arg(long)]
    pub(crate) discard_managed_save: bool,
}
