//! The command `kvm-clone`: arguments → resolved request → engine → rendering. What is to be done is decided below it.
//!
//! 1. [`args`] reads the command line; [`surroundings`] the environment, at this one place;
//! 2. [`settings`] joins defaults, configuration file, environment and options;
//! 3. [`command`] has one file a verb; [`request`] makes the engine's types from what the user wrote;
//! 4. [`render`] shows progress, results and errors; [`exit`] says how it ended.

mod args;
mod command;
mod exit;
mod interrupt;
mod logging;
mod render;
mod request;
mod session;
mod settings;
mod surroundings;

use std::process::ExitCode;
use std::time::Duration;

use kvm_clone_core::{Error, Result};

use args::{Cli, Command};
use render::{Format, Output};
use session::Session;
use surroundings::Surroundings;

fn main() -> ExitCode {
    let surroundings = Surroundings::read();
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(stop) => return stop.show(&surroundings),
    };
    let output = Output::new(cli.global.output.unwrap_or(Format::Text), &surroundings);
    match run(cli, surroundings, &output) {
        Ok(status) => status,
        Err(error) => {
            output.error(&error);
            exit::status(error.code)
        }
    }
}

fn run(cli: Cli, surroundings: Surroundings, output: &Output) -> Result<ExitCode> {
    match &cli.command {
        Command::Completions(args) => return command::pages::completions(args, output),
        Command::Man(args) => return command::pages::man(args, output),
        Command::Config(args) if !args.needs_settings() => {
            return command::config::without_settings(args, &cli.global, &surroundings, output);
        }
        _ => {}
    }
    let settings = settings::Settings::load(&cli, &surroundings)?;
    if let Command::Config(_) = &cli.command {
        return command::config::show(&settings, output);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::internal(format!("starting threads: {error}")))?;
    let ended = runtime.block_on(act(cli, settings, surroundings, output.clone()));
    // A thread that still waits for an answer at the terminal must not keep the command from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// The commands that use hosts or the journal.
async fn act(cli: Cli, settings: settings::Settings, surroundings: Surroundings, output: Output) -> Result<ExitCode> {
    let session = Session::new(&cli.global, settings, surroundings, output)?;
    let command = async {
        match &cli.command {
            Command::Clone(args) => command::clone::run(args, &session).await,
            Command::Sync(args) => command::sync::run(args, &session).await,
            Command::Verify(args) => command::verify::run(args, &session).await,
            Command::Resume(args) => command::resume::run(args, &session).await,
            Command::List(args) => command::list::run(args, &session).await,
            Command::Doctor(args) => command::doctor::run(args, &session).await,
            Command::Status(args) => command::status::run(args, &session).await,
            Command::Cancel(args) => command::cancel::run(args, &session).await,
            Command::Recover(args) => command::recover::run(args, &session).await,
            Command::Config(_) | Command::Completions(_) | Command::Man(_) => {
                Err(Error::internal("this command needs no host"))
            }
        }
    };
    tokio::select! {
        ended = command => ended,
        () = session.interrupts.abort.cancelled() => Err(interrupt::aborted()),
    }
}
