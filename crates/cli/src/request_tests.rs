//! Inventory and options become what the engine takes.
#![allow(clippy::unwrap_used)]

use kvm_clone_core::domain::TpmState;

use super::*;
use crate::args::{Cli, Command, parse};

fn with_inventory() -> Settings {
    let mut settings = Settings::defaults().unwrap();
    let entry = HostEntry {
        address: Some("ops@10.0.0.1:2200".parse().unwrap()),
        port: Some(2201),
        sudo: Some(false),
        pool: Some("fast".into()),
        networks: [("lan".to_owned(), "br0".to_owned()), ("dmz".to_owned(), "none".to_owned())].into(),
        ..HostEntry::default()
    };
    settings.hosts.insert("alpha".into(), entry);
    settings
}

fn reached(given: &str) -> (String, Privilege) {
    let found = host(&with_inventory(), &given.parse().unwrap());
    assert_eq!(found.name, given);
    (found.spec.addr.to_string(), found.spec.privilege)
}

#[test]
fn the_inventory_names_hosts() {
    assert_eq!(reached("alpha"), ("ops@10.0.0.1:2201".into(), Privilege::User));
    assert_eq!(reached("me@alpha:22"), ("me@10.0.0.1:22".into(), Privilege::User));
    assert_eq!(reached("beta"), ("beta".into(), Privilege::Root));
    assert_eq!(reached("local"), ("local".into(), Privilege::Root));
}

#[test]
fn a_host_is_used_once() {
    let names = ["alpha", "beta", "alpha"].map(|name| name.parse().unwrap());
    assert_eq!(hosts(&with_inventory(), &names).len(), 2);
}

fn request(options: &str) -> Result<CloneRequest> {
    let line = format!("kvm-clone clone beta alpha web1 {options}");
    let Cli { command: Command::Clone(args), .. } = parse(line.split_whitespace().map(Into::into)).ok().unwrap() else {
        unreachable!("it is a clone")
    };
    let settings = with_inventory();
    clone_request(&args, &settings, &host(&settings, &args.dest))
}

#[test]
fn options_win_over_the_inventory() {
    let plain = request("").unwrap();
    assert_eq!(plain.pool.unwrap().as_str(), "fast");
    assert_eq!((plain.networks.len(), plain.usual_networks.len()), (0, 2));
    let asked = request("--pool slow --network lan=default --replica --force --disk-format raw").unwrap();
    assert_eq!(asked.pool.unwrap().as_str(), "slow");
    let lan: Vec<_> = asked.networks.iter().filter(|(old, _)| old == "lan").map(|(_, new)| new.to_string()).collect();
    assert_eq!(lan, ["default"]);
    assert_eq!((asked.identity, asked.existing), (Identity::Kept, Existing::Replace));
    assert_eq!((asked.tpm, request("--tpm copy").unwrap().tpm), (TpmState::Unsaid, TpmState::Copied));
}

#[test]
fn a_network_cannot_go_to_two_places() {
    assert_eq!(request("--network a=b --network a=c").unwrap_err().code, Code::Validation);
}
