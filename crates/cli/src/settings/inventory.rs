//! `[hosts.NAME]`: hosts by names of the user's own.

use std::collections::BTreeMap;

use kvm_clone_core::host::{HostAddr, SshAddr};
use kvm_clone_core::name::ResourceName;
use kvm_clone_core::{Code, Error, Result};
use serde::Serialize;
use toml_edit::{Item, Table, TableLike};

use super::file::{Source, scalar};
use super::{Port, User, bad_value};

/// What the inventory says about a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct HostEntry {
    /// How it is reached; the entry's name where it is missing.
    pub(crate) address: Option<HostAddr>,
    /// The user to log in as.
    pub(crate) user: Option<String>,
    /// The port.
    pub(crate) port: Option<u16>,
    /// Whether the agent runs as root; as the user who logs in otherwise.
    pub(crate) sudo: Option<bool>,
    /// The pool for copies that come here.
    pub(crate) pool: Option<String>,
    /// Networks of sources, and what they are called here.
    pub(crate) networks: BTreeMap<String, String>,
}

const KEYS: &str = "address, user, port, sudo, pool, networks";

/// Reads every `[hosts.NAME]`.
pub(super) fn read(source: &Source<'_>, hosts: &Table) -> Result<BTreeMap<String, HostEntry>> {
    let mut all = BTreeMap::new();
    for (name, item) in hosts {
        let usable = matches!(name.parse(), Ok(HostAddr::Ssh(SshAddr { user: None, port: None, .. })));
        let Some(table) = item.as_table().filter(|_| usable) else {
            let error = Error::new(Code::Configuration, format!("hosts.{name} is not an entry of the inventory"))
                .with("key", format!("hosts.{name}"))
                .help("Write [hosts.NAME] with a plain name, which is not local");
            return Err(source.at(error, hosts, name));
        };
        let mut entry = HostEntry::default();
        for (key, item) in table {
            take(&mut entry, &format!("hosts.{name}.{key}"), key, item)
                .map_err(|error| source.at(error, table, key))?;
        }
        all.insert(name.to_owned(), entry);
    }
    Ok(all)
}

fn take(entry: &mut HostEntry, name: &str, key: &str, item: &Item) -> Result<()> {
    let text = || scalar(name, item);
    let bad = |error: Error| bad_value(name, &error);
    match key {
        "address" => entry.address = Some(text()?.parse().map_err(bad)?),
        "user" => entry.user = Some(text()?.parse::<User>().map_err(bad)?.0),
        "port" => entry.port = Some(text()?.parse::<Port>().map_err(bad)?.narrow()?),
        "sudo" => entry.sudo = Some(item.as_bool().ok_or_else(|| bad(Error::validation("it is true or false")))?),
        "pool" => entry.pool = Some(resource(&text()?).map_err(bad)?),
        "networks" => {
            let table = item.as_table_like().ok_or_else(|| bad(Error::validation("it is a table of OLD = \"NEW\"")))?;
            entry.networks = networks(name, table)?;
        }
        _ => return known(name, key),
    }
    Ok(())
}

/// Refuses what is no key of an entry.
pub(super) fn known(name: &str, key: &str) -> Result<()> {
    if KEYS.split(", ").any(|known| known == key) {
        return Ok(());
    }
    let error = Error::new(Code::Configuration, format!("there is no setting {name}")).with("key", name);
    Err(error.help(format!("[hosts.NAME] has {KEYS}")))
}

fn networks(name: &str, table: &dyn TableLike) -> Result<BTreeMap<String, String>> {
    let one = |(old, item): (&str, &Item)| {
        let name = format!("{name}.{old}");
        let new = resource(&scalar(&name, item)?).map_err(|error| bad_value(&name, &error))?;
        Ok((old.to_owned(), new))
    };
    table.iter().map(one).collect()
}

fn resource(text: &str) -> Result<String> {
    text.parse::<ResourceName>().map(String::from)
}
