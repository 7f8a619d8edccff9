//! Why there is no connection, in words.

use kvm_clone_core::Error;

/// Why there is no connection.
pub(super) struct Refusal {
    pub(super) error: Error,
    /// The server took the connection and closed it before it knew who we are.
    pub(super) dropped: bool,
}

impl Refusal {
    /// Of what OpenSSH wrote.
    pub(super) fn of(log: &str, host: &str) -> Self {
        Self { error: classify(log, host), dropped: was_dropped(log) }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, dropped: false }
    }
}

/// What OpenSSH wrote, as an error with its way out. The phrases are those of OpenSSH 7 to 10, which are not
/// translated.
fn classify(log: &str, host: &str) -> Error {
    let has = |phrase: &str| log.contains(phrase);
    let error = if has("REMOTE HOST IDENTIFICATION HAS CHANGED") || has("Host key for") && has("has changed") {
        Error::connection(format!("the host key of {host} has changed"))
            .help(format!("If you reinstalled the host, remove its old key: ssh-keygen -R {host}"))
            .help("Otherwise find out who answers in its place before you connect")
    } else if has("Host key verification failed") || has("host key is known") {
        Error::connection(format!("the host key of {host} is not known"))
            .help(format!("Connect once by hand (ssh {host} true), compare the fingerprint and accept it"))
            .help("Or set ssh.host_key_policy to accept-new")
    } else if has("Could not resolve hostname") {
        Error::connection(format!("the name {host} cannot be resolved"))
            .help("Check the spelling, DNS, /etc/hosts, or add a Host entry to ~/.ssh/config")
    } else if has("Connection refused") {
        Error::connection(format!("{host} refuses the connection"))
            .help("Make sure that sshd runs there and that the port is right (--ssh-port)")
            .transient()
    } else if has("timed out") || has("Timeout, server") {
        silent(host)
    } else if has("Permission denied (") || has("Too many authentication failures") {
        Error::connection(format!("{host} refuses this user or key"))
            .help(format!("Try ssh {host} true by hand; load the key into ssh-agent, or name it with --ssh-key"))
    } else if has("No route to host") || has("Network is unreachable") {
        Error::connection(format!("there is no route to {host}")).help("Check the network and the address").transient()
    } else if was_dropped(log) || has("Connection closed by") || has("Connection reset by") {
        Error::connection(format!("{host} closed the connection"))
            .help("sshd there may be limiting connections (MaxStartups), or a firewall interferes")
            .transient()
    } else {
        Error::connection(format!("no SSH connection to {host}")).help(format!("Try ssh {host} true by hand"))
    };
    let words: Vec<&str> = log.lines().map(said).filter(|line| !line.is_empty() && !line.starts_with('@')).collect();
    error.with("host", host).with("ssh", words.join("; "))
}

/// What a line says, without who says it.
fn said(line: &str) -> &str {
    let line = line.trim();
    line.strip_prefix("ssh: ").unwrap_or(line)
}

/// Whether the server closed the connection before the key exchange: it had too many that were not logged in yet.
fn was_dropped(log: &str) -> bool {
    ["kex_exchange_identification", "ssh_exchange_identification", "Exceeded MaxStartups", "Not allowed at this time"]
        .iter()
        .any(|phrase| log.contains(phrase))
}

pub(super) fn silent(host: &str) -> Error {
    Error::connection(format!("{host} does not answer"))
        .with("host", host)
        .help("Check that the host is up and that no firewall drops SSH; ssh.connect_timeout sets how long we wait")
        .transient()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_openssh_has_its_own_words() {
        let cases = [
            ("Could not resolve hostname nowhere: Name or service not known", "cannot be resolved"),
            ("connect to host a port 22: Connection refused", "refuses the connection"),
            ("connect to host a port 22: Connection timed out", "does not answer"),
            (
                "No ED25519 host key is known for a and you have requested strict checking.\r\nHost key verification failed.",
                "is not known",
            ),
            ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "has changed"),
            ("root@a: Permission denied (publickey).", "refuses this user or key"),
            ("kex_exchange_identification: Connection closed by remote host", "closed the connection"),
        ];
        for (log, words) in cases {
            let error = classify(log, "a");
            assert!(error.message.contains(words), "{log}: {}", error.message);
            assert!(!error.help.is_empty());
        }
    }

    #[test]
    fn only_what_was_dropped_before_the_key_exchange_is_tried_again() {
        assert!(was_dropped(
            "kex_exchange_identification: read: Connection reset by peer\r\nConnection reset by 10.0.0.1"
        ));
        assert!(!was_dropped("Connection closed by authenticating user root 10.0.0.1 port 22 [preauth]"));
        assert!(!was_dropped("root@a: Permission denied (publickey)."));
    }
}
