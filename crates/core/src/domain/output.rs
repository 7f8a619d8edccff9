//! Files that consoles and logs write: formatdomain, "Consoles, serial, parallel & channel devices".

use std::collections::{BTreeMap, BTreeSet};

use super::chardev::WITH_CHARDEV;
use super::edit::Edits;
use super::tree::Element;
use super::{Domain, Transform};
use crate::name::{SourceName, VmName};

/// Where a machine may write what its guest says: the definition is the source's, and libvirt writes as root.
const OUTPUT: [&str; 9] =
    ["/var/log/", "/var/lib/libvirt/", "/srv/", "/home/", "/mnt/", "/media/", "/data/", "/tmp/", "/var/tmp/"];
/// Where what would be written elsewhere goes.
const LIBVIRT_LOGS: &str = "/var/log/libvirt/qemu";

/// Gives the files names of the new machine's own. Tells which.
pub(super) fn edit(domain: &Domain, wanted: &Transform, edits: &mut Edits<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    let mut own: BTreeMap<&str, String> = BTreeMap::new();
    for Output { device, element, attribute, path } in outputs(domain) {
        let new = match own.get(path) {
            Some(new) => new.clone(),
            None => apart_from(&own, own_file(path, domain.name(), &wanted.name, &wanted.paths_present)),
        };
        if new != path {
            edits.set_attribute(element, attribute, &new);
            let missing = directory(path).filter(|dir| directory(&new) != Some(*dir));
            let why = missing.map(|dir| format!(": the target has no {dir}")).unwrap_or_default();
            notes.push(format!("what the <{}> writes goes to {new}{why}", device.name));
        }
        own.insert(path, new);
    }
    notes.sort();
    notes.dedup();
    notes
}

/// A file that a console or a log writes, and where a definition says so.
struct Output<'a> {
    device: &'a Element,
    element: &'a Element,
    attribute: &'static str,
    path: &'a str,
}

fn outputs(domain: &Domain) -> impl Iterator<Item = Output<'_>> {
    let devices = domain.devices().iter().filter(|device| WITH_CHARDEV.iter().any(|name| device.is(name)));
    devices.flat_map(|device| {
        let ends = device.all("source").filter(|_| device.attr("type") == Some("file")).map(|end| (end, "path"));
        let places = ends.chain(device.all("log").map(|log| (log, "file")));
        places.filter_map(move |(element, attribute)| {
            Some(Output { device, element, attribute, path: element.attr(attribute)? })
        })
    })
}

/// The directories of these files that a copy's may lie in, if the target has them.
pub(super) fn directories(domain: &Domain) -> impl Iterator<Item = String> {
    outputs(domain).filter_map(|output| directory(output.path)).map(str::to_owned)
}

/// The directory of a file, if it is one for such files.
fn directory(path: &str) -> Option<&str> {
    let is_for_output = OUTPUT.iter().any(|place| path.starts_with(place)) && !path.split('/').any(|part| part == "..");
    path.rsplit_once('/').map(|(dir, _)| dir).filter(|_| is_for_output)
}

/// A file of the new machine's own: two machines never write to one. It lies in the directory of the source's, or where libvirt
/// has such files; there are those of all machines, so its name says whose it is.
fn own_file(path: &str, old: &SourceName, new: &VmName, there: &BTreeSet<String>) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let kept = directory(path).filter(|dir| *dir == LIBVIRT_LOGS || there.contains(*dir));
    let dir = kept.unwrap_or(LIBVIRT_LOGS);
    if old.as_str() == new.as_str() && kept.is_some() {
        return path.to_owned();
    }
    let own = if file.contains(old.as_str()) {
        file.replacen(old.as_str(), new.as_str(), 1)
    } else {
        format!("{new}-{file}")
    };
    format!("{dir}/{own}")
}

/// Files of one name in several directories may meet in one.
fn apart_from(others: &BTreeMap<&str, String>, path: String) -> String {
    let (dir, file) = path.rsplit_once('/').unwrap_or(("", &path));
    let names = std::iter::once(path.clone()).chain((2..).map(|number: u32| format!("{dir}/{number}-{file}")));
    let mut free = names.filter(|name| others.values().all(|other| other != name));
    free.next().unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn there() -> BTreeSet<String> {
        ["/var/log", "/srv/logs", "/srv", "/etc/cron.d", "/usr/local/bin"].map(str::to_owned).into()
    }

    fn own(path: &str, new: &str) -> String {
        own_file(path, &"web1".parse().unwrap(), &new.parse().unwrap(), &there())
    }

    #[test]
    fn a_file_gets_a_name_of_the_new_machines_own() {
        for (path, expected) in [
            ("/var/log/web1-console.log", "/var/log/web1_clone-console.log"),
            ("/srv/logs/serial.log", "/srv/logs/web1_clone-serial.log"),
        ] {
            assert_eq!(own(path, "web1_clone"), expected);
        }
        assert_eq!(own("/srv/b", "web1"), "/srv/b");
    }

    #[test]
    fn what_a_guest_says_is_written_where_nobody_believes_it() {
        for path in ["/etc/cron.d/job", "/usr/local/bin/job", "/var/log/../../etc/cron.d/job", "job"] {
            assert_eq!(own(path, "web1_clone"), "/var/log/libvirt/qemu/web1_clone-job", "{path}");
            assert_eq!(own(path, "web1"), "/var/log/libvirt/qemu/web1-job", "{path}");
        }
    }

    #[test]
    fn a_directory_that_the_target_lacks_becomes_that_of_libvirts_logs() {
        assert_eq!(own("/srv/log/a/web1.log", "web1_clone"), "/var/log/libvirt/qemu/web1_clone.log");
        assert_eq!(own("/srv/log/a/console.log", "web1"), "/var/log/libvirt/qemu/web1-console.log");
        assert_eq!(own("/var/log/libvirt/qemu/tty.log", "web1"), "/var/log/libvirt/qemu/tty.log");
    }
}
