//! Serial ports, consoles and channels: formatdomain, "Consoles, serial, parallel & channel devices".

use super::Domain;
use super::edit::Edits;
use super::refuse::cannot;
use super::tree::Element;
use crate::error::Error;
use crate::name::SourceName;

/// Elements that have a character device behind them.
const WITH_CHARDEV: [&str; 6] = ["serial", "parallel", "console", "channel", "redirdev", "smartcard"];

/// Ends that exist for each machine by itself, so two machines never meet in them.
const OWN_ENDS: [&str; 8] = ["pty", "null", "vc", "stdio", "spicevmc", "spiceport", "dbus", "qemu-vdagent"];

/// Where libvirt itself puts the sockets of channels, one directory for each machine.
const LIBVIRT_CHANNELS: [&str; 2] = ["/var/lib/libvirt/qemu/channel/", "/run/libvirt/qemu/channel/"];

/// Character devices whose other end belongs to the source's host.
pub(super) fn refusals(domain: &Domain) -> Vec<Error> {
    let devices = domain.devices().iter().filter(|device| WITH_CHARDEV.iter().any(|name| device.is(name)));
    // The first console only repeats the first serial port.
    let devices = devices.filter(|device| {
        let repeats = device.is("console") && device.attr_at(&["target"], "type") == Some("serial");
        !(repeats && domain.devices_named("serial").next().is_some())
    });
    devices.filter_map(|device| refuse_end(device, domain.name())).chain(refuse_logs(domain)).collect()
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

fn refuse_logs(domain: &Domain) -> Vec<Error> {
    let logs = domain.devices().iter().flat_map(|device| device.all("log")).filter_map(|log| log.attr("file"));
    let refuse = |path: &str| {
        let help = "Remove the <log> element from the source machine, or name another file in a definition of your own";
        cannot(format!("a console is logged to {path}, which the copy would share"), help).with("path", path)
    };
    logs.map(refuse).collect()
}

/// Lets libvirt name the sockets anew that carry the source's name.
pub(super) fn edit(domain: &Domain, edits: &mut Edits<'_>) {
    for channel in domain.devices_named("channel").filter(|channel| channel.attr("type") == Some("unix")) {
        channel.all("source").filter(|source| source.attr("path").is_some()).for_each(|source| edits.remove(source));
    }
}
