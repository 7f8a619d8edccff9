//! Raises labs by hand, for the demo and for looking around.

use std::error::Error;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use clap::{Parser, Subcommand};
use kvm_clone_lab::{DiskSpec, Fill, Host, HostSpec, Lab, Machine, MachineSpec, Result, bench, define_machine};

const MIB: u64 = 1 << 20;
/// How long an emulated guest may take to boot on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Real libvirt hosts on one machine.
#[derive(Debug, Parser)]
#[command(name = "kvm-clone-lab", version)]
struct Arguments {
    /// Which lab, where several are up.
    #[arg(long, global = true)]
    lab: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Raises a lab that stays until `down`.
    Up {
        /// The hosts' names.
        #[arg(long, value_delimiter = ',', default_value = "alpha,beta")]
        hosts: Vec<String>,
        /// Instead of staying, wait until this process is ended, and remove the lab then.
        #[arg(long)]
        wait: bool,
    },
    /// Runs a command in a host.
    Exec {
        /// The host.
        host: String,
        /// The command and its words.
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Limits what a host sends and receives, e.g. `100mbit`.
    Shape {
        /// The host.
        host: String,
        /// The rate in the words of `tc`.
        rate: String,
    },
    /// Cuts a host's cable.
    Cut {
        /// The host.
        host: String,
    },
    /// Mends a host's cable.
    Heal {
        /// The host.
        host: String,
    },
    /// Makes a machine with two disks, 96 MiB of data in them, that can boot on every host of the lab.
    Guest {
        /// The host.
        host: String,
        /// The machine's name.
        name: String,
    },
    /// Waits until a machine's serial console holds a line with these words, and prints it.
    Console {
        /// The host.
        host: String,
        /// The machine's name.
        name: String,
        /// The words.
        text: String,
    },
    /// Resets a host.
    Reboot {
        /// The host.
        host: String,
    },
    /// Removes the lab.
    Down {
        /// Removes all labs that are up.
        #[arg(long)]
        all: bool,
    },
    /// Shows the labs that are up.
    List,
    /// Measures kvm-clone against the tools that people copy machines with today; prints tables in Markdown.
    Bench {
        /// The directory of the programs kvm-clone and kvm-clone-agent.
        #[arg(long)]
        programs: PathBuf,
        /// How often each tool runs.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Only scenarios whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// kvm-clone alone.
        #[arg(long)]
        ours: bool,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let attach = || Lab::attach(arguments.lab.as_deref());
    match &arguments.verb {
        Verb::Up { hosts, wait } => up(hosts, *wait)?,
        Verb::Exec { host, command } => return exec(&attach()?.find(host)?, command),
        Verb::Shape { host, rate } => with_host(attach()?, host, |lab, host| lab.shape(host, rate))?,
        Verb::Cut { host } => with_host(attach()?, host, Lab::cut)?,
        Verb::Heal { host } => with_host(attach()?, host, Lab::heal)?,
        Verb::Guest { host, name } => guest(&attach()?, host, name)?,
        Verb::Console { host, name, text } => console(&attach()?.find(host)?.machine(name)?, text)?,
        Verb::Reboot { host } => attach()?.find(host)?.reboot()?,
        Verb::Down { all: false } => attach()?.down()?,
        Verb::Down { all: true } => {
            for id in Lab::kept()? {
                Lab::attach(Some(&id))?.down()?;
            }
        }
        Verb::List => list()?,
        Verb::Bench { programs, rounds, only, ours } => {
            measure(&bench::Plan { programs, rounds: *rounds, only: only.as_deref(), ours: *ours })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn with_host(lab: Lab, name: &str, act: impl FnOnce(&Lab, &Host) -> Result<()>) -> Result<()> {
    let host = lab.find(name)?;
    act(&lab, &host)
}

fn up(names: &[String], wait: bool) -> Result<()> {
    let lab = Lab::new()?;
    lab.hosts(names.iter().map(|name| HostSpec::named(name)).collect())?;
    show(&lab);
    if !wait {
        return lab.keep().map(drop);
    }
    loop {
        std::thread::park();
    }
}

fn list() -> Result<()> {
    for id in Lab::kept()? {
        show(&Lab::attach(Some(&id))?);
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "what the user asked for")]
fn show(lab: &Lab) {
    println!("lab {}: ssh -F {}", lab.id(), lab.ssh_config().display());
    for host in lab.all_hosts() {
        println!("  {} {}", host.name(), host.address());
    }
}

fn guest(lab: &Lab, host: &str, name: &str) -> Result<()> {
    let fill = |seed, bytes| Fill::Random { seed, bytes };
    let machine = MachineSpec::named(name)
        .disk(DiskSpec::qcow2("vda", 256 * MIB).fill(fill(1, 64 * MIB)))
        .disk(DiskSpec::raw("vdb", 128 * MIB).fill(fill(2, 32 * MIB)));
    define_machine(&lab.find(host)?, machine)?;
    lab.all_hosts().iter().try_for_each(Host::provide_guest)
}

#[allow(clippy::print_stdout, reason = "what the user asked for")]
fn console(machine: &Machine, text: &str) -> Result<()> {
    println!("{}", machine.wait_for_console(text, BOOT_LIMIT)?);
    Ok(())
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "what the user asked for, and how far it is")]
fn measure(plan: &bench::Plan<'_>) -> Result<()> {
    println!("{}", bench::run(plan, &|line| eprintln!("{line}"))?);
    Ok(())
}

/// With our own standard input and output, and the command's own exit code.
fn exec(host: &Host, words: &[String]) -> Result<ExitCode> {
    let Some((program, arguments)) = words.split_first() else { return Ok(ExitCode::FAILURE) };
    let mut command = host.command(program);
    command.args(arguments).stdin(Stdio::inherit());
    let status =
        command.status().map_err(|source| kvm_clone_lab::LabError::Start { program: program.clone(), source })?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

#[allow(clippy::print_stderr, reason = "where a command's complaint belongs")]
fn complain(error: &dyn Error) {
    eprint!("kvm-clone-lab: {error}");
    let mut cause = error.source();
    while let Some(next) = cause {
        eprint!(": {next}");
        cause = next.source();
    }
    eprintln!();
}
