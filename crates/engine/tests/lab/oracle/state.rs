//! The state of a host, so that what was before can be compared with what is now.

use std::collections::BTreeMap;
use std::path::Path;

use kvm_clone_lab::Host;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys::VIR_DOMAIN_XML_INACTIVE;

use super::digest::digest;

/// What a host has that a clone must not harm.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct State {
    /// Digests of all files that are not staging, by path.
    pub files: BTreeMap<String, String>,
    /// Definitions of all machines, by name.
    pub machines: BTreeMap<String, String>,
    /// Machines that start with the host.
    pub autostart: Vec<String>,
}

impl State {
    pub fn of(host: &Host) -> Self {
        Self::told_by(host, digest)
    }

    /// Without the digests of files that a guest writes to at this moment.
    pub fn but_contents(host: &Host) -> Self {
        Self::told_by(host, |_| "-".to_owned())
    }

    fn told_by(host: &Host, tell: impl Fn(&Path) -> String) -> Self {
        let mut paths = Vec::new();
        PLACES.into_iter().for_each(|place| find(host, place, &mut paths));
        let tell = |path: String| (tell(&host.path(&path)), path);
        Self {
            files: paths.into_iter().map(tell).map(|(sum, path)| (path, sum)).collect(),
            machines: definitions(host),
            autostart: host.names_in("/etc/libvirt/qemu/autostart").unwrap(),
        }
    }
}

/// Where a host has files that a clone must not harm.
const PLACES: [&str; 4] = ["/var/lib/libvirt/images", "/var/lib/libvirt/qemu/nvram", "/var/lib/libvirt/swtpm", "/srv"];

/// The files in and below a directory of the host that are not staging.
fn find(host: &Host, dir: &str, found: &mut Vec<String>) {
    for name in host.names_in(dir).unwrap() {
        let path = format!("{dir}/{name}");
        let kind = std::fs::symlink_metadata(host.path(&path)).unwrap().file_type();
        // The lock of an emulated TPM is its emulator's, who makes it anew.
        if kind.is_dir() {
            find(host, &path, found);
        } else if kind.is_file() && !name.starts_with(".kvm-clone-") && name != ".lock" {
            found.push(path);
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
