//! What a host's root is made of.
//!
//! The root is a private directory on the machine's disk, so images in it behave as on a real disk: holes, direct I/O and
//! `fsync` are the file system's own. Only `/usr` is shared, read-only under an overlay; nothing else of the machine can be
//! seen from inside.

mod libvirt;
mod users;

use std::fs;
use std::path::Path;

use crate::run::{chmod, make_dir, output, program, read, run, symlink, write};
use crate::{Host, LabError, Result};

pub(crate) use users::FIRST_USER;

/// Directories of a fresh root, with their modes.
const DIRECTORIES: &[(&str, u32)] = &[
    ("boot", 0o755),
    ("dev", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/lib/misc", 0o755),
    ("var/log", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];
/// As on the machine, but relative: they must lead nowhere else when seen from outside.
const LINKS: &[(&str, &str)] = &[
    ("usr/bin", "bin"),
    ("usr/sbin", "sbin"),
    ("usr/lib", "lib"),
    ("usr/lib64", "lib64"),
    ("../run", "var/run"),
    ("../run/lock", "var/lock"),
];

/// Settings of programs that no host runs. They are a third of all files, and hundreds of hosts are made.
const UNNEEDED: &[&str] = &["X11", "apt", "fonts", "ssl", "systemd"];

/// Makes the root of a host that was never up.
pub(crate) fn lay_out(host: &Host) -> Result<()> {
    let root = host.root_dir();
    for (name, mode) in DIRECTORIES {
        make_dir(&root.join(name))?;
        chmod(&root.join(name), *mode)?;
    }
    for (to, name) in LINKS {
        symlink(to, &root.join(name))?;
    }
    for name in ["usr-upper", "usr-work"] {
        make_dir(&host.dir().join(name))?;
        chmod(&host.dir().join(name), 0o755)?;
    }
    settings(&root)?;
    identity(host)?;
    users::add(host)?;
    libvirt::lay_out(host)?;
    programs(host)?;
    if host.spec().noexec_homes {
        write(&host.dir().join("noexec-homes"), "", 0o600)?;
    }
    let record = serde_json::to_string(host.record()).map_err(|source| LabError::Refused(source.to_string()))?;
    write(&host.dir().join("host.json"), record, 0o600)
}

/// The machine's `/etc`; what is its own in there, as keys and definitions, is taken out or written over afterwards.
fn settings(root: &Path) -> Result<()> {
    let etc = Path::new("/etc");
    let entries = fs::read_dir(etc).map_err(LabError::file("list", etc))?;
    let needed = entries.flatten().filter(|entry| !UNNEEDED.iter().any(|name| entry.file_name() == *name));
    let to = root.join("etc");
    make_dir(&to)?;
    chmod(&to, 0o755)?;
    output(program("cp").arg("-a").args(needed.map(|entry| entry.path())).arg(&to)).map(drop)
}

/// What no two computers have in common.
fn identity(host: &Host) -> Result<()> {
    let etc = host.root_dir().join("etc");
    // Links of the machine would be written through.
    for name in ["hosts", "hostname", "machine-id", "resolv.conf", "mtab", "ssh"] {
        run(&["rm", "-rf", &etc.join(name).to_string_lossy()])?;
    }
    write(&etc.join("hostname"), format!("{}\n", host.name()), 0o644)?;
    write(&etc.join("hosts"), "127.0.0.1 localhost\n", 0o644)?;
    write(&etc.join("machine-id"), format!("{}\n", fresh_uuid()?.replace('-', "")), 0o444)?;
    write(&etc.join("resolv.conf"), "", 0o644)?;
    symlink("../proc/self/mounts", &etc.join("mtab"))?;
    write(&etc.join("lab/address"), format!("{}/24\n", host.address()), 0o644)
}

/// Programs that this host lacks, or that answer differently. They are changed in the overlay's upper layer, so nothing
/// tells them from a package that is not installed.
fn programs(host: &Host) -> Result<()> {
    let upper = host.dir().join("usr-upper");
    for name in &host.spec().without {
        for directory in ["bin", "sbin", "local/bin", "local/sbin"] {
            if std::path::Path::new("/usr").join(directory).join(name).symlink_metadata().is_ok() {
                make_dir(&upper.join(directory))?;
                // A character device 0:0 is the overlay's word for "deleted".
                let mut command = program("mknod");
                crate::run::output(command.arg(upper.join(directory).join(name)).args(["c", "0", "0"]))?;
            }
        }
    }
    let Some(architecture) = &host.spec().architecture else { return Ok(()) };
    let real = std::env::consts::ARCH;
    let script = format!("#!/bin/sh\n/usr/bin/uname.real \"$@\" | sed 's/{real}/{architecture}/g'\n");
    write(&upper.join("bin/uname"), script, 0o755)?;
    let copy = upper.join("bin/uname.real");
    std::fs::copy("/usr/bin/uname", &copy).map_err(LabError::file("copy to", &copy)).map(drop)
}

/// A random UUID of the kernel's making.
pub(crate) fn fresh_uuid() -> Result<String> {
    Ok(read(std::path::Path::new("/proc/sys/kernel/random/uuid"))?.trim().to_owned())
}
