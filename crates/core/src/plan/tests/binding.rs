//! Machines that are bound to parts of their host.

use super::*;

/// The source's definition with this in front of its devices, on a target with four CPUs, one node and ten huge pages.
fn bound(more: &'static str) -> World {
    let mut world = world();
    world.source.xml = world.source.xml.replace("<devices>", &format!("{more}<devices>"));
    world.target.topology = Topology {
        cpus: (0..4).collect(),
        nodes: [0].into(),
        huge_pages: [(2 << 20, HugePages { total: 10, free: 1 }), (GIB, HugePages { total: 64, free: 64 })].into(),
        default_huge_page: 2 << 20,
    };
    world
}

#[test]
fn what_is_bound_to_cpus_or_nodes_that_the_target_lacks_is_refused() {
    for (more, expected) in [
        ("<cputune><vcpupin vcpu='0' cpuset='0-3,^2'/></cputune>", 0),
        ("<cputune><vcpupin vcpu='0' cpuset='4'/></cputune>", 1013),
        ("<cputune><emulatorpin cpuset='2-5'/></cputune>", 1013),
        ("<cputune><iothreadpin iothread='1' cpuset='3'/></cputune>", 0),
        ("<cputune><iothreadpin iothread='1' cpuset='3-4'/></cputune>", 1013),
        ("<numatune><memory mode='strict' nodeset='0'/></numatune>", 0),
        ("<numatune><memory mode='strict' nodeset='0-1'/></numatune>", 1013),
        ("<numatune><memnode cellid='0' mode='strict' nodeset='1'/></numatune>", 1013),
    ] {
        let plan = bound(more).plan();
        assert_eq!(code(&plan), expected, "{more}: {:?}", plan.refusal());
        let plan = bound(more).with(|w| w.request.reduction.tuning = true);
        assert_eq!(code(&plan), 0, "left out by word: {more}");
        let unknown = bound(more).with(|w| w.target.topology = Topology::default());
        assert_eq!(code(&unknown), 0, "what is not known does not hinder: {more}");
    }
    let refusal = bound("<cputune><emulatorpin cpuset='2-5'/></cputune>").plan().refusal().unwrap();
    assert!(refusal.message.contains("CPUs 4, 5"), "{refusal}");
    assert!(refusal.help[0].contains("--drop-tuning"), "{:?}", refusal.help);
}

#[test]
fn huge_pages_that_the_target_lacks_are_refused() {
    let pages = "<memoryBacking><hugepages><page size='1' unit='G'/></hugepages></memoryBacking>";
    assert_eq!(code(&bound(pages).plan()), 0);
    let none = "<memoryBacking><hugepages><page size='16' unit='M'/></hugepages></memoryBacking>";
    assert_eq!(code(&bound(none).plan()), 1005);
    let default = "<memoryBacking><hugepages/></memoryBacking>";
    assert_eq!(code(&bound(default).plan()), 1005, "ten of 2 MiB are too few");
    assert_eq!(code(&bound(default).with(|w| w.request.reduction.tuning = true)), 0);
    let scarce = bound(pages).with(|w| w.target.topology.huge_pages.get_mut(&GIB).unwrap().free = 0);
    assert_eq!(code(&scarce), 0);
    assert!(scarce.warnings.iter().any(|warning| warning.contains("0 are free")), "{:?}", scarce.warnings);
}

/// A `small` whose memory is partly a device with this source.
fn with_memory(model: &str, source: &str) -> World {
    let mut world = bound("");
    let target = "<target><size unit='MiB'>32</size><node>0</node></target>";
    world.add_device(&format!("<memory model='{model}'><source>{source}</source>{target}</memory>"));
    world
}

#[test]
fn memory_devices_are_bound_to_pages_and_nodes_too() {
    let dropped = |w: &mut World| w.request.reduction.tuning = true;
    for (model, source, expected, named) in [
        ("dimm", "<nodemask>0</nodemask>", 0, "<nodemask>"),
        ("dimm", "<nodemask>1-3</nodemask>", 1013, "<nodemask>"),
        ("virtio-mem", "<pagesize unit='KiB'>2048</pagesize>", 1005, "<pagesize>"),
        ("dimm", "<pagesize unit='GiB'>1</pagesize><nodemask>0</nodemask>", 0, "<pagesize>"),
        ("dimm", "<pagesize>4</pagesize>", 0, "<pagesize>"),
        ("dimm", "<pagesize unit='KiB'>2048</pagesize><nodemask>1</nodemask>", 1013, "<nodemask>"),
    ] {
        let plan = with_memory(model, source).plan();
        assert_eq!(code(&plan), expected, "{source}: {:?}", plan.refusal());
        let plan = with_memory(model, source).with(dropped);
        assert_eq!(code(&plan), 0, "{source}: {:?}", plan.refusal());
        let xml = plan.target_xml.as_deref().unwrap();
        let device =
            format!("<memory model='{model}'><target><size unit='MiB'>32</size><node>0</node></target></memory>");
        assert!(xml.contains(&device), "{source}: {xml}");
        let said = plan.warnings.iter().any(|warning| warning.contains(&format!("{named} of a <memory> device")));
        assert!(said, "{source}: {:?}", plan.warnings);
    }
}

#[test]
fn pages_of_memory_devices_are_counted_by_themselves() {
    let mut world = with_memory("dimm", "<pagesize unit='GiB'>1</pagesize>");
    let backing = "<memoryBacking><hugepages/></memoryBacking><devices>";
    world.source.xml = world.source.xml.replace("<devices>", backing).replace(">64</memory>", ">52</memory>");
    assert_eq!(code(&world.plan()), 0, "ten of 2 MiB beside a device of 32 MiB: {:?}", world.plan().refusal());
    world.target.topology.huge_pages.get_mut(&GIB).unwrap().total = 0;
    assert_eq!(code(&world.plan()), 1005);
}
