//! The state of a host, so that what was before can be compared with what is now.

use std::collections::BTreeMap;

use kvm_clone_lab::Host;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys::VIR_DOMAIN_XML_INACTIVE;

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
        Self::summed_up(host, "b3sum --no-mmap --num-threads 1")
    }

    /// Without the digests of files that a guest writes to at this moment.
    pub fn but_contents(host: &Host) -> Self {
        Self::summed_up(host, "printf -- '-  %s\\n'")
    }

    fn summed_up(host: &Host, by: &str) -> Self {
        // The lock of an emulated TPM is its emulator's, who makes it anew.
        let find = "find /var/lib/libvirt/images /var/lib/libvirt/qemu/nvram /var/lib/libvirt/swtpm /srv -type f \
                    ! -name '.kvm-clone-*' ! -name .lock -print0 2>/dev/null || true";
        let autostart = "ls /etc/libvirt/qemu/autostart 2>/dev/null || true";
        let said = host.shell(&format!("{{ {find}; }} | sort -z | xargs -0 -r {by}; echo; {autostart}")).unwrap();
        let (sums, autostart) = said.split_once("\n\n").or_else(|| said.split_once('\n')).unwrap();
        let sum = |line: &str| line.split_once("  ").map(|(sum, path)| (path.to_owned(), sum.to_owned()));
        Self {
            files: sums.lines().filter_map(sum).collect(),
            machines: definitions(host),
            autostart: autostart.to_owned(),
        }
    }
}

/// The definitions of all machines, by name. Asked for without `virsh`, whose start takes longer than all the answers: a test
/// looks at its hosts hundreds of times.
pub fn definitions(host: &Host) -> BTreeMap<String, String> {
    let socket = host.path("/run/libvirt/libvirt-sock");
    let connection = Connect::open(Some(&format!("qemu+unix:///system?socket={}", socket.display()))).unwrap();
    let domains = connection.list_all_domains(0).unwrap();
    let define = |domain: &Domain| (domain.name().unwrap(), domain.xml_desc(VIR_DOMAIN_XML_INACTIVE).unwrap());
    domains.iter().map(define).collect()
}
