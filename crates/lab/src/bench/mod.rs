//! Measures kvm-clone against the tools that people copy machines with today: the same disks, the same hosts, in turn.
//!
//! Every run begins with cold disks and ends when the copy is durable at the target. Both hosts are this machine, so
//! the processor time of a run is that of both ends. Speed is measured here and asserted nowhere.

mod disk;
mod memory;
mod meter;
mod sync;
mod table;
mod tool;

use std::path::Path;
use std::time::Duration;

use crate::guest::{DiskFormat, DiskSpec, MachineSpec, define_machine};
use crate::run::output;
use crate::{Host, HostSpec, Lab, LabError, Result};
use disk::Content;
use meter::Sample;
use tool::Tool;

/// A tool that needs so many times as long as ours is ended, and not run again.
const PATIENCE: u32 = 4;
/// Where the hosts keep images.
const IMAGES: &str = "/var/lib/libvirt/images";

/// One thing to be copied.
struct Scenario {
    name: &'static str,
    machine: &'static str,
    content: Content,
    format: DiskFormat,
    runs: bool,
    /// What ours shall take at most, as a part of the fastest other tool's time.
    wanted: f64,
}

/// What ours shall take at most.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// A part of the fastest other tool's time.
    Part(f64),
    Seconds(f64),
}

/// What was measured of one scenario.
struct Measured {
    name: &'static str,
    machine: &'static str,
    /// The disk's size in bytes.
    size: u64,
    wanted: Wanted,
    runs: Vec<Runs>,
}

const SCENARIOS: [Scenario; 5] = [
    Scenario::stopped("full qcow2 → qcow2", "tree-qcow2", Content::Tree, DiskFormat::Qcow2, 0.75),
    Scenario::stopped("full raw sparse → raw", "tree-raw", Content::Tree, DiskFormat::Raw, 0.75),
    Scenario::stopped("64 GiB virtual, 100 MiB data, raw", "huge-raw", Content::Little, DiskFormat::Raw, 0.8),
    Scenario::stopped("64 GiB virtual, 100 MiB data, qcow2", "huge-qcow2", Content::Little, DiskFormat::Qcow2, 0.8),
    Scenario {
        name: "running machine, guest idle",
        machine: "tree-live",
        content: Content::Tree,
        format: DiskFormat::Qcow2,
        runs: true,
        wanted: 0.95,
    },
];

impl Scenario {
    const fn stopped(
        name: &'static str,
        machine: &'static str,
        content: Content,
        format: DiskFormat,
        wanted: f64,
    ) -> Self {
        Self { name, machine, content, format, runs: false, wanted }
    }

    fn source(&self) -> String {
        format!("{IMAGES}/{}-vda.{}", self.machine, self.format.name())
    }
}

/// A tool's runs of one scenario.
struct Runs {
    tool: Tool,
    samples: Vec<Sample>,
    /// It was ended because it took longer than this.
    ended_after: Option<Duration>,
}

/// What is run, and how often.
#[derive(Debug, Clone)]
pub struct Plan<'a> {
    /// The directory of the programs `kvm-clone` and `kvm-clone-agent`.
    pub programs: &'a Path,
    /// How often each tool runs.
    pub rounds: u32,
    /// Only scenarios whose name contains this.
    pub only: Option<&'a str>,
    /// Ours alone.
    pub ours: bool,
}

/// Runs everything and returns the tables, in Markdown.
///
/// # Errors
/// The lab cannot be raised, or a tool fails.
pub fn run(plan: &Plan<'_>, say: &dyn Fn(&str)) -> Result<String> {
    let lab = Lab::new()?;
    let hosts = lab.hosts(vec![HostSpec::named("alpha"), HostSpec::named("beta")])?;
    let [alpha, beta] = &hosts[..] else { return Err(LabError::Refused("two hosts were asked for".to_owned())) };
    install(plan.programs, alpha)?;
    beta.provide_guest()?;
    let mut measured = Vec::new();
    let chosen = SCENARIOS.iter().filter(|scenario| plan.only.is_none_or(|only| scenario.name.contains(only)));
    for scenario in chosen {
        say(&format!("== {}", scenario.name));
        prepare(alpha, scenario)?;
        let runs = compare(alpha, beta, scenario, plan, say)?;
        tidy(alpha, scenario)?;
        measured.push(Measured {
            name: scenario.name,
            machine: scenario.machine,
            size: scenario.content.size(),
            wanted: Wanted::Part(scenario.wanted),
            runs,
        });
    }
    measured.extend(sync::run(alpha, beta, plan, say)?);
    let mut text = table::render(&measured);
    if plan.only.is_none_or(|only| "memory".contains(only)) {
        text += &memory::run(alpha, beta, say)?;
    }
    lab.down()?;
    Ok(text)
}

