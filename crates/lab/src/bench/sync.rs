//! Replicas brought to the present state of their source: ours, and rsync on images of its own.
//!
//! Each tool keeps a copy of its own at the target. Before each round the source changes once, the same for all tools.

use std::ops::RangeFrom;
use std::path::Path;
use std::time::Duration;

use super::disk::Content;
use super::meter::{self, Sample};
use super::tool::Tool;
use super::{IMAGES, Measured, Plan, Runs, Wanted};
use crate::guest::{DiskFormat, DiskSpec, MachineSpec, define_machine};
use crate::run::output;
use crate::{Host, LabError, Result};

const MACHINE: &str = "tree-sync";
const BLOCK: u64 = 64 << 10;
/// 1 % of the data: so many blocks all over the disk …
const SCATTERED: u64 = 276;
/// … and one region where nothing was.
const REGION: u64 = 32 << 20;

/// What happens to the source before each round.
#[derive(Clone, Copy)]
enum Change {
    /// 1 % of it.
    OnePercent,
    /// Its image is touched, so that it counts as changed until it was read.
    Touch,
    Nothing,
}

struct Scenario {
    name: &'static str,
    change: Change,
    /// Whether the target has lost the digests of the last point.
    forgets: bool,
    ours: &'static str,
    rsync: &'static str,
    wanted: Wanted,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "sync after 1 %, digests kept",
        change: Change::OnePercent,
        forgets: false,
        ours: "",
        rsync: "--inplace --ignore-times",
        wanted: Wanted::Part(0.50),
    },
    Scenario {
        name: "sync after 1 %, no digests",
        change: Change::OnePercent,
        forgets: true,
        ours: " --discard-target-changes",
        rsync: "--inplace --ignore-times",
        wanted: Wanted::Part(0.75),
    },
    Scenario {
        name: "sync, nothing changed, source read",
        change: Change::Touch,
        forgets: false,
        ours: "",
        rsync: "--inplace --ignore-times",
        wanted: Wanted::Part(0.65),
    },
    Scenario {
        name: "sync, source untouched",
        change: Change::Nothing,
        forgets: false,
        ours: "",
        rsync: "--inplace --times",
        wanted: Wanted::Seconds(1.0),
    },
];

/// Measures all of them, on one machine.
pub(super) fn run(alpha: &Host, beta: &Host, plan: &Plan<'_>, say: &dyn Fn(&str)) -> Result<Vec<Measured>> {
    let chosen = SCENARIOS.iter().filter(|scenario| plan.only.is_none_or(|only| scenario.name.contains(only)));
    let chosen: Vec<&Scenario> = chosen.collect();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let source = format!("{IMAGES}/{MACHINE}-vda.qcow2");
    super::disk::provide(Content::Tree, DiskFormat::Qcow2, &alpha.path(&source))?;
    let disk = DiskSpec::qcow2("vda", Content::Tree.size()).at(&source).existing();
    let machine = define_machine(alpha, MachineSpec::named(MACHINE).disk(disk))?;
    alpha.exec(&["kvm-clone", "-q", "-y", "clone", "local", "beta", MACHINE, "-n", "copy"])?;
    beta.exec(&["cp", "--sparse=always", "--preserve=timestamps", &ours(), &theirs()])?;
    beta.exec(&["touch", "-r", &ours(), &theirs()])?;
    let mut measured = Vec::new();
    let mut changes = 0..;
    for scenario in chosen {
        say(&format!("== {}", scenario.name));
        measured.push(compare(alpha, beta, scenario, &source, plan, &mut changes, say)?);
    }
    machine.undefine()?;
    alpha.exec(&["rm", "-f", &source])?;
    beta.shell(&format!("virsh -q undefine copy; rm -f {} {}", ours(), theirs()))?;
    Ok(measured)
}

/// The replica's image.
fn ours() -> String {
    format!("{IMAGES}/copy-vda.qcow2")
}

