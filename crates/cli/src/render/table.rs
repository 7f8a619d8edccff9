//! Machines as text, and tables.

use std::collections::BTreeMap;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use kvm_clone_core::inventory::{Machine, MachineDisk, MachineNetwork, PointOf, ReplicaOf};
use kvm_clone_core::size::ByteSize;

use super::harmless;
use super::paint::Paint;

type Hosts = BTreeMap<String, Vec<Machine>>;

/// A line for each machine; the host only where there are several.
pub(crate) fn machines_table(hosts: &Hosts, paint: Paint) -> String {
    let several = hosts.len() > 1;
    let header = ["NAME", "STATE", "VCPUS", "MEMORY", "DISKS", "NETWORKS", "REPLICA OF"].map(str::to_owned);
    let of_host = |(host, machines): (&String, &Vec<Machine>)| {
        machines.iter().map(|machine| row(several, host, cells(machine))).collect::<Vec<_>>()
    };
    plain(row(several, "HOST", header), hosts.iter().flat_map(of_host), paint)
}

/// A table without lines, its header standing out.
pub(super) fn plain(header: Vec<String>, rows: impl IntoIterator<Item = Vec<String>>, paint: Paint) -> String {
    let mut table = Table::new();
    // Lines are left as long as they are: they are for `grep` too.
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    table.set_header(header).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for (index, line) in table.lines().enumerate() {
        let line = line.trim_end();
        text += &if index == 0 { paint.strong(line) } else { line.to_owned() };
        text.push('\n');
    }
    text
}

fn row(several: bool, host: &str, cells: [String; 7]) -> Vec<String> {
    several.then(|| host.to_owned()).into_iter().chain(cells).collect()
}

fn cells(machine: &Machine) -> [String; 7] {
    let sizes: Vec<u64> = machine.disks.iter().filter_map(|disk| disk.size).collect();
    let disks = match (machine.disks.len(), sizes.iter().sum()) {
        (count, 0) => count.to_string(),
        (count, total) => format!("{count}, {}", ByteSize(total)),
    };
    let networks: Vec<&str> = machine.networks.iter().filter_map(|net| net.network.as_deref()).collect();
    let replica = machine.replica_of.as_ref();
    [
        harmless(machine.name.as_str()),
        machine.state.to_string(),
        machine.vcpus.to_string(),
        ByteSize(machine.memory << 20).to_string(),
        disks,
        dash(&harmless(&networks.join(", "))),
        replica.map_or_else(|| "-".to_owned(), |of| harmless(&replica_words(of))),
    ]
}

