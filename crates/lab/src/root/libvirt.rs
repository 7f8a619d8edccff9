//! A host's libvirt: its settings, its default pool and its default network.

use std::path::Path;

use crate::run::{append, make_dir, run, symlink, write};
use crate::spec::Libvirt;
use crate::{Host, Result, capabilities};

/// qemu as root, as many small installations have it.
const QEMU_AS_ROOT: &str = "user = \"root\"\ngroup = \"root\"\n";
/// What Debian ships: qemu without privileges, images handed to it and back.
const QEMU_UNPRIVILEGED: &str = "user = \"libvirt-qemu\"\ngroup = \"libvirt-qemu\"\ndynamic_ownership = 1\n";
/// A lab host has no cgroups, no mount namespace for each guest and no trusted extended attributes to note owners in.
const QEMU_COMMON: &str = "security_driver = \"none\"\ncgroup_controllers = []\nremember_owner = 0\nnamespaces = []\n";
/// Already there when the host boots for the first time, as after an installation. The bridge is made at boot: a NAT
/// network would want a firewall and a DHCP server.
const NETWORK: &str = "<network>\n  <name>default</name>\n  <uuid>UUID</uuid>\n  <forward mode='bridge'/>\n  \
                       <bridge name='virbr0'/>\n</network>\n";
const POOL: &str = "<pool type='dir'>\n  <name>default</name>\n  <uuid>UUID</uuid>\n  <source/>\n  <target>\n    \
                    <path>/var/lib/libvirt/images</path>\n  </target>\n</pool>\n";

pub(crate) fn lay_out(host: &Host) -> Result<()> {
    let root = host.root_dir();
    let mode = match host.spec().libvirt {
        Libvirt::Absent => return Ok(()),
        Libvirt::Modular => "modular",
        Libvirt::Monolithic => "monolithic",
    };
    write(&root.join("etc/lab/libvirt"), mode, 0o644)?;
    for name in ["images", "boot", "dnsmasq", "qemu"] {
        make_dir(&root.join("var/lib/libvirt").join(name))?;
    }
    make_dir(&root.join("var/cache/libvirt"))?;
    make_dir(&root.join("var/log/libvirt/qemu"))?;
    certificates(&root)?;
    settings(host, &root.join("etc/libvirt"))?;
    if host.spec().qemu_unprivileged {
        for name in ["var/lib/libvirt/qemu", "var/cache/libvirt"] {
            run(&["chown", "libvirt-qemu:libvirt-qemu", &root.join(name).to_string_lossy()])?;
        }
    }
    capabilities::reuse(host)
}

/// Where the emulator of TPMs keeps the keys of its certificates: empty, as its package leaves it.
fn certificates(root: &Path) -> Result<()> {
    let machines = Path::new("/var/lib/swtpm-localca");
    if !machines.exists() {
        return Ok(());
    }
    let (like, own) = (machines.to_string_lossy(), root.join("var/lib/swtpm-localca"));
    make_dir(&own)?;
    run(&["chown", &format!("--reference={like}"), &own.to_string_lossy()])?;
    run(&["chmod", &format!("--reference={like}"), &own.to_string_lossy()]).map(drop)
}

fn settings(host: &Host, etc: &Path) -> Result<()> {
    // Machines, networks and pools of the machine itself are none of the host's.
    for name in ["qemu", "storage", "secrets"] {
        run(&["rm", "-rf", &etc.join(name).to_string_lossy()])?;
    }
    let user = if host.spec().qemu_unprivileged { QEMU_UNPRIVILEGED } else { QEMU_AS_ROOT };
    append(&etc.join("qemu.conf"), &format!("\n{user}{QEMU_COMMON}"))?;
    // Hosts with one UUID refuse to migrate to each other. Without polkit, the socket's group decides, as for Debian.
    let uuid = super::fresh_uuid()?;
    append(
        &etc.join("libvirtd.conf"),
        &format!(
            "\nhost_uuid = \"{uuid}\"\nunix_sock_group = \"libvirt\"\nunix_sock_rw_perms = \"0770\"\nauth_unix_rw = \"none\"\n"
        ),
    )?;
    autostarted(&etc.join("qemu/networks"), NETWORK)?;
    autostarted(&etc.join("storage"), POOL)
}

fn autostarted(directory: &Path, definition: &str) -> Result<()> {
    make_dir(&directory.join("autostart"))?;
    write(&directory.join("default.xml"), definition.replace("UUID", &super::fresh_uuid()?), 0o600)?;
    symlink("../default.xml", &directory.join("autostart/default.xml"))
}
