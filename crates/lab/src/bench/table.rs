//! What was measured, for people to read.

use std::fmt::Write as _;

use super::meter::Sample;
use super::{Measured, Runs, Wanted};

/// The summary first, then each scenario with every tool, then how each was called.
pub(super) fn render(measured: &[Measured]) -> String {
    let mut text = String::from("| scenario | ours | fastest other | ratio | wanted |\n|---|---|---|---|---|\n");
    let first_peer = measured.first().and_then(|first| fastest(&first.runs));
    for Measured { name: scenario, wanted, runs, .. } in measured {
        let ours = runs.iter().find(|runs| runs.tool.ours).and_then(Runs::median);
        // What runs is compared with copying a stopped disk: nothing else copies a running machine at one moment.
        let peer = fastest(runs).or(first_peer);
        let (Some(ours), Some((name, peer))) = (ours, peer) else { continue };
        let ratio = ours.seconds / peer;
        let (is_met, wanted) = match *wanted {
            Wanted::Part(part) => (ratio <= part, format!("≤ {part:.2}")),
            Wanted::Seconds(seconds) => (ours.seconds <= seconds, format!("≤ {seconds:.1} s")),
        };
        let mark = if is_met { "" } else { " (missed)" };
        let _ =
            writeln!(text, "| {scenario} | {:.2} s | {name} {peer:.2} s | {ratio:.2} | {wanted}{mark} |", ours.seconds);
    }
    for Measured { name, machine, size, runs, .. } in measured {
        let _ = writeln!(text, "\n{name}\n");
        text.push_str("| tool | cipher | median s | all | CPU s | MB at the interface | command |\n");
        text.push_str("|---|---|---|---|---|---|---|\n");
        runs.iter().for_each(|runs| runs.row(machine, *size, &mut text));
    }
    text
}

/// The fastest other tool and its median.
fn fastest(runs: &[Runs]) -> Option<(&'static str, f64)> {
    let medians = runs.iter().filter(|runs| !runs.tool.ours).filter_map(|runs| Some((runs.tool.name, runs.median()?)));
    medians.map(|(name, sample)| (name, sample.seconds)).min_by(|a, b| a.1.total_cmp(&b.1))
}

impl Runs {
    /// The run with the median time.
    fn median(&self) -> Option<Sample> {
        let mut samples = self.samples.clone();
        samples.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        samples.get(samples.len() / 2).copied()
    }

    fn row(&self, machine: &str, size: u64, text: &mut String) {
        // A bar would end the cell.
        let cell = |text: &str| text.replace('|', "\\|");
        let command = cell(&self.tool.script(machine, "SOURCE", "TARGET", size));
        let (name, cipher) = (cell(self.tool.name), self.tool.cipher);
        let _ = match (self.median(), self.ended_after) {
            (Some(sample), _) => {
                let all: Vec<String> = self.samples.iter().map(|sample| format!("{:.2}", sample.seconds)).collect();
                let megabytes = sample.wire as f64 / 1e6;
                let (seconds, cpu, all) = (sample.seconds, sample.cpu, all.join(", "));
                writeln!(text, "| {name} | {cipher} | {seconds:.2} | {all} | {cpu:.1} | {megabytes:.2} | `{command}` |")
            }
            (None, limit) => {
                let limit = limit.unwrap_or_default().as_secs_f64();
                writeln!(text, "| {name} | {cipher} | over {limit:.0} | ended | – | – | `{command}` |")
            }
        };
    }
}
