//! Devices that a copy cannot bring, and those that it may not share: formatdomain, "Devices".

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Domain;
use super::edit::Edits;
use super::refuse::{cannot, cannot_carry};
use super::tree::Element;
use super::which::with_article;
use crate::error::Error;

/// Elements of `<devices>` whose other end is hardware or files of the host: what it is, and what can be done.
const HOST_BOUND: [(&str, &str, &str); 5] = [
    ("hostdev", "uses a device of its host", "Leave it out with --drop-hostdev"),
    ("filesystem", "shares a directory of its host", "Leave it out with --drop-fs"),
    ("shmem", "shares memory with other processes of its host", "Remove the shared memory from the source machine"),
    ("lease", "holds a lease of a lock manager", "Remove the lease from the source machine"),
    ("pstore", "keeps crash records in a file of its host", "Remove the pstore device from the source machine"),
];

/// Devices that this version cannot carry, each said once a device.
pub(super) fn refuse_host_bound(domain: &Domain) -> Vec<Error> {
    let refuse = |device: &Element| {
        let (_, what, help) = HOST_BOUND.iter().find(|(name, _, _)| device.is(name))?;
        Some(cannot_carry(device, format!("the machine {what}"), help))
    };
    domain.devices().iter().filter_map(refuse).collect()
}

/// Inputs, random sources and memory that stand on a device or file of the host.
pub(super) fn refuse_host_backed(domain: &Domain) -> Vec<Error> {
    let inputs =
        domain.devices_named("input").filter(|input| matches!(input.attr("type"), Some("passthrough" | "evdev")));
    let randoms = domain.devices_named("rng").filter(|rng| rng.attr_at(&["backend"], "model") == Some("egd"));
    let memories = domain.devices_named("memory").filter(|memory| memory.at(&["source", "path"]).is_some());
    let cards = domain.devices_named("smartcard");
    let cards = cards.filter(|card| matches!(card.attr("mode"), Some("host" | "host-certificates")));
    let refuse = |device: &Element| {
        let message = format!("{} stands on a device, file or socket of its host", with_article(device));
        cannot_carry(device, message, "Remove it from the source machine")
    };
    inputs.chain(randoms).chain(memories).chain(cards).map(refuse).collect()
}

/// formatdomain, "Launch Security": the guest's memory is sealed to the CPU of its host.
pub(super) fn refuse_sealed(domain: &Domain) -> Vec<Error> {
    let refuse = |_: &Element| cannot("the machine's memory is sealed to its host (launchSecurity)", "Copy it by hand");
    domain.root.all("launchSecurity").map(refuse).collect()
}

/// Takes from displays and sockets what only one machine of a host can have.
pub(super) fn edit(domain: &Domain, edits: &mut Edits<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    for graphics in domain.devices_named("graphics") {
        notes.extend(free_port(graphics, edits));
    }
    for cid in domain.devices_named("vsock").filter_map(|vsock| vsock.child("cid")) {
        if cid.attr("auto") != Some("yes") {
            edits.set_attribute(cid, "auto", "yes");
            edits.remove_attribute(cid, "address");
            notes.push("the fixed vsock address becomes automatic".to_owned());
        }
    }
    notes
}

/// formatdomain, "Graphical framebuffers": `-1`, or `autoport`, lets libvirt choose.
fn free_port(graphics: &Element, edits: &mut Edits<'_>) -> Option<String> {
    let kind = graphics.attr("type").unwrap_or_default();
    let is_fixed = |name: &str| graphics.attr(name).is_some_and(|port| port != "-1");
    let has_port = is_fixed("port") || is_fixed("tlsPort");
    if has_port && graphics.attr("autoport") != Some("yes") {
        edits.set_attribute(graphics, "autoport", "yes");
        edits.remove_attribute(graphics, "port");
        edits.remove_attribute(graphics, "tlsPort");
    }
    let has_websocket = is_fixed("websocket");
    if has_websocket {
        edits.set_attribute(graphics, "websocket", "-1");
    }
    // With the path gone and the listener kept, libvirt makes a socket of the machine's own.
    let sockets: Vec<&Element> = graphics.all("listen").filter(|listen| listen.attr("socket").is_some()).collect();
    sockets.iter().for_each(|listen| edits.remove_attribute(listen, "socket"));
    edits.remove_attribute(graphics, "socket");
    let was_fixed = has_port && graphics.attr("autoport") != Some("yes");
    (was_fixed || has_websocket || !sockets.is_empty())
        .then(|| format!("the fixed port or socket of the {kind} display becomes automatic"))
}

/// formatdomain, "Graphical framebuffers": a display cannot listen on an address that its host does not have.
pub(super) fn listen_there(domain: &Domain, addresses: &BTreeSet<IpAddr>, edits: &mut Edits<'_>) -> Vec<String> {
    let is_there = |address: &IpAddr| address.is_unspecified() || address.is_loopback() || addresses.contains(address);
    let lost = |text: &&str| text.parse::<IpAddr>().is_ok_and(|address| !is_there(&address));
    let mut gone = BTreeSet::new();
    for graphics in domain.devices_named("graphics").filter(|_| !addresses.is_empty()) {
        let places = graphics.all("listen").map(|listen| (listen, "address")).chain([(graphics, "listen")]);
        for (element, name) in places {
            if let Some(address) = element.attr(name).filter(lost) {
                edits.set_attribute(element, name, "127.0.0.1");
                gone.insert(address);
            }
        }
    }
    let note = |address| format!("a display listens on 127.0.0.1: the target does not have the address {address}");
    gone.into_iter().map(note).collect()
}

/// formatdomain, "Security label": a fixed label names categories or users of the source's host.
pub(super) fn drop_static_labels(domain: &Domain, edits: &mut Edits<'_>) -> Vec<String> {
    let fixed = domain.root.all("seclabel").filter(|label| label.attr("type") == Some("static"));
    let drop = |label: &Element| {
        edits.remove(label);
        let model = label.attr("model").unwrap_or("security");
        format!("the fixed {model} label is not carried; libvirt gives the copy one of its own")
    };
    fixed.map(drop).collect()
}
