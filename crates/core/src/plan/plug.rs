//! Where the network interfaces go.

use super::check::Checks;
use super::request::NetworkTarget;
use super::{Facts, Identity, port};
use crate::domain::{Interface, Plug};
use crate::error::Error;
use crate::inventory::{Network, TargetHost};
use crate::name::ResourceName;
use crate::quote::quoted;

/// Checks that everything an interface is plugged into is there, and says what is plugged in anew.
pub(super) fn check(facts: &Facts<'_>, checks: &mut Checks) -> Vec<(String, Plug)> {
    let interfaces = facts.domain.interfaces();
    let is_on = |old: &String| interfaces.iter().any(|nic| nic.source.as_ref() == Some(old));
    let unknown = facts.request.networks.iter().filter(|(old, _)| !is_on(old));
    let mut failures: Vec<Error> = unknown.map(|(old, _)| unknown_mapping(old, &interfaces)).collect();
    let mut plugs = Vec::new();
    for (old, new) in all(facts).filter(|(old, _)| is_on(old)) {
        match resolve(old, new, &interfaces, facts.target) {
            Ok(plug) => plugs.push((old.clone(), plug)),
            Err(error) => failures.push(error),
        }
    }
    let stays = |nic: &&Interface| !all(facts).any(|(old, _)| nic.source.as_ref() == Some(old));
    let staying = interfaces.iter().filter(stays);
    failures.extend(
        staying.filter_map(|nic| refuse_missing(nic, facts.target).or_else(|| port::refuse(nic, facts.target))),
    );
    checks.all("networks", failures, format!("{} interface(s) have a place", interfaces.len()));
    warn_inactive(facts, &interfaces, &plugs, checks);
    if facts.is_same_host() && facts.request.macs == Identity::Kept {
        checks.warn("networks", "source and copy have the same MAC addresses on one host: never run both", None);
    }
    plugs
}

/// Where networks go, those that were asked for first.
pub(super) fn all<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = &'a (String, NetworkTarget)> {
    let asked = &facts.request.networks;
    let usual = facts.request.usual_networks.iter();
    asked.iter().chain(usual.filter(|(old, _)| !asked.iter().any(|(other, _)| other == old)))
}

fn unknown_mapping(old: &str, interfaces: &[Interface]) -> Error {
    let known: Vec<&str> = interfaces.iter().filter_map(|nic| nic.source.as_deref()).collect();
    Error::validation(format!("no interface of the machine is plugged into {old:?}"))
        .with("network", old)
        .help(format!("Its interfaces are on: {}", known.join(", ")))
}

/// A name means a network of libvirt first, then a bridge, then a device, which only those can stand on that stood on one.
fn resolve(old: &str, wanted: &NetworkTarget, all: &[Interface], target: &TargetHost) -> Result<Plug, Error> {
    let name = match wanted {
        NetworkTarget::None if target.makes_devices => return Ok(Plug::Nowhere),
        NetworkTarget::None => return Ok(Plug::User),
        NetworkTarget::Named(name) => name.as_str(),
    };
    if let Some(network) = network(target, name) {
        return Ok(Plug::Network(network.clone()));
    }
    if target.bridges.contains(name) {
        return Ok(Plug::Bridge(name.to_owned()));
    }
    let are_direct = all.iter().filter(|nic| nic.source.as_deref() == Some(old)).all(|nic| nic.kind == "direct");
    if are_direct && target.links.contains(name) {
        return Ok(Plug::Device(name.to_owned()));
    }
    let what = if are_direct { "network, bridge or device" } else { "network or bridge" };
    Err(missing(what, name, old, are_direct, target))
}

pub(super) fn network<'a>(target: &'a TargetHost, name: &str) -> Option<&'a Network> {
    target.networks.iter().find(|network| network.name == name)
}

fn refuse_missing(nic: &Interface, target: &TargetHost) -> Option<Error> {
    let name = nic.source.as_deref()?;
    let (what, is_there) = match nic.kind.as_str() {
        "network" => ("network", network(target, name).is_some()),
        "bridge" => ("bridge", target.bridges.contains(name)),
        "direct" => ("network device", target.links.contains(name)),
        _ => return None,
    };
    (!is_there).then(|| missing(what, name, name, nic.kind == "direct", target))
}

/// `old` is what the interfaces that want it are plugged into at the source.
fn missing(what: &str, name: &str, old: &str, are_direct: bool, target: &TargetHost) -> Error {
    let mut there: Vec<&str> = target.networks.iter().map(|network| network.name.as_str()).collect();
    there.extend(target.bridges.iter().map(String::as_str));
    if are_direct {
        there.extend(target.links.iter().map(String::as_str).filter(|link| can_be_stood_on(link, target)));
    }
    // A name that cannot be written on the command line is not offered.
    there.retain(|name| name.parse::<ResourceName>().is_ok());
    Error::insufficient(format!("the target has no {what} {name:?}"))
        .with("network", name)
        .with("host", &target.host_name)
        .help(format!("Map it with --network {old}=NEW, or unplug it with --network {old}=none"))
        .help(format!("The target has: {}", there.join(", ")))
}

/// Not the loopback, nor what libvirt makes for its guests; bridges are named already.
fn can_be_stood_on(link: &str, target: &TargetHost) -> bool {
    let is_a_guests = ["vnet", "macvtap"].iter().any(|prefix| link.starts_with(prefix));
    link != "lo" && !is_a_guests && !target.bridges.contains(link)
}

fn warn_inactive(facts: &Facts<'_>, interfaces: &[Interface], plugs: &[(String, Plug)], checks: &mut Checks) {
    let used = |name: &str| {
        let by_plug = plugs.iter().any(|(_, plug)| matches!(plug, Plug::Network(network) if network.name == name));
        let is_mapped = plugs.iter().any(|(old, _)| old == name);
        let stays = |nic: &Interface| nic.kind == "network" && nic.source.as_deref() == Some(name);
        by_plug || (!is_mapped && interfaces.iter().any(stays))
    };
    for network in facts.target.networks.iter().filter(|network| !network.active && used(&network.name)) {
        let message = format!("network {} is not active at the target, so the machine cannot start", network.name);
        checks.warn("networks", message, Some(&format!("virsh net-start {}", quoted(&network.name))));
    }
}
