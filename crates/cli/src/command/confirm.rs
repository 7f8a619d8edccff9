//! Nothing is destroyed unasked.

use std::io::{BufRead, Write};

use kvm_clone_core::name::{SourceName, VmName};
use kvm_clone_core::plan::{ClonePlan, Replaced};
use kvm_clone_core::{Code, Error, Result};

use crate::interrupt;
use crate::render::{Format, harmless};
use crate::session::Session;

/// Shows what goes, and asks; `--yes` answers.
pub(crate) async fn replacement(plan: &ClonePlan, session: &Session) -> Result<()> {
    let Some(replaced) = &plan.replaces else { return Ok(()) };
    let shown = what_goes(replaced, &plan.new_vm_name, &plan.dest_host);
    agreement(session, &shown, "Replace it? [y/N] ", || unasked(replaced, &plan.dest_host)).await
}

/// Shows what a sync in place puts at stake, and asks; `--yes` answers. A replica that is out of service has nothing to lose.
pub(crate) async fn in_place(plan: &ClonePlan, session: &Session) -> Result<()> {
    let Some(replica) = plan.replica.as_ref().filter(|replica| replica.update.in_place) else { return Ok(()) };
    if replica.incomplete.is_some() {
        return Ok(());
    }
    let unasked = || {
        let message = format!("writing the disks of {} on {} in place must be confirmed", replica.name, plan.dest_host);
        Error::validation(format!("{message}, and nobody can be asked"))
            .help("Look at what is at stake with --dry-run, then confirm it with --yes")
    };
    agreement(session, &at_stake(plan, &replica.name), "Write its disks in place? [y/N] ", unasked).await
}

fn at_stake(plan: &ClonePlan, name: &SourceName) -> String {
    let (name, host) = (harmless(name.as_str()), &plan.dest_host);
    let mut text = format!(
        "The disks of {name} on {host} will be written in place. Until all of them are complete it is out of service: it cannot\n\
         start, its old point is gone, and if the sync is interrupted it stays so until another one completes it.\n"
    );
    text.extend(
        plan.disks.iter().filter(|disk| disk.base.is_some()).map(|disk| format!("  {}\n", harmless(&disk.path))),
    );
    text
}

/// Asks whether what is shown is agreed to.
async fn agreement(
    session: &Session,
    shown: &str,
    question: &'static str,
    unasked: impl FnOnce() -> Error,
) -> Result<()> {
    if session.yes {
        return Ok(());
    }
    let around = &session.surroundings;
    if session.output.format != Format::Text || !around.stdin_terminal || !around.stderr_terminal {
        return Err(unasked());
    }
    session.output.note(shown);
    let asked = async {
        let answered = tokio::task::spawn_blocking(move || ask(question)).await;
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
