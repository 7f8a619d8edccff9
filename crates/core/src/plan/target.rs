//! Whether the target can run the machine: CPUs, memory, emulator, and a UUID that is free.

use uuid::Uuid;

use super::check::Checks;
use super::{CloneRequest, Facts, source_domain};
use crate::domain::Platform;
use crate::error::{Code, Error, Result};
use crate::inventory::{DomainCapabilities, SourceMachine};
use crate::size::ByteSize;

/// What the machine runs on at the target, where that is not what it runs on at the source.
#[derive(Default)]
pub(super) struct Chosen {
    pub(super) emulator: Option<String>,
    pub(super) machine: Option<String>,
}

/// Looks at what the machine needs, and chooses what it runs on.
pub(super) fn check(facts: &Facts<'_>, checks: &mut Checks) -> Chosen {
    check_cpus(facts, checks);
    check_memory(facts, checks);
    let mut platform = facts.domain.platform();
    let mut chosen =
        Chosen { machine: other_machine(facts.request, &platform, &facts.target.capabilities), emulator: None };
    if let (Some(new), Some(old)) = (&chosen.machine, &platform.machine) {
        let message = format!("the machine type {old} becomes {new}; its guest may see other hardware");
        checks.warn("platform", message, None);
    }
    platform.machine = chosen.machine.clone().or(platform.machine);
    match find_emulator(&platform, &facts.target.capabilities) {
        Err(error) => checks.fail("platform", error.with("host", &facts.target.host_name)),
        Ok(found) => {
            let machine = platform.machine.as_deref().unwrap_or("its default machine");
            checks.ok("platform", format!("{machine} runs with {}", found.emulator));
            if let Some(differs) = platform.emulator.as_ref().filter(|emulator| **emulator != found.emulator) {
                checks.warnings.push(format!("the emulator {differs} becomes {}", found.emulator));
                chosen.emulator = Some(found.emulator.clone());
            }
        }
    }
    chosen
}

/// What the copy would run on, all of it named: what the target is asked about the CPUs of. None where it cannot run the
/// machine, or where the definition asks for no CPU.
///
/// # Errors
/// As [`source_domain`].
pub fn platform_there(
    request: &CloneRequest,
    source: &SourceMachine,
    all: &[DomainCapabilities],
) -> Result<Option<Platform>> {
    let (domain, _) = source_domain(request, source)?;
    let mut platform = domain.platform();
    platform.machine = other_machine(request, &platform, all).or(platform.machine);
    let found = find_emulator(&platform, all).ok().filter(|_| domain.cpu().is_some());
    Ok(found.map(|found| Platform {
        virt_type: found.virt_type.clone(),
        arch: Some(found.arch.clone()),
        emulator: Some(found.emulator.clone()),
        machine: platform.machine,
    }))
}

fn other_machine(request: &CloneRequest, platform: &Platform, all: &[DomainCapabilities]) -> Option<String> {
    if request.any_machine { closest_machine(platform, all) } else { None }
}

/// The newest type of the same family that is not newer than the source's, else the oldest that is; none where the
/// target has the very type, or nothing of the family.
fn closest_machine(platform: &Platform, all: &[DomainCapabilities]) -> Option<String> {
    let wanted = platform.machine.as_deref()?;
    let fits = |one: &&DomainCapabilities| {
        one.virt_type == platform.virt_type && platform.arch.as_ref().is_none_or(|arch| *arch == one.arch)
    };
    let there: Vec<&String> = all.iter().filter(fits).flat_map(|one| &one.machines).collect();
    if there.iter().any(|machine| *machine == wanted) {
        return None;
    }
    let (family, version) = family(wanted)?;
    let mut close: Vec<(Version, &String)> = there
        .into_iter()
        .filter_map(|machine| Some((self::family(machine)?, machine)))
        .filter(|((of, _), _)| *of == family)
        .map(|((_, version), machine)| (version, machine))
        .collect();
    close.sort();
    let older = close.iter().rev().find(|(there, _)| *there <= version);
    older.or_else(|| close.first()).map(|(_, machine)| (*machine).clone())
}

type Version = Vec<u32>;

/// `pc-q35-7.2` is version 7.2 of `pc-q35`; distributions have names like `pc-q35-rhel9.2.0`, a family of its own.
fn family(machine: &str) -> Option<(&str, Version)> {
    let digits = machine.rfind(|c: char| !c.is_ascii_digit() && c != '.')? + 1;
    let (family, version) = machine.split_at(digits);
    let version: Option<Version> = version.split('.').map(|part| part.parse().ok()).collect();
    Some((family, version?))
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

/// KVM lets a machine have more CPUs than its host: they take turns.
fn check_cpus(facts: &Facts<'_>, checks: &mut Checks) {
    let (needed, present) = (facts.domain.vcpus(), facts.target.cpus);
    if needed > present {
        let message =
            format!("the machine has {needed} virtual CPUs, the target {present} processors: the copy may be slow");
        return checks.warn("cpus", message, Some("Give the copy fewer CPUs, or choose a larger target"));
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
fn find_emulator<'a>(platform: &Platform, all: &'a [DomainCapabilities]) -> Result<&'a DomainCapabilities> {
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
            .help("Take a close one with --machine auto")
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
