//! Serial ports, consoles and channels: formatdomain, "Consoles, serial, parallel & channel devices".

use super::Domain;
use super::edit::Edits;
use super::refuse::cannot;
use super::tree::Element;
use crate::error::Error;
use crate::name::{SourceName, VmName};

/// Elements that have a character device behind them.
const WITH_CHARDEV: [&str; 6] = ["serial", "parallel", "console", "channel", "redirdev", "smartcard"];

/// Ends that exist for each machine by itself, so two machines never meet in them; a file gets a name of its own.
const OWN_ENDS: [&str; 9] = ["pty", "null", "vc", "stdio", "spicevmc", "spiceport", "dbus", "qemu-vdagent", "file"];

/// Where libvirt itself puts the sockets of channels, one directory for each machine.
const LIBVIRT_CHANNELS: [&str; 2] = ["/var/lib/libvirt/qemu/channel/", "/run/libvirt/qemu/channel/"];

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
    devices.filter_map(|device| refuse_end(device, domain.name())).collect()
}

fn refuse_end(device: &Element, name: &SourceName) -> Option<Error> {
    let kind = device.attr("type").unwrap_or("pty");
    let is_own = OWN_ENDS.contains(&kind) || (device.is("channel") && kind == "unix" && socket_is_own(device, name));
    if is_own {
        return None;
    }
    let end = device.attr_at(&["source"], "path").unwrap_or("an address of the host");
    let message = format!("a <{}> of type {kind:?} leads to {end}, which the copy would share", device.name);
    Some(cannot(message, "Give the source machine one of type 'pty' instead").with("device", &device.name))
}

/// Whether a channel's socket is named after the machine, or left to libvirt to name, as it does for channels alone.
fn socket_is_own(device: &Element, name: &SourceName) -> bool {
    let Some(source) = device.child("source") else { return true };
    let path = source.attr("path").unwrap_or_default();
    let names_machine = path.split('/').any(|part| part.contains(name.as_str()));
    let is_libvirts = LIBVIRT_CHANNELS.iter().any(|prefix| path.starts_with(prefix));
    source.attr("mode") != Some("connect") && (path.is_empty() || names_machine || is_libvirts)
}

/// Lets libvirt name the sockets anew that carry the source's name, and gives files names of the new machine's own.
/// Tells which files.
pub(super) fn edit(domain: &Domain, new_name: &VmName, edits: &mut Edits<'_>) -> Vec<String> {
    for channel in domain.devices_named("channel").filter(|channel| channel.attr("type") == Some("unix")) {
        channel.all("source").filter(|source| source.attr("path").is_some()).for_each(|source| edits.remove(source));
    }
    let mut notes = Vec::new();
    for device in domain.devices().iter().filter(|device| WITH_CHARDEV.iter().any(|name| device.is(name))) {
        let ends = device.all("source").filter(|_| device.attr("type") == Some("file")).map(|end| (end, "path"));
        for (element, attribute) in ends.chain(device.all("log").map(|log| (log, "file"))) {
            let Some(old) = element.attr(attribute) else { continue };
            let new = own_file(old, domain.name(), new_name);
            if new != old {
                edits.set_attribute(element, attribute, &new);
                notes.push(format!("what the <{}> writes goes to {new}", device.name));
            }
        }
    }
    notes.sort();
    notes.dedup();
    notes
}

/// A file of the new machine's own in the same directory, if that is one for such files: two machines never write to one file.
fn own_file(path: &str, old: &SourceName, new: &VmName) -> String {
    let (dir, file) = path.rsplit_once('/').unwrap_or(("", path));
    let is_for_output = OUTPUT.iter().any(|place| path.starts_with(place)) && !path.split('/').any(|part| part == "..");
    let dir = if is_for_output { dir } else { LIBVIRT_LOGS };
    if old.as_str() == new.as_str() {
        return format!("{dir}/{file}");
    }
    let own = if file.contains(old.as_str()) {
        file.replacen(old.as_str(), new.as_str(), 1)
    } else {
        format!("{new}-{file}")
    };
    format!("{dir}/{own}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_a_name_of_the_new_machines_own() {
        let (old, new) = ("web1".parse().unwrap(), "web1_clone".parse().unwrap());
        for (path, own) in [
            ("/var/log/web1-console.log", "/var/log/web1_clone-console.log"),
            ("/srv/logs/serial.log", "/srv/logs/web1_clone-serial.log"),
        ] {
            assert_eq!(own_file(path, &old, &new), own);
        }
        assert_eq!(own_file("/srv/b", &old, &"web1".parse().unwrap()), "/srv/b");
    }

    #[test]
    fn what_a_guest_says_is_written_where_nobody_believes_it() {
        let (old, new) = ("web1".parse().unwrap(), "web1_clone".parse().unwrap());
        for path in ["/etc/cron.d/job", "/usr/local/bin/job", "/var/log/../../etc/cron.d/job", "job"] {
            assert_eq!(own_file(path, &old, &new), "/var/log/libvirt/qemu/web1_clone-job", "{path}");
            assert_eq!(own_file(path, &old, &"web1".parse().unwrap()), "/var/log/libvirt/qemu/job", "{path}");
        }
    }
}
