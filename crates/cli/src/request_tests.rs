//! Inventory and options become what the engine takes.
#![allow(clippy::unwrap_used)]

use kvm_clone_core::domain::TpmState;

use super::*;
use crate::args::{Cli, Command, parse};
use crate::settings::Optional;

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

#[test]
fn the_size_of_blocks_is_an_option_else_a_setting_else_that_of_the_replica() {
    let asked = |options: &str, file: Option<&str>| {
        let line = format!("kvm-clone sync alpha beta web1 {options}");
        let cli = parse(line.split_whitespace().map(Into::into)).ok().unwrap();
        let Command::Sync(args) = &cli.command else { unreachable!("it is a sync") };
        let mut settings = Settings::defaults().unwrap();
        settings.transfer.block_size.value = Optional(file.map(|size| size.parse().unwrap()));
        settings.take_options(&cli);
        sync_request(args, &settings).unwrap().block_size.map(|size| size.to_string())
    };
    assert_eq!(asked("", None), None);
    assert_eq!(asked("", Some("1M")).unwrap(), "1M");
    assert_eq!(asked("--block-size 4K", Some("1M")).unwrap(), "4K");
}