/// The program as a user has it: on the source host, with its agent beside it.
fn install(programs: &Path, host: &Host) -> Result<()> {
    for (name, place) in [("kvm-clone", "bin"), ("kvm-clone-agent", "libexec")] {
        host.install_file(&programs.join(name), &format!("/usr/local/{place}/{name}"), 0o755)?;
    }
    Ok(())
}

fn prepare(host: &Host, scenario: &Scenario) -> Result<()> {
    let source = scenario.source();
    disk::provide(scenario.content, scenario.format, &host.path(&source))?;
    let size = scenario.content.size();
    let disk = match scenario.format {
        DiskFormat::Raw => DiskSpec::raw("vda", size),
        DiskFormat::Qcow2 => DiskSpec::qcow2("vda", size),
    };
    let machine = define_machine(host, MachineSpec::named(scenario.machine).disk(disk.at(&source).existing()))?;
    if scenario.runs {
        machine.start()?;
        machine.wait_for_console("kvm-clone-guest: up", Duration::from_secs(120))?;
    }
    Ok(())
}

fn tidy(host: &Host, scenario: &Scenario) -> Result<()> {
    let machine = host.machine(scenario.machine)?;
    if scenario.runs {
        machine.destroy()?;
    }
    machine.undefine()?;
    host.exec(&["rm", "-f", &scenario.source()]).map(drop)
}

/// All tools in turn, so many rounds; ours first, for it says how long the others may take.
fn compare(alpha: &Host, beta: &Host, scenario: &Scenario, plan: &Plan<'_>, say: &dyn Fn(&str)) -> Result<Vec<Runs>> {
    let tools = tool::all(scenario.format).into_iter().filter(|tool| tool.ours || !(scenario.runs || plan.ours));
    let mut runs: Vec<Runs> = tools.map(|tool| Runs { tool, samples: Vec::new(), ended_after: None }).collect();
    let mut limit = Duration::from_secs(600);
    for round in 0..plan.rounds {
        for runs in runs.iter_mut().filter(|runs| runs.ended_after.is_none()) {
            let target = format!("{IMAGES}/copy-vda.{}", scenario.format.file_suffix());
            let script = runs.tool.script(scenario.machine, &scenario.source(), &target, scenario.content.size());
            match meter::measure(alpha, beta, &script, &target, limit)? {
                Some(sample) => {
                    say(&format!("{:28} {:6.2} s  {:6.2} CPU s", runs.tool.name, sample.seconds, sample.cpu));
                    runs.samples.push(sample);
                    if round == 0 {
                        assert_equal(alpha, beta, scenario, &target)?;
                    }
                }
                None => runs.ended_after = Some(limit),
            }
            clear(beta, &target)?;
            if runs.tool.ours && round == 0 {
                limit = Duration::from_secs_f64(runs.samples.first().map_or(600.0, |sample| sample.seconds)) * PATIENCE;
            }
        }
    }
    Ok(runs)
}

/// What was not copied whole was not measured. A running guest writes on, so only its copy's health is looked at.
fn assert_equal(alpha: &Host, beta: &Host, scenario: &Scenario, target: &str) -> Result<()> {
    let (source, target) = (alpha.path(&scenario.source()), beta.path(target));
    let mut command = crate::run::program("qemu-img");
    let format = scenario.format.name();
    if scenario.runs {
        command.args(["check", "-q", "-f", format]).arg(&target);
    } else {
        command.args(["compare", "-q", "-f", format, "-F", format]).arg(&source).arg(&target);
    }
    output(&mut command).map(drop)
}

/// Takes a copy away, and the machine that ours defines.
fn clear(beta: &Host, target: &str) -> Result<()> {
    let script = format!(
        "virsh -q undefine copy 2>/dev/null || true; rm -f {target}* /var/lib/kvm-clone/manifests/* /var/lib/kvm-clone/seals/*; \
         virsh -q pool-refresh default >/dev/null 2>&1 || true"
    );
    beta.shell(&script).map(drop)
}
