//! `kvm-clone completions` and `kvm-clone man`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

const COMPLETIONS_EXAMPLES: &str = "Examples:
  kvm-clone completions bash > ~/.local/share/bash-completion/completions/kvm-clone
  kvm-clone completions zsh > ~/.zfunc/_kvm-clone
  kvm-clone completions fish > ~/.config/fish/completions/kvm-clone.fish";

/// Print the completions of a shell.
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}

const MAN_EXAMPLES: &str = "Examples:
  kvm-clone man | man -l -
  kvm-clone man --dir ~/.local/share/man/man1";

/// Print the manual page, or write all of them.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(crate) struct ManArgs {
    /// Write the page of every command into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}
