//! Options of every command.

use std::path::PathBuf;

use clap::Args;

use crate::render::Format;
use crate::settings::{KeyPath, LogFormat, LogLevel, Port};

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Configuration file [default: $XDG_CONFIG_HOME/kvm-clone/config.toml, then /etc/kvm-clone/config.toml]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,
    /// No progress, and only errors in the log
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// How data and errors are written: text, json or yaml
    #[arg(short, long, global = true, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    /// How much is logged: debug, info, warn or error
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
    /// How the log is written: text or json
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Answer questions with yes
    #[arg(short, long, global = true)]
    pub(crate) yes: bool,
}

/// Options of commands that connect to hosts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct SshArgs {
    /// Private key for SSH
    #[arg(short = 'k', long, value_name = "FILE")]
    pub(crate) ssh_key: Option<KeyPath>,
    /// SSH port of hosts that name none
    #[arg(long, value_name = "PORT")]
    pub(crate) ssh_port: Option<Port>,
}
