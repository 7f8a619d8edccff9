//! CPUs that the target can show, and those that it cannot; as libvirt 9.0 told them on a real host.

use super::*;

const TOLD: &str = include_str!("../../inventory/fixtures/domcapabilities.xml");

fn asks(cpu: &str) -> World {
    let mut world = world();
    world.source.xml = world.source.xml.replace("</os>", &format!("</os>{cpu}"));
    world.target.guest_cpus = Some(Cpus::from_xml(TOLD).unwrap());
    world
}

#[test]
fn a_cpu_that_the_target_cannot_show_is_refused() {
    let model = |name: &str| format!("<cpu mode='custom' match='exact' check='partial'><model>{name}</model></cpu>");
    let feature = |policy: &str, name: &str| {
        format!("<cpu mode='custom'><model>pentium3</model><feature policy='{policy}' name='{name}'/></cpu>")
    };
    let cases = [
        ("<cpu mode='host-passthrough'/>".to_owned(), 0),
        ("<cpu mode='host-model'/>".to_owned(), 0),
        ("<cpu><topology sockets='1' cores='1' threads='1'/></cpu>".to_owned(), 0),
        (model("pentium3"), 0),
        (model("Westmere"), 1013),
        (model("Unheard-Of"), 1013),
        ("<cpu><model>Westmere</model></cpu>".to_owned(), 1013),
        ("<cpu check='none'><model>Westmere</model></cpu>".to_owned(), 0),
        ("<cpu check='none'><model>Unheard-Of</model></cpu>".to_owned(), 1013),
        (feature("require", "pni"), 1013),
        (feature("optional", "pni"), 0),
        (feature("disable", "pni"), 0),
        (feature("require", "x2apic"), 0),
    ];
    for (cpu, expected) in cases {
        assert_eq!(code(&asks(&cpu).plan()), expected, "{cpu}: {:?}", asks(&cpu).plan().refusal());
    }
    let refusal = asks(&model("Nehalem")).plan().refusal().unwrap();
    assert!(refusal.message.contains("Nehalem") && refusal.help[0].contains("pentium3"), "{refusal:?}");
    assert!(!refusal.help[0].contains("Westmere"), "{refusal:?}");
    let refusal = asks(&feature("require", "pni")).plan().refusal().unwrap();
    assert!(refusal.message.contains("pni"), "{refusal:?}");
}

#[test]
fn a_mode_of_cpus_that_the_target_lacks_is_refused() {
    for mode in ["host-passthrough", "host-model", "maximum"] {
        let mut world = asks(&format!("<cpu mode='{mode}'/>"));
        assert_eq!(code(&world.plan()), 0, "{mode}");
        assert!(world.plan().warnings.iter().any(|warning| warning.contains("activated again")), "{mode}");
        world.target.guest_cpus.as_mut().unwrap().modes.remove(mode);
        let refusal = world.plan().refusal().unwrap();
        assert_eq!(refusal.code.number(), 1013, "{mode}");
        assert!(refusal.message.contains(mode) && refusal.help[0].contains("custom"), "{refusal:?}");
    }
}

/// libvirt writes `check='none'` into definitions that name no CPU: those start wherever qemu does.
#[test]
fn a_cpu_that_nobody_checks_is_a_warning() {
    let plan = asks("<cpu mode='custom' match='exact' check='none'><model>qemu64</model></cpu>").plan();
    assert_eq!(code(&plan), 0);
    assert!(plan.warnings.iter().any(|warning| warning.contains("sees less")), "{:?}", plan.warnings);
}

#[test]
fn what_the_target_is_asked_about_is_what_the_copy_runs_on() {
    let mut world = asks("<cpu mode='host-model'/>");
    world.target.capabilities[0].machines = vec!["pc-q35-6.2".to_owned()];
    let there = |world: &World| platform_there(&world.request, &world.source, &world.target.capabilities).unwrap();
    assert_eq!(there(&world), None, "it cannot run there at all");
    world.request.any_machine = true;
    let platform = there(&world).unwrap();
    assert_eq!(platform.machine.as_deref(), Some("pc-q35-6.2"));
    assert_eq!(platform.emulator.as_deref(), Some("/usr/bin/qemu-system-x86_64"));
    assert_eq!(there(&super::world()), None, "who asks for no CPU asks nothing");
}

#[test]
fn capabilities_of_cpus_are_read() {
    let cpus = Cpus::from_xml(TOLD).unwrap();
    assert_eq!(cpus.modes.len(), 4);
    assert_eq!((cpus.models.get("pentium3"), cpus.models.get("Westmere")), (Some(&Some(true)), Some(&Some(false))));
    assert!(cpus.lacking.contains("pni") && !cpus.lacking.contains("x2apic"));
    assert_eq!(Cpus::from_xml("<capabilities/>").unwrap_err().code.number(), 1009);
    assert!(Cpus::from_xml("<domainCapabilities/>").unwrap().modes.is_empty());
}
