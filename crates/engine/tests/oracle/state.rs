//! The state of a host, so that what was before can be compared with what is now.

use std::collections::BTreeMap;

use kvm_clone_lab::Host;

use crate::common::machines;

/// What a host has that a clone must not harm.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct State {
    /// Digests of all files that are not staging, by path.
    pub files: BTreeMap<String, String>,
    /// Definitions of all machines, by name.
    pub machines: BTreeMap<String, String>,
    /// Machines that start with the host.
    pub autostart: String,
}

impl State {
    pub fn of(host: &Host) -> Self {
        Self::summed_up(host, "sha256sum")
    }

    /// Without the digests of files that a guest writes to at this moment.
    pub fn but_contents(host: &Host) -> Self {
        Self::summed_up(host, "printf -- '-  %s\\n'")
    }

    fn summed_up(host: &Host, by: &str) -> Self {
        // The lock of an emulated TPM is its emulator's, who makes it anew.
        let find = "find /var/lib/libvirt/images /var/lib/libvirt/qemu/nvram /var/lib/libvirt/swtpm /srv -type f \
                    ! -name '.kvm-clone-*' ! -name .lock -print0 2>/dev/null || true";
        let sums = host.shell(&format!("{{ {find}; }} | sort -z | xargs -0 -r {by}"));
        let sum = |line: &str| line.split_once("  ").map(|(sum, path)| (path.to_owned(), sum.to_owned()));
        let xml = |name: &String| host.exec(&["virsh", "-q", "dumpxml", "--inactive", name]).unwrap();
        Self {
            files: sums.unwrap().lines().filter_map(sum).collect(),
            machines: machines(host).iter().map(|name| (name.clone(), xml(name))).collect(),
            autostart: host.shell("ls /etc/libvirt/qemu/autostart 2>/dev/null || true").unwrap(),
        }
    }
}
