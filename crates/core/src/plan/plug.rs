//! Where the network interfaces go.

use super::check::Checks;
use super::request::NetworkTarget;
use super::{Facts, Identity};
use crate::domain::{Interface, Plug};
use crate::error::Error;
use crate::inventory::TargetHost;
use crate::name::ResourceName;
use crate::quote::quoted;

/// The first libvirt that knows an interface of type `null`: formatdomain, "Network interfaces".
const SINCE_NULL: u64 = 8_007_000;

/// Checks that everything an interface is plugged into is there, and says what is plugged in anew.
pub(super) fn check(facts: &Facts<'_>, checks: &mut Checks) -> Vec<(String, Plug)> {
    let interfaces = facts.domain.interfaces();
    let mut plugs = Vec::new();
    let is_used = |old: &String| interfaces.iter().any(|nic| nic.source.as_ref() == Some(old));
    for (old, _) in facts.request.networks.iter().filter(|(old, _)| !is_used(old)) {
        checks.fail("networks", unknown_mapping(old, &interfaces));
    }
    for (old, new) in all(facts).filter(|(old, _)| is_used(old)) {
        match resolve(new, facts.target) {
            Ok(plug) => plugs.push((old.clone(), plug)),
            Err(error) => checks.fail("networks", error),
        }
    }
    let mapped = |nic: &&Interface| !all(facts).any(|(old, _)| nic.source.as_ref() == Some(old));
    let missing = interfaces.iter().filter(mapped).filter_map(|nic| refuse_missing(nic, facts.target)).collect();
    checks.all("networks", missing, format!("{} interface(s) have a place", interfaces.len()));
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

/// A name means a network of libvirt first, then a bridge.
fn resolve(wanted: &NetworkTarget, target: &TargetHost) -> Result<Plug, Error> {
    match wanted {
        NetworkTarget::None if target.libvirt_version >= SINCE_NULL => Ok(Plug::Null),
        NetworkTarget::None => Ok(Plug::User),
        NetworkTarget::Named(name) if has_network(target, name.as_str()) => Ok(Plug::Network(name.to_string())),
        NetworkTarget::Named(name) if target.bridges.contains(name.as_str()) => Ok(Plug::Bridge(name.to_string())),
        NetworkTarget::Named(name) => Err(missing("network or bridge", name.as_str(), target)),
    }
}

fn has_network(target: &TargetHost, name: &str) -> bool {
    target.networks.iter().any(|network| network.name == name)
}

fn refuse_missing(nic: &Interface, target: &TargetHost) -> Option<Error> {
    let name = nic.source.as_deref()?;
    let (what, is_there) = match nic.kind.as_str() {
        "network" => ("network", has_network(target, name)),
        "bridge" => ("bridge", target.bridges.contains(name)),
        "direct" => ("network device", target.links.contains(name)),
        _ => return None,
    };
    (!is_there).then(|| missing(what, name, target))
}

fn missing(what: &str, name: &str, target: &TargetHost) -> Error {
    let mut there: Vec<&str> = target.networks.iter().map(|network| network.name.as_str()).collect();
    there.extend(target.bridges.iter().map(String::as_str));
    // A name that cannot be written on the command line is not offered.
    there.retain(|name| name.parse::<ResourceName>().is_ok());
    Error::insufficient(format!("the target has no {what} {name:?}"))
        .with("network", name)
        .with("host", &target.host_name)
        .help(format!("Map it with --network {name}=NEW, or unplug it with --network {name}=none"))
        .help(format!("The target has: {}", there.join(", ")))
}

fn warn_inactive(facts: &Facts<'_>, interfaces: &[Interface], plugs: &[(String, Plug)], checks: &mut Checks) {
    let used = |name: &str| {
        let by_plug = plugs.iter().any(|(_, plug)| matches!(plug, Plug::Network(network) if network == name));
        let is_mapped = plugs.iter().any(|(old, _)| old == name);
        let stays = |nic: &Interface| nic.kind == "network" && nic.source.as_deref() == Some(name);
        by_plug || (!is_mapped && interfaces.iter().any(stays))
    };
    for network in facts.target.networks.iter().filter(|network| !network.active && used(&network.name)) {
        let message = format!("network {} is not active at the target, so the machine cannot start", network.name);
        checks.warn("networks", message, Some(&format!("virsh net-start {}", quoted(&network.name))));
    }
}
