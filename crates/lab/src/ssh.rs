//! Keys, `known_hosts` and names: every host and the machine can reach every host by name, with strict host keys.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::run::{append, chmod, make_dir, read, run, write};
use crate::{Host, Result};

pub(crate) fn config_path(lab: &Path) -> PathBuf {
    lab.join("ssh/config")
}

/// The lab's one key pair and the machine's client files.
pub(crate) fn lay_out_lab(lab: &Path) -> Result<()> {
    let dir = lab.join("ssh");
    make_dir(&dir)?;
    chmod(&dir, 0o700)?;
    generate(&dir.join("id_ed25519"), "kvm-clone-lab")?;
    write(&dir.join("known_hosts"), "", 0o600)?;
    write(&config_path(lab), "", 0o600)
}

fn generate(path: &Path, comment: &str) -> Result<()> {
    let path = path.to_string_lossy();
    run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", &path]).map(drop)
}

/// The host's own key, its sshd's settings, and the lab's key for every user of it.
pub(crate) fn lay_out_host(lab: &Path, host: &Host) -> Result<()> {
    let etc = host.root_dir().join("etc/ssh");
    make_dir(&etc)?;
    generate(&etc.join("ssh_host_ed25519_key"), host.name())?;
    let mut settings = String::from(
        "HostKey /etc/ssh/ssh_host_ed25519_key\n\
         # PAM wants a session bus and a machine with logins; a lab host has neither.\n\
         UsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nPrintMotd no\n\
         Subsystem sftp internal-sftp\n",
    );
    for setting in &host.spec().sshd {
        settings.push_str(setting);
        settings.push('\n');
    }
    write(&etc.join("sshd_config"), settings, 0o644)?;
    for (home, owner) in homes(host) {
        lay_out_home(lab, host, &home, &owner)?;
    }
    Ok(())
}

/// Home directories, relative to the root, and who owns them.
fn homes(host: &Host) -> Vec<(String, String)> {
    let root = ("root".to_owned(), "0:0".to_owned());
    let users = host.spec().users.iter().zip(crate::root::FIRST_USER..);
    let users = users.map(|((name, _), id)| (format!("home/{name}"), format!("{id}:{id}")));
    std::iter::once(root).chain(users).collect()
}

fn lay_out_home(lab: &Path, host: &Host, home: &str, owner: &str) -> Result<()> {
    let home = host.root_dir().join(home);
    let dir = home.join(".ssh");
    make_dir(&dir)?;
    chmod(&dir, 0o700)?;
    let keys = lab.join("ssh");
    write(&dir.join("authorized_keys"), read(&keys.join("id_ed25519.pub"))?, 0o600)?;
    write(&dir.join("id_ed25519"), read(&keys.join("id_ed25519"))?, 0o600)?;
    write(&dir.join("id_ed25519.pub"), read(&keys.join("id_ed25519.pub"))?, 0o644)?;
    write(&dir.join("known_hosts"), "", 0o600)?;
    if let Some(text) = &host.spec().banner {
        write(&home.join(".lab-banner"), format!("{text}\n"), 0o644)?;
        write(&home.join(".bashrc"), "cat ~/.lab-banner\n", 0o644)?;
    }
    run(&["chown", "-R", owner, &home.to_string_lossy()]).map(drop)
}

/// Makes a new host known to the machine, to the hosts that exist, and those to it. Only appends: what a test changed in a
/// host's files stays.
pub(crate) fn introduce(lab: &Path, host: &Host, others: &[Host]) -> Result<()> {
    let mut entry = String::new();
    let (name, address) = (host.name(), host.address());
    let _ = writeln!(entry, "Host {name}\n  HostName {address}\n  User root\n  IdentitiesOnly yes");
    let _ = writeln!(entry, "  IdentityFile {}", lab.join("ssh/id_ed25519").display());
    let _ = writeln!(entry, "  UserKnownHostsFile {}", lab.join("ssh/known_hosts").display());
    let _ = writeln!(entry, "  StrictHostKeyChecking yes");
    // The default exchange has a second half against quantum computers, which costs the machine more than all the rest of a
    // connection; tests connect thousands of times.
    let _ = writeln!(entry, "  KexAlgorithms curve25519-sha256");
    append(&config_path(lab), &entry)?;
    append(&lab.join("ssh/known_hosts"), &known(host)?)?;
    tell(host, host)?;
    for other in others {
        tell(host, other)?;
        tell(other, host)?;
    }
    Ok(())
}

fn known(host: &Host) -> Result<String> {
    Ok(format!("{},{} {}\n", host.name(), host.address(), host.host_key_public()?))
}

/// Tells `listener` the name, address and key of `subject`.
fn tell(listener: &Host, subject: &Host) -> Result<()> {
    let root = listener.root_dir();
    append(&root.join("etc/hosts"), &format!("{} {}\n", subject.address(), subject.name()))?;
    for (home, _) in homes(listener) {
        append(&root.join(home).join(".ssh/known_hosts"), &known(subject)?)?;
    }
    Ok(())
}
