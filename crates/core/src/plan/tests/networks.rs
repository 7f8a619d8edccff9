//! Where interfaces go, and what they leave behind.

use super::checks::{Change, table};
use super::reducing::xml;
use super::*;

fn plugged(w: &mut World, kind: &str, name: &str) {
    w.add_device(&format!("<interface type='{kind}'><source {kind}='{name}' dev='{name}'/></interface>"));
}

fn map(w: &mut World, old: &str, new: &str) {
    let new = if new == "none" { NetworkTarget::None } else { NetworkTarget::Named(new.parse().unwrap()) };
    w.request.networks.push((old.to_owned(), new));
}

#[test]
fn networks() {
    table(&[
        ("there", |w| plugged(w, "network", "default"), 0),
        ("missing", |w| plugged(w, "network", "lan"), 1005),
        ("a bridge is no network", |w| plugged(w, "network", "br0"), 1005),
        ("a bridge", |w| plugged(w, "bridge", "br0"), 0),
        ("a missing bridge", |w| plugged(w, "bridge", "br9"), 1005),
        ("a missing device", |w| plugged(w, "direct", "eth9"), 1005),
        ("a device", |w| plugged(w, "direct", "eth0"), 0),
    ]);
}

#[test]
fn mapped_networks() {
    for (kind, old, new, expected) in [
        ("network", "lan", "default", 0),
        ("network", "lan", "br0", 0),
        ("network", "lan", "eth0", 1005),
        ("network", "lan", "x", 1005),
        ("direct", "eth9", "eth0", 0),
        ("direct", "eth9", "br0", 0),
        ("bridge", "br9", "none", 0),
    ] {
        let plan = world().with(|w| {
            plugged(w, kind, old);
            map(w, old, new);
        });
        assert_eq!(code(&plan), expected, "{kind} {old} to {new}: {:?}", plan.refusal());
    }
    table(&[("a mapping of nothing", |w| map(w, "typo", "default"), 1007)]);
}

#[test]
fn what_unplugging_means_depends_on_libvirt() {
    for (makes_devices, kind) in [(true, "ethernet"), (false, "user")] {
        let plan = world().with(|w| {
            let more = "<mtu size='9000'/><port isolated='yes'/><coalesce/><bandwidth/><virtualport/><vlan/>";
            w.add_device(&format!(
                "<interface type='bridge'><source bridge='br9'/>{more}<model type='e1000'/></interface>"
            ));
            map(w, "br9", "none");
            w.target.makes_devices = makes_devices;
        });
        let nic = format!("<interface type='{kind}'><model type='e1000'/>");
        let unindented = xml(&plan).replace('\n', "").replace("  ", "");
        assert!(unindented.contains(&nic) && unindented.contains("<link state='down'/>"), "{unindented}");
        for left in ["mtu", "port", "coalesce", "bandwidth", "virtualport", "vlan"] {
            assert!(plan.warnings.iter().any(|warning| warning.contains(&format!("the <{left}> of"))), "{left}");
        }
    }
}

/// The plan of a machine with one interface, after this change, and what it tells of it.
fn with_interface(nic: &str, change: Change) -> (ClonePlan, String) {
    let plan = world().with(|w| {
        w.add_device(nic);
        change(w);
    });
    let told = plan.warnings.join("\n");
    (plan, told)
}

#[test]
fn a_device_becomes_another_one_or_something_else_that_is_said() {
    let nic = "<interface type='direct'><source dev='eth9' mode='private'/></interface>";
    let (plan, told) = with_interface(nic, |w| map(w, "eth9", "eth0"));
    assert!(xml(&plan).contains("<interface type='direct'><source dev='eth0' mode='private'/>"), "{}", xml(&plan));
    assert_eq!(told, "");
    for (new, source) in [("default", "<source network='default'/>"), ("br0", "<source bridge='br0'/>")] {
        let (plan, told) = with_interface(
            nic,
            match new {
                "br0" => |w| map(w, "eth9", "br0"),
                _ => |w| map(w, "eth9", "default"),
            },
        );
        assert!(xml(&plan).contains(source), "{}", xml(&plan));
        assert!(told.contains("on eth9, which stands on that device itself, becomes one of type"), "{told}");
    }
    let (plan, _) = with_interface(nic, |_| ());
    let refusal = plan.refusal().unwrap();
    assert!(refusal.help[0].contains("--network eth9=NEW"), "{refusal:?}");
    assert!(refusal.help[1].ends_with("default, br0, eth0"), "{refusal:?}");
    let (plan, _) = with_interface(nic, |w| map(w, "eth9", "eth8"));
    let refusal = plan.refusal().unwrap();
    assert!(refusal.message.contains("no network, bridge or device \"eth8\""), "{refusal}");
    assert!(refusal.help[0].contains("--network eth9=NEW"), "what is asked for is the old name's place: {refusal:?}");
}

