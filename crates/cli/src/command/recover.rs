//! `kvm-clone recover`: what interrupted operations left.

use std::collections::BTreeMap;
use std::process::ExitCode;

use kvm_clone_core::{Code, Result};
use kvm_clone_engine::{Action, Recovered, Recovery};
use serde::Serialize;
use uuid::Uuid;

use super::ask_each;
use crate::args::RecoverArgs;
use crate::exit;
use crate::render::{ErrorView, harmless};
use crate::session::Session;

/// One operation, with its error as users read it.
#[derive(Serialize)]
struct Entry {
    operation_id: Uuid,
    source: String,
    new_vm_name: String,
    action: Action,
    files: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    error: Option<ErrorView>,
}

/// Recovers hosts, all at once.
pub(crate) async fn run(args: &RecoverArgs, session: &Session) -> Result<ExitCode> {
    let mode = if args.dry_run { Recovery::Look } else { Recovery::Act };
    let ask = move |client: kvm_clone_engine::Client, spec| async move { client.recover(&spec, mode).await };
    let answers = ask_each(session, &args.hosts, ask).await?;
    let mut failures: Vec<Code> = Vec::new();
    let mut hosts: BTreeMap<String, Vec<Recovered>> = BTreeMap::new();
    for (host, answer) in answers {
        match answer {
            Ok(recovered) => {
                failures.extend(recovered.iter().filter_map(|entry| entry.error.as_ref()).map(|error| error.code));
                hosts.insert(host.name, recovered);
            }
            Err(error) => {
                session.output.side_error(&error.clone().with("host", &host.name));
                failures.push(error.code);
            }
        }
    }
    let views: BTreeMap<&String, Vec<Entry>> =
        hosts.iter().map(|(host, all)| (host, all.iter().map(view).collect())).collect();
    session.output.data(&views, || hosts.iter().map(|(host, all)| text(host, all, mode)).collect())?;
    for error in hosts.values().flatten().filter_map(|entry| entry.error.as_ref()) {
        if session.output.format == crate::render::Format::Text {
            session.output.side_error(error);
        }
    }
    Ok(exit::first(&failures))
}

fn view(entry: &Recovered) -> Entry {
    Entry {
        operation_id: entry.operation_id,
        source: entry.source.clone(),
        new_vm_name: entry.new_vm_name.clone(),
        action: entry.action,
        files: entry.files.clone(),
        error: entry.error.as_ref().map(ErrorView::now),
    }
}

fn text(host: &str, all: &[Recovered], mode: Recovery) -> String {
    if all.is_empty() {
        return format!("{host}: nothing was left\n");
    }
    let mut text = format!("{host}\n");
    for entry in all {
        let action = match (entry.action, mode, &entry.error) {
            (Action::OutOfService, _, _) => "out of service until it is synced again",
            (_, _, Some(_)) => "failed",
            (Action::InProgress, _, None) => "left alone: somebody works on it",
            (Action::Finish, Recovery::Look, None) => "would be finished",
            (Action::Finish, Recovery::Act, None) => "finished",
            (Action::Undo, Recovery::Look, None) => "would be undone",
            (Action::Undo, Recovery::Act, None) => "undone",
        };
        let (source, name) = (harmless(&entry.source), harmless(&entry.new_vm_name));
        text += &format!("  {}  {source} -> {name}: {action}\n", entry.operation_id);
        text.extend(entry.files.iter().map(|file| format!("    {}\n", harmless(file))));
    }
    text
}
