//! `kvm-clone completions` and `kvm-clone man`: made from the same definition as the parser.

use std::process::ExitCode;

use clap::CommandFactory;
use kvm_clone_core::{Code, Error, Result};

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::render::Output;

const NAME: &str = "kvm-clone";

/// Prints the completions of a shell.
pub(crate) fn completions(args: &CompletionsArgs, output: &Output) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    output.text(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the manual page, or writes all of them.
pub(crate) fn man(args: &ManArgs, output: &Output) -> Result<ExitCode> {
    if let Some(dir) = &args.dir {
        let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir));
        written.map_err(|error| {
            Error::new(Code::Configuration, format!("the manual pages cannot be written: {error}"))
                .with("path", dir.display())
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut page)
        .map_err(|error| Error::internal(format!("making the manual page: {error}")))?;
    output.text(&String::from_utf8_lossy(&page))?;
    Ok(ExitCode::SUCCESS)
}