/// The copy that rsync keeps.
fn theirs() -> String {
    format!("{IMAGES}/rsync-vda.qcow2")
}

fn compare(
    alpha: &Host,
    beta: &Host,
    scenario: &Scenario,
    source: &str,
    plan: &Plan<'_>,
    changes: &mut RangeFrom<u64>,
    say: &dyn Fn(&str),
) -> Result<Measured> {
    let command = format!("kvm-clone -q -y sync local beta MACHINE{}", scenario.ours);
    let our = Tool { name: "kvm-clone sync", ours: true, cipher: "AES-256-GCM (host to host)", command };
    let command = format!("rsync {} -e 'ssh -c aes128-gcm@openssh.com' SOURCE beta:TARGET", scenario.rsync);
    let rsync = Tool { name: "rsync", ours: false, cipher: "aes128-gcm", command };
    let tools = [(our, ours()), (rsync, theirs())].into_iter().filter(|(tool, _)| tool.ours || !plan.ours);
    let mut all: Vec<(Runs, String)> =
        tools.map(|(tool, target)| (Runs { tool, samples: Vec::new(), ended_after: None }, target)).collect();
    for (_, number) in (0..plan.rounds).zip(changes) {
        change(alpha, source, scenario.change, number)?;
        for (runs, target) in &mut all {
            if runs.tool.ours && scenario.forgets {
                beta.shell("rm -f /var/lib/kvm-clone/manifests/* /var/lib/kvm-clone/seals/*")?;
            }
            let sample = one(alpha, beta, &runs.tool, source, target)?;
            say(&format!("{:28} {:6.2} s  {:6.2} CPU s", runs.tool.name, sample.seconds, sample.cpu));
            runs.samples.push(sample);
            assert_equal(&alpha.path(source), &beta.path(target))?;
        }
    }
    let runs = all.into_iter().map(|(runs, _)| runs).collect();
    Ok(Measured { name: scenario.name, machine: MACHINE, size: Content::Tree.size(), wanted: scenario.wanted, runs })
}

fn one(alpha: &Host, beta: &Host, tool: &Tool, source: &str, target: &str) -> Result<Sample> {
    let script = tool.script(MACHINE, source, target, Content::Tree.size());
    let limit = Duration::from_secs(120);
    let sample = meter::measure(alpha, beta, &script, target, limit)?;
    sample.ok_or_else(|| LabError::Refused(format!("{} took longer than {} s", tool.name, limit.as_secs())))
}

/// Makes the change of this number, which writes where no other has written: what is there already is no change.
fn change(host: &Host, image: &str, change: Change, number: u64) -> Result<()> {
    match change {
        Change::Nothing => return Ok(()),
        Change::Touch => return host.exec(&["touch", image]).map(drop),
        Change::OnePercent => {}
    }
    // A stride that is prime to the number of blocks goes round the first quarter of the disk, where the data is.
    let blocks = Content::Tree.size() / BLOCK / 4;
    let scattered = (number * SCATTERED..(number + 1) * SCATTERED).map(|write| {
        let block = write * 7919 % blocks;
        format!("write -q -P {} {} {BLOCK}", write % 255 + 1, block * BLOCK)
    });
    let free = Content::Tree.size() - (number + 1) * REGION;
    let writes: Vec<String> = scattered.chain([format!("write -q -P {} {free} {REGION}", number + 1)]).collect();
    let mut argv = vec!["qemu-io", "-f", "qcow2"];
    writes.iter().for_each(|write| argv.extend(["-c", write]));
    argv.push(image);
    host.exec(&argv).map(drop)
}

fn assert_equal(source: &Path, target: &Path) -> Result<()> {
    let mut command = crate::run::program("qemu-img");
    command.args(["compare", "-q", "-f", "qcow2", "-F", "qcow2"]).arg(source).arg(target);
    output(&mut command).map(drop)
}
