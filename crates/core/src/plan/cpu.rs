//! Whether the target can show the guest the CPU that its definition asks for.
//!
//! What libvirt would refuse at the first start is refused before a byte moves. With `check='none'`, which libvirt itself
//! writes into definitions without a `<cpu>`, qemu starts with what the host has of the model: that is a warning.

use super::Facts;
use super::check::Checks;
use crate::domain::Cpu;
use crate::error::Error;
use crate::inventory::Cpus;

/// Models that a refusal shows.
const SHOWN: usize = 12;

pub(super) fn check(facts: &Facts<'_>, checks: &mut Checks) {
    let (Some(cpu), Some(there)) = (facts.domain.cpu(), &facts.target.guest_cpus) else { return };
    if there.modes.is_empty() {
        return;
    }
    let shown = cpu.model.as_deref().unwrap_or(&cpu.mode);
    let failure = refuse_mode(&cpu, there).or_else(|| refuse_model(&cpu, there));
    let shortfall = [unusable(&cpu, there), lacking(&cpu, there)].into_iter().flatten();
    let (refused, warned): (Vec<Error>, Vec<Error>) = shortfall.partition(|_| cpu.is_checked);
    let failures: Vec<Error> = failure.into_iter().chain(refused).collect();
    for warning in warned.iter().filter(|_| failures.is_empty()) {
        let message = format!("{}; the copy starts all the same, and its guest sees less", warning.message);
        checks.warn("cpu", message, warning.help.first().map(String::as_str));
    }
    if !failures.is_empty() || warned.is_empty() {
        let failures = failures.into_iter().map(|error| error.with("host", &facts.target.host_name));
        checks.all("cpu", failures.collect(), format!("the target can show the CPU {shown}"));
    }
}

fn refuse_mode(cpu: &Cpu, there: &Cpus) -> Option<Error> {
    let refuse = || {
        let modes: Vec<&str> = there.modes.iter().map(String::as_str).collect();
        Error::unsupported(format!("the target cannot run guests whose CPU has the mode {}", cpu.mode))
            .with("cpu", &cpu.mode)
            .help(format!("It knows {}: choose one with virsh edit at the source (<cpu mode='…'>)", modes.join(", ")))
    };
    (!there.modes.contains(&cpu.mode)).then(refuse)
}

fn refuse_model(cpu: &Cpu, there: &Cpus) -> Option<Error> {
    let model = cpu.model.as_ref().filter(|_| cpu.mode == "custom")?;
    let refuse = || {
        Error::unsupported(format!("the target does not know the CPU model {model}"))
            .with("cpu", model)
            .help(ways_out(model, there))
            .help("Install a newer qemu and libvirt on the target")
    };
    (!there.models.contains_key(model)).then(refuse)
}

fn unusable(cpu: &Cpu, there: &Cpus) -> Option<Error> {
    let model = cpu.model.as_ref().filter(|_| cpu.mode == "custom")?;
    let refuse = || {
        Error::unsupported(format!("the target's CPU lacks part of the CPU model {model}"))
            .with("cpu", model)
            .help(ways_out(model, there))
    };
    (there.models.get(model) == Some(&Some(false))).then(refuse)
}

fn lacking(cpu: &Cpu, there: &Cpus) -> Option<Error> {
    let lacking: Vec<&str> =
        cpu.required.iter().filter(|name| there.lacking.contains(*name)).map(String::as_str).collect();
    let names = lacking.join(", ");
    let refuse = || {
        Error::unsupported(format!("the machine requires features that the target's CPU lacks: {names}"))
            .with("cpu", &names)
            .help(
                "Take policy='require' from them with virsh edit at the source, or choose a target whose CPU has them",
            )
    };
    (!lacking.is_empty()).then(refuse)
}

/// Models of the same family first, the others behind them.
fn ways_out(model: &str, there: &Cpus) -> String {
    let family = model.split(['-', '_']).next().unwrap_or(model);
    let mut names: Vec<&str> = there.usable().collect();
    names.sort_by_key(|name| (!name.starts_with(family), *name));
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "It can run {}{more}: choose one of them, or mode='host-model', with virsh edit at the source",
        names.join(", ")
    )
}
