//! Nothing is destroyed unasked.

use std::io::{BufRead, Write};

use kvm_clone_core::name::VmName;
use kvm_clone_core::plan::{ClonePlan, Replaced};
use kvm_clone_core::{Code, Error, Result};

use crate::interrupt;
use crate::render::{Format, harmless};
use crate::session::Session;

/// Shows what goes, and asks; `--yes` answers.
pub(crate) async fn replacement(plan: &ClonePlan, session: &Session) -> Result<()> {
    let Some(replaced) = &plan.replaces else { return Ok(()) };
    if session.yes {
        return Ok(());
    }
    let around = &session.surroundings;
    if session.output.format != Format::Text || !around.stdin_terminal || !around.stderr_terminal {
        return Err(unasked(replaced, &plan.dest_host));
    }
    session.output.note(&what_goes(replaced, &plan.new_vm_name, &plan.dest_host));
    let asked = async {
        let answered = tokio::task::spawn_blocking(|| ask("Replace it? [y/N] ")).await;
        Ok(answered.unwrap_or(false))
    };
    if interrupt::unless_stopped(&session.interrupts, asked).await? {
        return Ok(());
    }
    Err(Error::new(Code::Cancelled, "not confirmed; nothing was changed"))
}

fn unasked(replaced: &Replaced, host: &str) -> Error {
    Error::validation(format!("replacing {} on {host} must be confirmed, and nobody can be asked", replaced.name))
        .with("files", replaced.files.join(", "))
        .help("Look at it with --dry-run, then confirm it with --yes")
}

fn what_goes(replaced: &Replaced, new_name: &VmName, host: &str) -> String {
    let (name, uuid) = (harmless(replaced.name.as_str()), replaced.uuid);
    let mut text =
        format!("{name} ({uuid}) on {host} will be replaced. Once the new {new_name} is there, removed are\n");
    text.push_str("  its definition\n");
    text.extend(replaced.files.iter().map(|file| format!("  {}\n", harmless(file))));
    text
}

/// Asks a question at the terminal; no answer is a no.
fn ask(question: &str) -> bool {
    let mut stderr = std::io::stderr().lock();
    let asked = write!(stderr, "{question}").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let read = asked.and_then(|()| std::io::stdin().lock().read_line(&mut answer));
    read.is_ok() && is_yes(&answer)
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        assert!(is_yes("y\n") && is_yes("Yes\n"));
        assert!(!is_yes("") && !is_yes("\n") && !is_yes("yeah\n"));
    }
}
