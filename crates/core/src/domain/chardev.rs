//! Serial ports, consoles and channels: formatdomain, "Consoles, serial, parallel & channel devices".

use std::collections::{BTreeMap, BTreeSet};

use super::edit::Edits;
use super::refuse::cannot;
use super::tree::Element;
use super::which::end;
use super::{Domain, Transform};
use crate::error::Error;
use crate::name::{SourceName, VmName};

/// Elements that have a character device behind them.
const WITH_CHARDEV: [&str; 6] = ["serial", "parallel", "console", "channel", "redirdev", "smartcard"];

/// Ends that exist for each machine by itself, so two machines never meet in them; a file gets a name of its own.
const OWN_ENDS: [&str; 9] = ["pty", "null", "vc", "stdio", "spicevmc", "spiceport", "dbus", "qemu-vdagent", "file"];

/// Where libvirt and what stands on it (oVirt, CloudStack) put the sockets of channels, each for one machine.
const LIBVIRT_SOCKETS: [&str; 3] = ["/var/lib/libvirt/qemu/", "/run/libvirt/qemu/", "/var/run/libvirt/qemu/"];

/// Where a machine may write what its guest says: the definition is the source's, and libvirt writes as root.
const OUTPUT: [&str; 9] =
    ["/var/log/", "/var/lib/libvirt/", "/srv/", "/home/", "/mnt/", "/media/", "/data/", "/tmp/", "/var/tmp/"];
/// Where what would be written elsewhere goes.
const LIBVIRT_LOGS: &str = "/var/log/libvirt/qemu";

/// Character devices whose other end belongs to the source's host.
pub(super) fn refusals(domain: &Domain) -> Vec<Error> {
    let devices = domain.devices().iter().filter(|device| WITH_CHARDEV.iter().any(|name| device.is(name)));
    // The first console only repeats the first serial port.
    let devices = devices.filter(|device| {
        let repeats = device.is("console") && device.attr_at(&["target"], "type") == Some("serial");
        !(repeats && domain.devices_named("serial").next().is_some())
    });
    devices.filter_map(|device| refuse_end(device, domain)).collect()
}

fn refuse_end(device: &Element, domain: &Domain) -> Option<Error> {
    let kind = device.attr("type").unwrap_or("pty");
    if OWN_ENDS.contains(&kind) || socket_is_own(device, domain) {
        return None;
    }
    let connects = device.all("source").find(|source| source.attr("mode") == Some("connect"));
    let end = connects.or_else(|| device.child("source")).and_then(end);
    let end = end.unwrap_or_else(|| "an address of the host".to_owned());
    let message = format!("a <{}> of type {kind:?} leads to {end}, which the copy would share", device.name);
    Some(cannot(message, way_out(device)).with("device", &device.name))
}

fn way_out(device: &Element) -> &'static str {
    let is_channel = is_virtio_channel(device) && device.attr_at(&["source"], "mode") != Some("connect");
    match device.name.as_str() {
        "channel" if is_channel => {
            "Make it one of type 'unix' without <source> (virsh edit at the source): libvirt then gives each machine a \
             socket of its own, as a guest agent's channel needs"
        }
        "channel" | "redirdev" | "smartcard" => "Remove it from the source machine",
        _ => "Give the source machine one of type 'pty' instead",
    }
}

/// formatdomain, "Channel": a guest sees it as a virtio port, which is what agents talk through.
fn is_virtio_channel(device: &Element) -> bool {
    device.is("channel") && device.attr_at(&["target"], "type") == Some("virtio")
}

/// Whether a channel's socket is the machine's alone, so that libvirt can name it anew: it does so for virtio channels
/// that name none.
fn socket_is_own(device: &Element, domain: &Domain) -> bool {
    if !device.is("channel") || device.attr("type") != Some("unix") {
        return false;
    }
    match device.child("source").map(|source| (source.attr("mode"), source.attr("path").unwrap_or_default())) {
        None => true,
        Some((mode, "")) => mode != Some("connect"),
        Some((mode, path)) => mode == Some("bind") && is_virtio_channel(device) && is_named_after(path, domain),
    }
}

fn is_named_after(path: &str, domain: &Domain) -> bool {
    let uuid = domain.uuid().to_string();
    let names_machine = path.split('/').any(|part| part.contains(domain.name().as_str()) || part.contains(&uuid));
    names_machine || LIBVIRT_SOCKETS.iter().any(|prefix| path.starts_with(prefix))
}

