//! Settings: default < configuration file < environment < option, each with where it came from.
//!
//! The table below is all there is to a setting: the file, the environment, `config init` and `config show` follow it.

mod edit;
mod file;
mod inventory;
mod value;

pub(crate) use inventory::HostEntry;
pub(crate) use value::{
    Attempts, HostKeyPolicy, JournalUrl, KeyPath, Lanes, LogFormat, LogLevel, Optional, Percent, Port, Route, Seconds,
    Switch, User, VerifyMode,
};

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use kvm_clone_core::blocks::BlockSize;
use kvm_clone_core::plan::Retention;
use kvm_clone_core::size::ByteSize;
use kvm_clone_core::{Code, Error, Result};

use crate::args::{Cli, Command, SshArgs, TransferArgs};
use crate::surroundings::Surroundings;

pub(crate) use edit::{set as set_in_file, unset as unset_in_file};
pub(crate) use file::find as find_file;

/// Where a setting's value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of the configuration file.
    File { path: PathBuf, line: usize },
    /// A variable of the environment.
    Environment(String),
    /// An option of the command line.
    Argument(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Argument(name) => write!(f, "option {name}"),
        }
    }
}

/// A setting's value and its origin.
#[derive(Debug, Clone)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

impl<T> Setting<T> {
    /// An option given on the command line wins over everything.
    fn overrule(&mut self, name: &'static str, value: Option<T>) {
        if let Some(value) = value {
            *self = Self { value, origin: Origin::Argument(name) };
        }
    }
}

/// A setting as the table has it, and its value as text.
pub(crate) struct Row {
    pub(crate) section: &'static str,
    pub(crate) key: &'static str,
    pub(crate) about: &'static str,
    pub(crate) value: String,
    pub(crate) origin: Origin,
}

/// Why a setting was not taken.
pub(crate) enum Refusal {
    /// There is no such section.
    Section,
    /// There is no such key in the section.
    Key,
    /// The value is none.
    Value(Error),
}

