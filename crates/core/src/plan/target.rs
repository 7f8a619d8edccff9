//! Whether the target can run the machine: CPUs, memory, emulator, and a UUID that is free.

use uuid::Uuid;

use super::Facts;
use super::check::Checks;
use crate::domain::Platform;
use crate::error::{Code, Error};
use crate::inventory::DomainCapabilities;
use crate::size::ByteSize;

/// Looks at what the machine needs, and says which emulator it takes where that is not the source's.
pub(super) fn check(facts: &Facts<'_>, checks: &mut Checks) -> Option<String> {
    check_cpus(facts, checks);
    check_memory(facts, checks);
    let platform = facts.domain.platform();
    match find_emulator(&platform, &facts.target.capabilities) {
        Err(error) => {
            checks.fail("platform", error.with("host", &facts.target.host_name));
            None
        }
        Ok(found) => {
            let machine = platform.machine.as_deref().unwrap_or("its default machine");
            checks.ok("platform", format!("{machine} runs with {}", found.emulator));
            let differs = platform.emulator.as_ref().filter(|emulator| **emulator != found.emulator)?;
            let message = format!("the emulator {differs} becomes {}", found.emulator);
            checks.warnings.push(message);
            Some(found.emulator.clone())
        }
    }
}

/// libvirt knows machines by UUID: a second one of that UUID would overwrite the first.
pub(super) fn check_uuid(facts: &Facts<'_>, uuid: Uuid, checks: &mut Checks) {
    let others = facts.target.machines.iter().filter(|machine| machine.name.as_str() != facts.new_name.as_str());
    match others.into_iter().find(|machine| machine.uuid == uuid) {
        Some(other) => checks.fail(
            "uuid",
            Error::new(Code::VmExists, format!("machine {} on the target has the UUID {uuid} already", other.name))
                .with("vm", &other.name)
                .with("host", &facts.target.host_name)
                .help("Clone without --preserve-uuid and --replica, or delete that machine first"),
        ),
        None => checks.ok("uuid", format!("no other machine has the UUID {uuid}")),
    }
}

fn check_cpus(facts: &Facts<'_>, checks: &mut Checks) {
    let (needed, present) = (facts.domain.vcpus(), facts.target.cpus);
    if needed > present {
        let message = format!("the machine has {needed} virtual CPUs, the target has {present} CPUs");
        let help = "Give the source machine fewer CPUs, or choose a larger target";
        return checks.fail("cpus", Error::insufficient(message).with("host", &facts.target.host_name).help(help));
    }
    checks.ok("cpus", format!("{needed} of {present} CPUs"));
}

fn check_memory(facts: &Facts<'_>, checks: &mut Checks) {
    let needed = facts.domain.memory();
    let total = ByteSize(facts.target.memory_total);
    let available = ByteSize(facts.target.memory_available);
    if needed > total {
        let message = format!("the machine has {needed} of memory, the target {total}");
        let help = "Give the source machine less memory, or choose a larger target";
        checks.fail("memory", Error::insufficient(message).with("host", &facts.target.host_name).help(help));
    } else if needed > available {
        let message = format!("the machine needs {needed} of memory, {available} are free at the target now");
        checks.warn("memory", message, Some("Stop another machine before starting this one"));
    } else {
        checks.ok("memory", format!("{needed} of {available} free"));
    }
}

/// The target's emulator for this machine: the one of the same path if it can, else any that can.
fn find_emulator<'a>(platform: &Platform, all: &'a [DomainCapabilities]) -> Result<&'a DomainCapabilities, Error> {
    let Platform { virt_type, arch, machine, emulator } = platform;
    let of_arch: Vec<&DomainCapabilities> =
        all.iter().filter(|one| arch.as_ref().is_none_or(|arch| *arch == one.arch)).collect();
    let Some(arch) = of_arch.first().map(|one| &one.arch) else {
        let arch = arch.as_deref().unwrap_or("any architecture");
        return Err(Error::unsupported(format!("the target has no emulator for {arch}"))
            .help(format!("Install qemu for {arch} on the target")));
    };
    let mut of_type = of_arch.into_iter().filter(|one| one.virt_type == *virt_type).peekable();
    if of_type.peek().is_none() {
        return Err(Error::unsupported(format!("the target cannot run {arch} machines of type {virt_type:?}"))
            .help("Check that /dev/kvm exists on the target and that virtualisation is on in its firmware"));
    }
    let fits = |one: &&DomainCapabilities| machine.as_ref().is_none_or(|machine| one.machines.contains(machine));
    let candidates: Vec<&DomainCapabilities> = of_type.collect();
    let fitting = candidates.iter().copied().filter(fits);
    let same_path = |one: &&DomainCapabilities| Some(&one.emulator) == emulator.as_ref();
    let found = fitting.clone().find(same_path).or_else(|| fitting.clone().next());
    found.ok_or_else(|| {
        let machine = machine.as_deref().unwrap_or_default();
        Error::unsupported(format!("the target does not know the machine type {machine}"))
            .with("machine", machine)
            .help(format!("It knows {}", relatives(machine, &candidates)))
            .help("Install a newer qemu on the target, or give the source machine a type that both know")
    })
}

/// Machine types of the same family (`pc-q35`, `pc-i440fx`, `virt`); all of them where it has none here.
fn relatives(machine: &str, all: &[&DomainCapabilities]) -> String {
    let family = machine.rsplit_once('-').map_or(machine, |(family, _)| family);
    let names: Vec<&str> = all.iter().flat_map(|one| &one.machines).map(String::as_str).collect();
    let mut close: Vec<&str> = names.iter().copied().filter(|name| name.starts_with(family)).collect();
    if close.is_empty() {
        close = names;
    }
    close.sort_unstable();
    close.dedup();
    close.join(", ")
}
