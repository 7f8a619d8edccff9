//! `kvm-clone clone`.

use std::str::FromStr;

use clap::Args;
use kvm_clone_core::domain::TpmState;
use kvm_clone_core::host::HostAddr;
use kvm_clone_core::name::{DiskTarget, ResourceName, SourceName, VmName};
use kvm_clone_core::plan::{DiskFormat, NetworkTarget};
use kvm_clone_core::{Error, Result};

use super::{SshArgs, TransferArgs};

const EXAMPLES: &str = "Examples:
  kvm-clone clone alpha beta web1                       Copy web1 to beta, as web1_clone
  kvm-clone clone alpha beta web1 -n web2               ... as web2
  kvm-clone clone alpha beta web1 --dry-run             Show what would be done, and what hinders it
  kvm-clone clone alpha beta web1 --replica             The same name, UUID and MACs, for fail-over
  kvm-clone clone alpha beta web1 --replica --tpm copy  ... with what its emulated TPM holds
  kvm-clone clone alpha beta web1 -n web2 --force -y    Replace the machine web2 that beta has
  kvm-clone clone local root@beta:2222 web1 db1 --network lan=br0 --pool fast -p 8
  kvm-clone clone alpha beta web1 -o json 2>events.jsonl >result.json";

/// Copy machines from one host to another.
///
/// A machine that runs goes on running; all its disks are copied as of one moment. The copy gets a name, UUID and MAC addresses of its own; everything else is carried
/// over. Until the new machine is complete and verified nothing at the target has changed; failure, Ctrl-C and SIGTERM
/// undo everything. Several machines are copied one after the other; one that fails does not keep the others.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CloneArgs {
    /// The host to copy from
    pub(crate) source: HostAddr,
    /// The host to copy to
    pub(crate) dest: HostAddr,
    /// The machines
    #[arg(value_name = "VM", required = true)]
    pub(crate) machines: Vec<SourceName>,
    /// Show what would be done; nothing is touched
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Copy only machines that run, all disks as of one moment (what is done with those that run, unless --offline)
    #[arg(long, conflicts_with = "offline")]
    pub(crate) live: bool,
    /// Copy only machines that are stopped
    #[arg(long)]
    pub(crate) offline: bool,

    #[command(flatten)]
    pub(crate) made: MadeArgs,
    #[command(flatten)]
    pub(crate) storage: StorageArgs,
    #[command(flatten)]
    pub(crate) left_out: LeftOutArgs,
    #[command(flatten)]
    pub(crate) transfer: TransferArgs,
    #[command(flatten)]
    pub(crate) ssh: SshArgs,
}

/// What the new machine is.
#[derive(Debug, Args)]
#[command(next_help_heading = "The new machine")]
pub(crate) struct MadeArgs {
    /// Its name [default: {VM}_clone]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) new_name: Option<VmName>,
    /// Keep name, UUID, MAC addresses and serials, for fail-over
    #[arg(long)]
    pub(crate) replica: bool,
    /// Keep the UUID
    #[arg(long)]
    pub(crate) preserve_uuid: bool,
    /// Keep the MAC addresses
    #[arg(long)]
    pub(crate) preserve_mac: bool,
    /// "auto": a machine type that the target does not have becomes the closest one of its family
    #[arg(long, value_name = "auto", value_parser = machine_choice)]
    pub(crate) machine: Option<AnyMachine>,
    /// The emulated TPM: new (empty; the default, but for a replica) or copy (its state, of a stopped machine)
    #[arg(long, value_name = "STATE", value_parser = tpm_state)]
    pub(crate) tpm: Option<TpmState>,
    /// Plug interfaces of the network, bridge or device OLD into NEW; OLD=none unplugs them. Can be repeated
    #[arg(long = "network", value_name = "OLD=NEW")]
    pub(crate) networks: Vec<NetworkChange>,
}

/// `--machine auto`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnyMachine;

