//! `kvm-clone list`: the machines of hosts.

use std::collections::BTreeMap;
use std::process::ExitCode;

use kvm_clone_core::inventory::Machine;
use kvm_clone_core::{Error, Result};

use super::ask_each;
use crate::args::{ListArgs, ListFormat};
use crate::exit;
use crate::render::{Format, machines_list, machines_table};
use crate::session::Session;

/// Lists; hosts that cannot be reached are told apart.
pub(crate) async fn run(args: &ListArgs, session: &Session) -> Result<ExitCode> {
    let mut output = session.output.clone();
    output.format = format(args.format, output.format)?;
    let answers = ask_each(session, &args.hosts, |client, spec| async move { client.list(&spec).await }).await?;
    let mut machines: BTreeMap<String, Vec<Machine>> = BTreeMap::new();
    let mut failures = Vec::new();
    for (host, answer) in answers {
        match answer {
            Ok(mut found) => {
                found.retain(|machine| args.status.shows(machine.state));
                for machine in &mut found {
                    machine.host.clone_from(&host.name);
                }
                machines.insert(host.name, found);
            }
            Err(error) => {
                output.side_error(&error.clone().with("host", &host.name));
                failures.push(error.code);
            }
        }
    }
    output.data(&machines, || match args.format {
        Some(ListFormat::List) => machines_list(&machines, output.paint),
        _ => machines_table(&machines, output.paint),
    })?;
    Ok(exit::first(&failures))
}

/// `--format json` is `-o json`; the other two are texts.
fn format(asked: Option<ListFormat>, output: Format) -> Result<Format> {
    match (asked, output) {
        (None, output) => Ok(output),
        (Some(ListFormat::Json), Format::Text | Format::Json) => Ok(Format::Json),
        (Some(ListFormat::Table | ListFormat::List), Format::Text) => Ok(Format::Text),
        (Some(_), output) => {
            Err(Error::validation(format!("--format and --output {output} contradict each other"))
                .help("Leave one out"))
        }
    }
}
