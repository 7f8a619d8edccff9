//! The command line.

mod clone;
mod config;
mod global;
mod hosts;
mod operations;
mod pages;
mod resume;
mod sync;
mod transfer;
mod usage;
mod verify;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

pub(crate) use clone::{CloneArgs, network_target};
pub(crate) use config::{ConfigArgs, ConfigCommand};
pub(crate) use global::{Global, SshArgs};
pub(crate) use hosts::{DoctorArgs, ListArgs, ListFormat, RecoverArgs};
pub(crate) use operations::{CancelArgs, StatusArgs};
pub(crate) use pages::{CompletionsArgs, ManArgs};
pub(crate) use resume::ResumeArgs;
pub(crate) use sync::SyncArgs;
pub(crate) use transfer::TransferArgs;
pub(crate) use usage::Stop;
pub(crate) use verify::VerifyArgs;

/// Copies KVM virtual machines between libvirt hosts over SSH.
#[derive(Debug, Parser)]
#[command(name = "kvm-clone", version, about, long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const LONG_ABOUT: &str = "Copies KVM virtual machines between libvirt hosts over SSH: whole, verified, all or nothing.

A host is [user@]host[:port], [user@][v6addr][:port], an ssh_config alias, a name from the inventory \
([hosts.NAME] in the configuration), or local.";

const EXAMPLES: &str = "Examples:
  kvm-clone doctor alpha beta          See whether both hosts are fit for a clone
  kvm-clone clone alpha beta web1      Copy web1 from alpha to beta, as web1_clone
  kvm-clone sync alpha beta web1       Bring that copy to the present state of web1
  kvm-clone verify beta web1_clone     See whether the copy is still what it was then
  kvm-clone list alpha beta            Show the machines of both hosts
  kvm-clone status                     Show what runs, what was interrupted and what ended";

/// What to do. The variants carry no words of their own: they would hide the longer ones of their arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Clone(Box<CloneArgs>),
    Sync(Box<SyncArgs>),
    Verify(VerifyArgs),
    Resume(ResumeArgs),
    List(ListArgs),
    Doctor(DoctorArgs),
    Status(StatusArgs),
    Cancel(CancelArgs),
    Recover(RecoverArgs),
    Config(ConfigArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Reads the command line.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, Box<Stop>> {
    let words = join_verify(words.into_iter().collect());
    Cli::try_parse_from(&words).map_err(|error| Box::new(usage::stop(error, &words)))
}

/// `--verify` stands alone or takes a mode: without this, clap would take the host behind it for the mode.
fn join_verify(words: Vec<OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::with_capacity(words.len());
    let mut options_ended = false;
    for word in words {
        options_ended |= word == "--";
        match joined.last_mut() {
            Some(last) if *last == "--verify" && word == "media" && !options_ended => *last = "--verify=media".into(),
            _ => joined.push(word),
        }
    }
    joined
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::settings::VerifyMode;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    fn verify(line: &str) -> Option<VerifyMode> {
        let words = line.split_whitespace().map(OsString::from);
        match parse(words).map_err(|_| line).unwrap().command {
            Command::Clone(args) => args.transfer.verify_mode(),
            _ => None,
        }
    }

    #[test]
    fn verify_stands_alone_or_takes_a_mode() {
        assert_eq!(verify("kvm-clone clone a b m"), None);
        assert_eq!(verify("kvm-clone clone --verify a b m"), Some(VerifyMode::On));
        assert_eq!(verify("kvm-clone clone --verify media a b m"), Some(VerifyMode::Media));
        assert_eq!(verify("kvm-clone clone a b m --verify=media"), Some(VerifyMode::Media));
        assert_eq!(verify("kvm-clone clone --no-verify a b m"), Some(VerifyMode::Off));
        assert_eq!(verify("kvm-clone clone --verify -- media b m"), Some(VerifyMode::On));
    }
}