fn machine_choice(text: &str) -> Result<AnyMachine> {
    if text == "auto" { Ok(AnyMachine) } else { Err(Error::validation(format!("{text:?} is not auto"))) }
}

fn tpm_state(text: &str) -> Result<TpmState> {
    match text {
        "new" => Ok(TpmState::New),
        "copy" => Ok(TpmState::Copied),
        _ => Err(Error::validation(format!("{text:?} is not one of new, copy"))),
    }
}

/// What the copy does not get.
#[derive(Debug, Args)]
#[command(next_help_heading = "Left out")]
pub(crate) struct LeftOutArgs {
    /// A disk, by its target device (vdb). Can be repeated
    #[arg(long, value_name = "DISK")]
    pub(crate) exclude: Vec<DiskTarget>,
    /// Devices of the source's host: PCI, USB, mediated, SCSI, SR-IOV interfaces, its TPM
    #[arg(long)]
    pub(crate) drop_hostdev: bool,
    /// Directories that the source's host shares with it
    #[arg(long)]
    pub(crate) drop_fs: bool,
    /// CPU pinning, NUMA placement, cgroups, huge pages
    #[arg(long)]
    pub(crate) drop_tuning: bool,
    /// The memory that was saved with "virsh managedsave"; the copy's disks are as after a power cut
    #[arg(long)]
    pub(crate) discard_managed_save: bool,
}

/// Where it is put.
#[derive(Debug, Args)]
#[command(next_help_heading = "Storage")]
pub(crate) struct StorageArgs {
    /// The pool for the disks
    #[arg(long)]
    pub(crate) pool: Option<ResourceName>,
    /// The format of the disks: keep, qcow2 or raw [default: keep]
    #[arg(long, value_name = "FORMAT", value_parser = disk_format, default_value = "keep", hide_default_value = true)]
    pub(crate) disk_format: DiskFormat,
    /// Copy what is in CD-ROM and floppy drives where the target lacks it; otherwise it is ejected
    #[arg(long)]
    pub(crate) copy_media: bool,
    /// Carry images that have snapshots inside as the files that they are, snapshots and all (stopped machines)
    #[arg(long)]
    pub(crate) keep_snapshots: bool,
    /// Replace a machine of that name; it is shown, and asked for, first
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `OLD=NEW`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkChange {
    /// The network of the source.
    pub(crate) old: String,
    /// Where its interfaces go.
    pub(crate) new: NetworkTarget,
}

impl FromStr for NetworkChange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            Error::validation(format!("{text:?} does not say which network becomes which"))
                .help("Write OLD=NEW, or OLD=none to unplug")
        };
        let (old, new) =
            text.split_once('=').filter(|(old, new)| !old.is_empty() && !new.is_empty()).ok_or_else(refuse)?;
        Ok(Self { old: old.to_owned(), new: network_target(new)? })
    }
}

/// A network of the target, or `none`.
pub(crate) fn network_target(text: &str) -> Result<NetworkTarget> {
    if text == "none" { Ok(NetworkTarget::None) } else { Ok(NetworkTarget::Named(text.parse()?)) }
}

fn disk_format(text: &str) -> Result<DiskFormat> {
    match text {
        "keep" => Ok(DiskFormat::Keep),
        "qcow2" => Ok(DiskFormat::Qcow2),
        "raw" => Ok(DiskFormat::Raw),
        _ => Err(Error::validation(format!("{text:?} is not one of keep, qcow2, raw"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read() {
        let change: NetworkChange = "lan=br0".parse().unwrap();
        assert_eq!((change.old.as_str(), change.new), ("lan", NetworkTarget::Named("br0".parse().unwrap())));
        assert_eq!("lan=none".parse::<NetworkChange>().unwrap().new, NetworkTarget::None);
        for bad in ["", "lan", "=br0", "lan=", "lan=a/b"] {
            assert!(bad.parse::<NetworkChange>().is_err(), "{bad}");
        }
    }
}