macro_rules! settings {
    ($($section:ident: $group:ident { $($key:ident: $type:ty = $default:literal, $about:literal;)* })*) => {
        $(
            #[derive(Debug, Clone)]
            pub(crate) struct $group { $(#[doc = $about] pub(crate) $key: Setting<$type>,)* }
        )*

        /// Every setting.
        #[derive(Debug, Clone)]
        pub(crate) struct Settings {
            $(pub(crate) $section: $group,)*
            /// `[hosts.NAME]`, by name.
            pub(crate) hosts: BTreeMap<String, HostEntry>,
        }

        impl Settings {
            /// What holds where nobody says anything.
            pub(crate) fn defaults() -> Result<Self> {
                Ok(Self {
                    $($section: $group {
                        $($key: Setting { value: $default.parse::<$type>()?, origin: Origin::Default },)*
                    },)*
                    hosts: BTreeMap::new(),
                })
            }

            /// Takes a value for a setting.
            fn set(&mut self, section: &str, key: &str, text: &str, origin: Origin) -> Result<(), Refusal> {
                match section {
                    $(stringify!($section) => match key {
                        $(stringify!($key) => {
                            let value = text.parse::<$type>().map_err(Refusal::Value)?;
                            self.$section.$key = Setting { value, origin };
                            Ok(())
                        })*
                        _ => Err(Refusal::Key),
                    })*
                    _ => Err(Refusal::Section),
                }
            }

            /// Every setting as text, in the table's order.
            pub(crate) fn rows(&self) -> Vec<Row> {
                vec![$($(Row {
                    section: stringify!($section),
                    key: stringify!($key),
                    about: $about,
                    value: self.$section.$key.value.to_string(),
                    origin: self.$section.$key.origin.clone(),
                },)*)*]
            }
        }

        const SECTIONS: &[(&str, &[&str])] = &[$((stringify!($section), &[$(stringify!($key)),*])),*];
    };
}

settings! {
    ssh: SshSettings {
        key_path: Optional<KeyPath> = "", "A private key to use instead of those that ssh_config and ssh-agent offer";
        port: Optional<Port> = "", "The port of hosts that name none; unset: what ssh_config says";
        user: Optional<User> = "", "The user on hosts that name none; unset: what ssh_config says";
        connect_timeout: Seconds = "10", "Seconds that a connection may take to be made";
        host_key_policy: HostKeyPolicy = "strict", "Unknown host keys: strict refuses them, accept-new accepts them the first time";
    }
    transfer: TransferSettings {
        parallel: Lanes = "4", "Lanes that copy at once, 1 to 16";
        route: Route = "auto", "The way between the hosts: auto, relay (over SSH, no port is opened) or direct (from host to host)";
        verify: VerifyMode = "on", "Read back what was written: on, off, or media (from the medium, not the page cache)";
        block_size: Optional<BlockSize> = "", "The unit of comparison, a power of two from 4K to 1M; unset: what a replica was last synced with, 64K for a new copy";
        stall_timeout: Seconds = "120", "Seconds without progress after which a copy has failed";
    }
    libvirt: LibvirtSettings {
        timeout: Seconds = "30", "Seconds that one call of libvirt may take";
    }
    safety: SafetySettings {
        space_margin_percent: Percent = "15", "Space that must stay free beyond the data, in percent of it";
        scratch_limit: Optional<ByteSize> = "", "Bytes that may pile up at the source of what a running guest overwrites, e.g. 20G; unset: half of what is free";
        safety_snapshot: Switch = "false", "Whether a sync keeps the point that the replica had before, as with --safety-snapshot";
        snapshot_retention: Retention = "7", "Which of these points a replica keeps: a count (7), an age (36h, 14d, 8w), both (7,14d), or all";
    }
    retry: RetrySettings {
        attempts: Attempts = "3", "Tries in all of what failed in passing, 1 to 20; 1 does not try again";
        base_delay: Seconds = "2", "Seconds before the second try; they double with each";
        max_delay: Seconds = "60", "Seconds that no wait exceeds";
    }
    timeouts: TimeoutSettings {
        silence: Seconds = "30", "Seconds of silence after which controller and agent count each other as gone";
        clone: Optional<Seconds> = "", "Seconds that a whole clone may take; unset: no limit";
        sync: Optional<Seconds> = "", "Seconds that a whole sync may take; unset: no limit";
    }
    logging: LoggingSettings {
        level: LogLevel = "warn", "debug, info, warn or error";
        format: LogFormat = "text", "text or json";
    }
    state: StateSettings {
        url: Optional<JournalUrl> = "", "The journal, as sqlite:/PATH; unset: where state belongs for this user";
    }
}

const PREFIX: &str = "KVM_CLONE_";

impl Settings {
    /// Everything that was said, the later winning.
    pub(crate) fn load(cli: &Cli, surroundings: &Surroundings) -> Result<Self> {
        let mut settings = Self::defaults()?;
        if let Some(path) = find_file(cli.global.config.as_deref(), surroundings)? {
            settings.take_file(&path)?;
        }
        settings.take_environment(&surroundings.variables)?;
        settings.take_options(cli);
        Ok(settings)
    }

    fn take_file(&mut self, path: &Path) -> Result<()> {
        let text = file::read(path)?;
        file::take(self, path, &text)
    }

    /// `KVM_CLONE_SECTION_KEY`; a name that begins with a section must be one of its keys.
    fn take_environment(&mut self, variables: &BTreeMap<String, String>) -> Result<()> {
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(PREFIX).map(str::to_ascii_lowercase) else { continue };
            let Some((section, key)) = rest.split_once('_') else { continue };
            let origin = Origin::Environment(name.clone());
            let error = match self.set(section, key, text, origin) {
                Ok(()) | Err(Refusal::Section) => continue,
                Err(Refusal::Key) => unknown_key(section, key),
                Err(Refusal::Value(error)) => bad_value(&format!("{section}.{key}"), &error),
            };
            return Err(error.with("variable", name));
        }
        Ok(())
    }

    pub(crate) fn take_options(&mut self, cli: &Cli) {
        let verbose = match cli.global.verbose {
            0 => None,
            1 => Some(LogLevel::Info),
            _ => Some(LogLevel::Debug),
        };
        self.logging.level.overrule("--quiet", cli.global.quiet.then_some(LogLevel::Error));
        self.logging.level.overrule("--verbose", verbose);
        self.logging.level.overrule("--log-level", cli.global.log_level);
        self.logging.format.overrule("--log-format", cli.global.log_format);
        match &cli.command {
            Command::Clone(args) => {
                self.take_ssh(&args.ssh);
                self.take_transfer(&args.transfer);
                self.timeouts.clone.overrule("--timeout", args.transfer.timeout.map(Optional::some));
            }
            Command::Sync(args) => {
                self.take_ssh(&args.ssh);
                self.take_transfer(&args.transfer);
                self.transfer.block_size.overrule("--block-size", args.update.block_size.map(Optional::some));
                self.timeouts.sync.overrule("--timeout", args.transfer.timeout.map(Optional::some));
                let keep = args.update.safety_snapshot.then_some(Switch::On);
                self.safety.safety_snapshot.overrule("--safety-snapshot", keep);
            }
            Command::Verify(args) => {
                self.take_ssh(&args.ssh);
                self.transfer.stall_timeout.overrule("--stall-timeout", args.stall_timeout);
            }
            Command::List(args) => self.take_ssh(&args.ssh),
            Command::Doctor(args) => self.take_ssh(&args.ssh),
            Command::Recover(args) => self.take_ssh(&args.ssh),
            Command::Resume(args) => self.take_ssh(&args.ssh),
            Command::Status(_)
            | Command::Cancel(_)
            | Command::Config(_)
            | Command::Completions(_)
            | Command::Man(_) => {}
        }
    }

    fn take_transfer(&mut self, args: &TransferArgs) {
        self.transfer.parallel.overrule("--parallel", args.parallel);
        self.transfer.route.overrule("--route", args.route);
        self.transfer.verify.overrule("--verify", args.verify_mode());
        self.transfer.stall_timeout.overrule("--stall-timeout", args.stall_timeout);
    }

    fn take_ssh(&mut self, args: &SshArgs) {
        self.ssh.key_path.overrule("--ssh-key", args.ssh_key.clone().map(Optional::some));
        self.ssh.port.overrule("--ssh-port", args.ssh_port.map(Optional::some));
    }
}

/// A key that is none, with those that are.
fn unknown_key(section: &str, key: &str) -> Error {
    let keys = SECTIONS.iter().find(|(name, _)| *name == section).map_or(&[][..], |(_, keys)| keys);
    Error::new(Code::Configuration, format!("there is no setting {section}.{key}"))
        .with("key", format!("{section}.{key}"))
        .help(format!("[{section}] has {}", keys.join(", ")))
}

/// Something at the top of the file that is no section.
fn unknown_section(name: &str) -> Error {
    let sections: Vec<String> = SECTIONS.iter().map(|(name, _)| format!("[{name}]")).collect();
    Error::new(Code::Configuration, format!("there is no section [{name}]"))
        .with("key", name)
        .help(format!("There are {} and [hosts.NAME]", sections.join(", ")))
}

/// A value that is none: the parser's words, as an error of the configuration.
fn bad_value(key: &str, error: &Error) -> Error {
    let mut bad = Error::new(Code::Configuration, format!("{key}: {}", error.message)).with("key", key);
    bad.help.clone_from(&error.help);
    bad
}

#[cfg(test)]
mod tests;