/// Lets libvirt name the sockets of channels anew, and gives files names of the new machine's own. Tells which.
pub(super) fn edit(domain: &Domain, wanted: &Transform, edits: &mut Edits<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for channel in domain.devices_named("channel").filter(|channel| channel.attr("type") == Some("unix")) {
        for (source, path) in channel.all("source").filter_map(|source| Some((source, source.attr("path")?))) {
            edits.remove(source);
            let name = channel.attr_at(&["target"], "name").unwrap_or("without a name");
            notes.push(format!("the channel {name} gets a socket of its own instead of {path}"));
        }
    }
    let mut own: BTreeMap<&str, String> = BTreeMap::new();
    for Output { device, element, attribute, path } in outputs(domain) {
        let new = match own.get(path) {
            Some(new) => new.clone(),
            None => apart_from(&own, own_file(path, domain.name(), &wanted.name, &wanted.paths_present)),
        };
        if new != path {
            edits.set_attribute(element, attribute, &new);
            let missing = directory(path).filter(|dir| directory(&new) != Some(*dir));
            let why = missing.map(|dir| format!(": the target has no {dir}")).unwrap_or_default();
            notes.push(format!("what the <{}> writes goes to {new}{why}", device.name));
        }
        own.insert(path, new);
    }
    notes.sort();
    notes.dedup();
    notes
}

/// A file that a console or a log writes, and where a definition says so.
struct Output<'a> {
    device: &'a Element,
    element: &'a Element,
    attribute: &'static str,
    path: &'a str,
}

fn outputs(domain: &Domain) -> impl Iterator<Item = Output<'_>> {
    let devices = domain.devices().iter().filter(|device| WITH_CHARDEV.iter().any(|name| device.is(name)));
    devices.flat_map(|device| {
        let ends = device.all("source").filter(|_| device.attr("type") == Some("file")).map(|end| (end, "path"));
        let places = ends.chain(device.all("log").map(|log| (log, "file")));
        places.filter_map(move |(element, attribute)| {
            Some(Output { device, element, attribute, path: element.attr(attribute)? })
        })
    })
}

/// The directories of these files that a copy's may lie in, if the target has them.
pub(super) fn directories(domain: &Domain) -> impl Iterator<Item = String> {
    outputs(domain).filter_map(|output| directory(output.path)).map(str::to_owned)
}

/// The directory of a file, if it is one for such files.
fn directory(path: &str) -> Option<&str> {
    let is_for_output = OUTPUT.iter().any(|place| path.starts_with(place)) && !path.split('/').any(|part| part == "..");
    path.rsplit_once('/').map(|(dir, _)| dir).filter(|_| is_for_output)
}

/// A file of the new machine's own: two machines never write to one. It lies in the directory of the source's, or where libvirt
/// has such files; there are those of all machines, so its name says whose it is.
fn own_file(path: &str, old: &SourceName, new: &VmName, there: &BTreeSet<String>) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let kept = directory(path).filter(|dir| *dir == LIBVIRT_LOGS || there.contains(*dir));
    let dir = kept.unwrap_or(LIBVIRT_LOGS);
    if old.as_str() == new.as_str() && kept.is_some() {
        return path.to_owned();
    }
    let own = if file.contains(old.as_str()) {
        file.replacen(old.as_str(), new.as_str(), 1)
    } else {
        format!("{new}-{file}")
    };
    format!("{dir}/{own}")
}

/// Files of one name in several directories may meet in one.
fn apart_from(others: &BTreeMap<&str, String>, path: String) -> String {
    let (dir, file) = path.rsplit_once('/').unwrap_or(("", &path));
    let names = std::iter::once(path.clone()).chain((2..).map(|number: u32| format!("{dir}/{number}-{file}")));
    let mut free = names.filter(|name| others.values().all(|other| other != name));
    free.next().unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn there() -> BTreeSet<String> {
        ["/var/log", "/srv/logs", "/srv", "/etc/cron.d", "/usr/local/bin"].map(str::to_owned).into()
    }

    fn own(path: &str, new: &str) -> String {
        own_file(path, &"web1".parse().unwrap(), &new.parse().unwrap(), &there())
    }

    #[test]
    fn a_file_gets_a_name_of_the_new_machines_own() {
        for (path, expected) in [
            ("/var/log/web1-console.log", "/var/log/web1_clone-console.log"),
            ("/srv/logs/serial.log", "/srv/logs/web1_clone-serial.log"),
        ] {
            assert_eq!(own(path, "web1_clone"), expected);
        }
        assert_eq!(own("/srv/b", "web1"), "/srv/b");
    }

    #[test]
    fn what_a_guest_says_is_written_where_nobody_believes_it() {
        for path in ["/etc/cron.d/job", "/usr/local/bin/job", "/var/log/../../etc/cron.d/job", "job"] {
            assert_eq!(own(path, "web1_clone"), "/var/log/libvirt/qemu/web1_clone-job", "{path}");
            assert_eq!(own(path, "web1"), "/var/log/libvirt/qemu/web1-job", "{path}");
        }
    }

    #[test]
    fn a_directory_that_the_target_lacks_becomes_that_of_libvirts_logs() {
        assert_eq!(own("/srv/log/a/web1.log", "web1_clone"), "/var/log/libvirt/qemu/web1_clone.log");
        assert_eq!(own("/srv/log/a/console.log", "web1"), "/var/log/libvirt/qemu/web1-console.log");
        assert_eq!(own("/var/log/libvirt/qemu/tty.log", "web1"), "/var/log/libvirt/qemu/tty.log");
    }
}
