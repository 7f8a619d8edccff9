//! Serial ports, consoles and channels: formatdomain, "Consoles, serial, parallel & channel devices".

use super::Domain;
use super::edit::Edits;
use super::refuse::cannot;
use super::tree::Element;
use super::which::end;
use crate::error::Error;

/// Elements that have a character device behind them.
pub(super) const WITH_CHARDEV: [&str; 6] = ["serial", "parallel", "console", "channel", "redirdev", "smartcard"];

/// Ends that exist for each machine by itself, so two machines never meet in them; a file gets a name of its own.
const OWN_ENDS: [&str; 9] = ["pty", "null", "vc", "stdio", "spicevmc", "spiceport", "dbus", "qemu-vdagent", "file"];

/// Where libvirt and what stands on it (oVirt, CloudStack) put the sockets of channels, each for one machine.
const LIBVIRT_SOCKETS: [&str; 3] = ["/var/lib/libvirt/qemu/", "/run/libvirt/qemu/", "/var/run/libvirt/qemu/"];

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

/// Lets libvirt name the sockets of channels anew. Tells which.
pub(super) fn edit(domain: &Domain, edits: &mut Edits<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for channel in domain.devices_named("channel").filter(|channel| channel.attr("type") == Some("unix")) {
        for (source, path) in channel.all("source").filter_map(|source| Some((source, source.attr("path")?))) {
            edits.remove(source);
            let name = channel.attr_at(&["target"], "name").unwrap_or("without a name");
            notes.push(format!("the channel {name} gets a socket of its own instead of {path}"));
        }
    }
    notes
}
