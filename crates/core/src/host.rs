//! How a user names a host.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A host as the user wrote it: `local`, or something that `ssh` reaches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostAddr {
    /// This machine, without SSH.
    Local,
    /// A host behind SSH.
    Ssh(SshAddr),
}

/// `[user@]name[:port]`; the name may be an address or an alias of `ssh_config`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SshAddr {
    /// The user to log in as; `ssh_config` decides where there is none.
    pub user: Option<String>,
    /// A name, an alias or an address (IPv6 without brackets).
    pub name: String,
    /// The port; `ssh_config` decides where there is none.
    pub port: Option<u16>,
}

impl HostAddr {
    /// Whether this is the machine that we run on.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Local)
    }
}

impl FromStr for HostAddr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "local" {
            return Ok(Self::Local);
        }
        let refuse = |why: &str| {
            Error::validation(format!("{text:?} is not a host: {why}"))
                .with("host", text)
                .help("Write [user@]host[:port], [user@][v6addr][:port], an ssh_config alias, or local")
        };
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(checked_user(user).ok_or_else(|| refuse("bad user name"))?), rest),
            None => (None, text),
        };
        let (name, port) = split_port(rest).map_err(refuse)?;
        if !name_is_plain(name) {
            return Err(refuse("the name is empty or holds a character that no host name has"));
        }
        Ok(Self::Ssh(SshAddr { user, name: name.to_owned(), port }))
    }
}

/// Splits `name[:port]` or `[v6][:port]`; a bare IPv6 address has no port.
fn split_port(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    if let Some(rest) = text.strip_prefix('[') {
        let (name, tail) = rest.split_once(']').ok_or("the bracket is not closed")?;
        name.parse::<std::net::Ipv6Addr>().map_err(|_| "the brackets do not hold an IPv6 address")?;
        return match tail.strip_prefix(':') {
            Some(port) => Ok((name, Some(checked_port(port)?))),
            None if tail.is_empty() => Ok((name, None)),
            None => Err("only a port can follow the bracket"),
        };
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some(_) if text.parse::<std::net::Ipv6Addr>().is_ok() => Ok((text, None)),
        Some((name, port)) => Ok((name, Some(checked_port(port)?))),
    }
}

fn checked_port(text: &str) -> Result<u16, &'static str> {
    let port = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten();
    port.filter(|port| *port > 0).ok_or("a port is a number from 1 to 65535")
}

/// A user name that can stand in an argument: no option, no white space, nothing a shell would read.
fn checked_user(user: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+@\\$".contains(&byte);
    let good = !user.is_empty() && user.len() <= 64 && !user.starts_with('-') && user.bytes().all(plain);
    good.then(|| user.to_owned())
}

fn name_is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:%".contains(&byte);
    !name.is_empty() && name.len() <= 253 && !name.starts_with(['-', '.']) && name.bytes().all(plain)
}

impl fmt::Display for HostAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Ssh(ssh) = self else { return f.write_str("local") };
        if let Some(user) = &ssh.user {
            write!(f, "{user}@")?;
        }
        match (ssh.port, ssh.name.contains(':')) {
            (Some(port), true) => write!(f, "[{}]:{port}", ssh.name),
            (Some(port), false) => write!(f, "{}:{port}", ssh.name),
            (None, true) => write!(f, "[{}]", ssh.name),
            (None, false) => f.write_str(&ssh.name),
        }
    }
}

impl TryFrom<String> for HostAddr {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<HostAddr> for String {
    fn from(host: HostAddr) -> String {
        host.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn good_hosts_are_read_and_shown_the_same() {
        for (text, shown) in [
            ("local", "local"),
            ("alpha", "alpha"),
            ("root@alpha", "root@alpha"),
            ("alpha:2222", "alpha:2222"),
            ("me@[fe80::1%25eth0]:22", ""),
            ("[::1]:22", "[::1]:22"),
            ("::1", "[::1]"),
            ("u@10.0.0.1", "u@10.0.0.1"),
        ] {
            match text.parse::<HostAddr>() {
                Ok(host) => assert_eq!(host.to_string(), shown),
                Err(_) => assert_eq!(shown, "", "{text}"),
            }
        }
    }

    #[test]
    fn bad_hosts_are_refused_before_any_connection() {
        for text in ["", "-oProxyCommand=x", "a b", "a:0", "a:65536", "a:", "@a", "-x@a", "[::1", "a;b", "$(x)", "a:+5"]
        {
            assert_eq!(text.parse::<HostAddr>().unwrap_err().code.number(), 1007, "{text:?}");
        }
    }
}
