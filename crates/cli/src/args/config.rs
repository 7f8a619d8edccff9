//! `kvm-clone config`.

use clap::{Args, Subcommand};

const EXAMPLES: &str = "Examples:
  kvm-clone config init                  Begin a configuration file
  kvm-clone config show                  Every setting, and where it came from
  kvm-clone config show -o json
  kvm-clone config set transfer.parallel 8
  kvm-clone config unset transfer.parallel
  kvm-clone config path                  The file that is read";

/// Show and change the settings, or begin a configuration file.
///
/// A setting is taken from an option, else from the environment (KVM_CLONE_SECTION_KEY), else from the configuration
/// file, else it has its default.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

/// What to do with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Write a configuration file with every setting and its default, all commented out
    #[command(after_help = "Examples:\n  kvm-clone config init\n  kvm-clone config init -c ./kvm-clone.toml")]
    Init,
    /// Show every setting, and where it came from
    #[command(
        after_help = "Examples:\n  kvm-clone config show\n  KVM_CLONE_TRANSFER_PARALLEL=8 kvm-clone config show -o json"
    )]
    Show,
    /// Write a setting into the configuration file; its comments stay. Unknown settings and bad values are refused
    #[command(
        after_help = "Examples:\n  kvm-clone config set transfer.parallel 8\n  kvm-clone config set hosts.backup.address admin@kvm2.example.net:2222\n  kvm-clone config set hosts.backup.networks.lan br0"
    )]
    Set {
        /// SECTION.KEY, hosts.NAME.KEY or hosts.NAME.networks.OLD
        key: String,
        /// Its value
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Take a setting out of the configuration file
    #[command(
        after_help = "Examples:\n  kvm-clone config unset transfer.parallel\n  kvm-clone config unset hosts.backup.pool"
    )]
    Unset {
        /// SECTION.KEY, hosts.NAME.KEY or hosts.NAME.networks.OLD
        key: String,
    },
    /// Print the path of the file that is read, or would be
    #[command(after_help = "Examples:\n  kvm-clone config path\n  $EDITOR \"$(kvm-clone config path)\"")]
    Path,
}

impl ConfigArgs {
    /// Whether the settings must be good for this; one must be able to find a broken file.
    pub(crate) fn needs_settings(&self) -> bool {
        self.command == ConfigCommand::Show
    }
}