fn replica_words(of: &ReplicaOf) -> String {
    let kept = if of.points.is_empty() { String::new() } else { format!(", {} old point(s)", of.points.len()) };
    let incomplete = if of.incomplete { " (incomplete)" } else { "" };
    format!("{} on {}{incomplete}{kept}", of.name, of.host)
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// All that is known of each machine.
pub(crate) fn machines_list(hosts: &Hosts, paint: Paint) -> String {
    let blocks: Vec<String> = hosts.values().flatten().map(|machine| block(machine, paint)).collect();
    blocks.join("\n")
}

fn block(machine: &Machine, paint: Paint) -> String {
    let mut text = format!("{} on {}\n", paint.strong(&harmless(machine.name.as_str())), machine.host);
    let mut line = |name: &str, value: String| text += &format!("  {name:<8} {}\n", harmless(&value));
    line("uuid", machine.uuid.to_string());
    line("state", machine.state.to_string());
    line("memory", ByteSize(machine.memory << 20).to_string());
    line("vcpus", machine.vcpus.to_string());
    machine.disks.iter().for_each(|disk| line("disk", disk_words(disk)));
    machine.networks.iter().for_each(|network| line("network", network_words(network)));
    if let Some(of) = &machine.replica_of {
        let held = if of.incomplete {
            "incomplete: out of service until it is synced again".to_owned()
        } else {
            format!("as it was at {}", of.point)
        };
        line("replica", format!("of {} on {}, {held}", of.name, of.host));
        of.points.iter().for_each(|kept| line("point", point_words(kept)));
    }
    text
}

fn point_words(kept: &PointOf) -> String {
    let mut words = vec![kept.point.clone()];
    words.extend(kept.bytes.map(|bytes| format!("takes {}", ByteSize(bytes))));
    words.extend(kept.images.iter().map(|(disk, image)| format!("{disk} {} ({})", image.path, image.format)));
    words.join(", ")
}

fn disk_words(disk: &MachineDisk) -> String {
    let mut words = vec![disk.target.to_string(), disk.path.clone().unwrap_or_else(|| "empty".to_owned())];
    words.extend(disk.format.clone());
    words.extend(disk.size.map(|size| ByteSize(size).to_string()));
    words.extend(disk.pool.as_ref().map(|pool| format!("pool {pool}")));
    words.join(", ")
}

fn network_words(network: &MachineNetwork) -> String {
    let of = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name} {value}"));
    let mut words = vec![network.network.clone().unwrap_or_else(|| "unplugged".to_owned())];
    words.extend(of("mac", &network.mac_address));
    words.extend(of("ip", &network.ip_address));
    words.extend(of("interface", &network.interface));
    words.join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kvm_clone_core::inventory::{ImageFormat, MachineState, PointImage};
    use uuid::Uuid;

    use super::*;

    fn machine(name: &str, host: &str) -> Machine {
        let disk = MachineDisk {
            path: Some("/pool/web1.qcow2".into()),
            size: Some(10 << 30),
            format: Some("qcow2".into()),
            target: "vda".parse().unwrap(),
            pool: Some("default".into()),
        };
        let network = MachineNetwork {
            interface: None,
            mac_address: Some("52:54:00:00:00:01".into()),
            network: Some("default".into()),
            ip_address: None,
        };
        Machine {
            name: name.parse().unwrap(),
            uuid: Uuid::nil(),
            state: MachineState::Stopped,
            memory: 2048,
            vcpus: 2,
            disks: vec![disk],
            networks: vec![network],
            host: host.into(),
            replica_of: None,
        }
    }

    #[test]
    fn machines_are_shown_as_a_table_and_as_a_list() {
        let one =
            Hosts::from([("alpha".into(), vec![machine("web1", "alpha"), machine("a much longer name", "alpha")])]);
        insta::assert_snapshot!("table_of_one_host", machines_table(&one, Paint { on: false }));
        insta::assert_snapshot!("list", machines_list(&one, Paint { on: false }));
        let two = Hosts::from([("alpha".into(), vec![machine("web1", "alpha")]), ("beta".into(), vec![])]);
        insta::assert_snapshot!("table_of_two_hosts", machines_table(&two, Paint { on: false }));
        let kept = |point: &str, bytes| PointOf {
            point: point.into(),
            age_seconds: Some(60),
            bytes,
            images: [("vda".parse().unwrap(), PointImage { path: "/pool/a.qcow2".into(), format: ImageFormat::Qcow2 })]
                .into(),
        };
        let replica_of = Some(ReplicaOf {
            host: "alpha".into(),
            name: "web1".parse().unwrap(),
            point: "2030-01-03T03:04:05Z".into(),
            age_seconds: Some(1),
            incomplete: false,
            points: vec![kept("2030-01-02T03:04:05Z", Some(3 << 20)), kept("2030-01-01T03:04:05Z", None)],
        });
        let replica = Hosts::from([("beta".into(), vec![Machine { replica_of, ..machine("standby", "beta") }])]);
        insta::assert_snapshot!("table_of_a_replica", machines_table(&replica, Paint { on: false }));
        insta::assert_snapshot!("list_of_a_replica", machines_list(&replica, Paint { on: false }));
    }
}
