//! What an interface that stays on its network asks of the target beside it: its port group, and its filter.

use std::collections::BTreeSet;

use super::plug::network;
use crate::domain::Interface;
use crate::error::Error;
use crate::inventory::TargetHost;
use crate::name::ResourceName;

/// The first that is not there.
pub(super) fn refuse(nic: &Interface, target: &TargetHost) -> Option<Error> {
    refuse_port_group(nic, target).or_else(|| refuse_filter(nic, target))
}

/// libvirt says nothing where a group is missing, and the machine is in no VLAN and has no limits.
fn refuse_port_group(nic: &Interface, target: &TargetHost) -> Option<Error> {
    let name = nic.source.as_deref()?;
    let group = nic.port_group.as_ref()?;
    let network = network(target, name).filter(|network| !network.port_groups.contains(group))?;
    let error = Error::insufficient(format!("network {name:?} of the target has no port group {group:?}"));
    let error = error.with("network", name).with("port_group", group).with("host", &target.host_name);
    let error = error.help("Add the port group there with virsh net-edit").help(list(&network.port_groups));
    Some(without(error, name))
}

/// libvirt starts no machine whose filter is missing.
fn refuse_filter(nic: &Interface, target: &TargetHost) -> Option<Error> {
    let filter = nic.filter.as_ref().filter(|filter| !target.network_filters.contains(*filter))?;
    let error = Error::insufficient(format!("the target has no network filter {filter:?}"));
    let error = error.with("filter", filter).with("host", &target.host_name);
    let error = error
        .help("Carry it there: virsh nwfilter-dumpxml at the source, virsh nwfilter-define at the target")
        .help(list(&target.network_filters));
    Some(without(error, nic.source.as_deref().unwrap_or_default()))
}

fn list(names: &BTreeSet<String>) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    if names.is_empty() { "There is none".to_owned() } else { format!("There are: {}", names.join(", ")) }
}

/// An interface that is plugged in anew, be it where it was, leaves both behind. A name that cannot be written on the command line is
/// not offered.
fn without(error: Error, name: &str) -> Error {
    match name.parse::<ResourceName>() {
        Ok(_) => error.help(format!("Do without it: --network {name}={name}")),
        Err(_) => error,
    }
}
