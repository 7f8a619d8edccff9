//! The program that kvm-clone runs on its hosts: the only one that touches disks.
//!
//! It has two modes, each one process. The *control agent* ([`control`]) holds the operation's locks, answers the
//! controller, relays libvirt's RPC and ends everything when the controller is gone. A *lane agent* ([`lane`]) moves
//! blocks: a source lane agent reads and sends, a target lane agent receives, writes and reads back. Lane agents live
//! and die with their control agent.
//!
//! Threads block; channels are bounded; there is no async runtime and no libvirt library, so that one static binary
//! runs on any host.

mod buffer;
pub mod control;
pub mod device;
pub mod lane;
mod lock;
mod manifest;
mod place;
mod program;
mod sealed;
mod stream;

use std::process::ExitCode;

const USAGE: &str =
    "usage: kvm-clone-agent control [SSH_CONNECTION] | lane SESSION NUMBER [SSH_CONNECTION] | --version";

/// Runs the mode that the arguments name.
#[must_use]
pub fn run(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["control"] => control::run(""),
        ["control", connection] => control::run(connection),
        ["lane", session, number] => lane::run(session, number, ""),
        ["lane", session, number, connection] => lane::run(session, number, connection),
        ["--version"] => {
            log(&format!("kvm-clone-agent {}", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        _ => {
            log(USAGE);
            return ExitCode::from(64);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&format!("kvm-clone-agent: {error}"));
            ExitCode::from(error.code.exit_status())
        }
    }
}

/// Writes a line to the agent's log, which is its stderr: the controller keeps the last lines of it.
#[allow(clippy::print_stderr, reason = "stderr is the agent's log")]
fn log(line: &str) {
    eprintln!("{line}");
}
