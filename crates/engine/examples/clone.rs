//! Clones one machine with the library: the whole of what a program needs to do.
//!
//! ```text
//! cargo run --example clone -- AGENT JOURNAL SOURCE DEST MACHINE [SSH_CONFIG]
//! ```
//!
//! AGENT is the `kvm-clone-agent` program to install on the hosts, JOURNAL a file for the journal, SOURCE and DEST are
//! hosts as the command takes them. `tests/lab/routes.rs` runs this very file in the lab.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example shows what happens")]

use std::error::Error;
use std::sync::Arc;

use kvm_clone_core::event::Event;
use kvm_clone_core::host::HostAddr;
use kvm_clone_core::plan::CloneRequest;
use kvm_clone_engine::{Client, ClientOptions, CloneSettings, Recovery};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [agent, journal, source, dest, machine, rest @ ..] = arguments.as_slice() else {
        return Err("usage: clone AGENT JOURNAL SOURCE DEST MACHINE [SSH_CONFIG]".into());
    };

    // 1. A client knows how to reach hosts. It reads no environment: what it needs, it is given.
    let mut options = ClientOptions::new(agent.into(), journal.into());
    options.ssh.configs = rest.iter().map(Into::into).collect();
    let client = Client::new(options).await?;

    // 2. Prepare: both hosts are reached, inventories taken, the plan made. Nothing has been changed yet.
    let (source, dest) = (source.parse::<HostAddr>()?.into(), dest.parse::<HostAddr>()?.into());
    let events = Arc::new(|event: Event| eprintln!("{event:?}"));
    let prepared = client
        .prepare(&source, &dest, &machine.parse()?, CloneRequest::default(), Recovery::Act, events.clone())
        .await?;
    println!("{}", prepared.plan().describe());

    // 3. Execute: everything happens, or nothing does. Ctrl-C undoes whatever was made.
    let cancel = CancellationToken::new();
    let on_interrupt = cancel.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            on_interrupt.cancel();
        }
    });
    let result = prepared.execute(&CloneSettings::default(), events, cancel).await?;
    println!("{} is on {}, {} bytes written and read back", result.new_vm_name, result.dest_host, result.bytes_written);
    for phase in &result.phases {
        println!("{:>8}  {:.2} s", phase.name.word(), phase.duration);
    }
    Ok(())
}