#[test]
fn a_port_group_must_be_there() {
    let nic = "<interface type='network'><source network='default' portgroup='eng'/></interface>";
    fn with_group(w: &mut World) {
        w.target.networks[0].port_groups.insert("eng".to_owned());
    }
    let refusal = with_interface(nic, |_| ()).0.refusal().unwrap();
    assert_eq!(refusal.code.number(), 1005);
    assert!(refusal.message.contains("port group \"eng\""), "{refusal}");
    assert!(refusal.help.contains(&"Do without it: --network default=default".to_owned()), "{refusal:?}");
    let (plan, told) = with_interface(nic, with_group);
    assert!(xml(&plan).contains("portgroup='eng'"));
    assert_eq!(told, "");

    let (plan, told) = with_interface(nic, |w| map(w, "default", "default"));
    assert!(!xml(&plan).contains("portgroup"), "{}", xml(&plan));
    assert!(told.contains("the port group \"eng\" of"), "{told}");
    let (plan, told) = with_interface(nic, |w| {
        map(w, "default", "lan");
        w.target.networks.push(Network { port_groups: ["eng".to_owned()].into(), ..network("lan") });
    });
    assert!(xml(&plan).contains("<source network='lan' portgroup='eng'/>"), "{}", xml(&plan));
    assert_eq!(told, "");
    let (_, told) = with_interface(nic, |w| map(w, "default", "br0"));
    assert!(told.contains("the port group \"eng\" of"), "{told}");
}

#[test]
fn vlan_tags_go_where_they_cannot_be() {
    let nic = "<interface type='bridge'><source bridge='ovs'/><vlan><tag id='5'/></vlan><virtualport type='openvswitch'/>\
               </interface>";
    let cases: [(Change, bool); 6] = [
        (|w| map(w, "ovs", "default"), false),
        (|w| map(w, "ovs", "none"), false),
        (|w| map(w, "ovs", "br0"), false),
        (
            |w| {
                map(w, "ovs", "br0");
                w.target.libvirt_version = 11_000_000;
            },
            true,
        ),
        (
            |w| {
                map(w, "ovs", "default");
                w.target.libvirt_version = 11_000_000;
            },
            false,
        ),
        (
            |w| {
                map(w, "ovs", "default");
                w.target.networks[0].vlans = Vlans::Set;
            },
            true,
        ),
    ];
    for (index, (change, stays)) in cases.into_iter().enumerate() {
        let (plan, told) = with_interface(nic, change);
        assert_eq!(xml(&plan).contains("<vlan>"), stays, "{index}: {}", xml(&plan));
        assert_eq!(!told.contains("the <vlan> of"), stays, "{index}: {told}");
        assert!(told.contains("the <virtualport> of"), "{index}: {told}");
    }
    for (mode, stays) in [("passthrough", true), ("bridge", false)] {
        let mut world = world();
        let source = format!("<source dev='eth9' mode='{mode}'/><vlan><tag id='5'/></vlan>");
        world.add_device(&format!("<interface type='direct'>{source}</interface>"));
        map(&mut world, "eth9", "eth0");
        assert_eq!(xml(&world.plan()).contains("<vlan>"), stays, "{mode}");
    }
}

#[test]
fn a_network_filter_must_be_there() {
    let nic = "<interface type='network'><source network='default'/><filterref filter='clean-traffic'/></interface>";
    let refusal = with_interface(nic, |_| ()).0.refusal().unwrap();
    assert_eq!(refusal.code.number(), 1005);
    assert!(refusal.message.contains("no network filter \"clean-traffic\""), "{refusal}");
    assert!(refusal.help.contains(&"Do without it: --network default=default".to_owned()), "{refusal:?}");
    let (plan, told) = with_interface(nic, |w| {
        w.target.network_filters.insert("clean-traffic".to_owned());
    });
    assert!(xml(&plan).contains("<filterref filter='clean-traffic'/>"));
    assert_eq!(told, "");
    let (plan, told) = with_interface(nic, |w| map(w, "default", "default"));
    assert!(!xml(&plan).contains("filterref") && told.contains("the <filterref> of"), "{told}");
}
