//! Firmware, kernels and firmware tables: formatdomain, "Operating system booting" and "SMBIOS System Information".

use super::refuse::{CarryContext, Whereabouts};
use super::tree::Element;
use super::{Domain, arguments};
use crate::error::Error;

/// Files of the host that the machine boots with, each with what it is.
pub(super) fn paths(domain: &Domain) -> Vec<(&'static str, String)> {
    let root = &domain.root;
    let os = |name: &'static str, what| {
        let elements = root.all("os").flat_map(move |os| os.all(name));
        elements.map(move |element| (what, element.trimmed().to_owned()))
    };
    let tables = root.all("os").flat_map(|os| os.all("acpi")).flat_map(|acpi| acpi.all("table"));
    let entries = root.all("sysinfo").flat_map(|sysinfo| sysinfo.all("entry"));
    let roms = domain.devices().iter().flat_map(|device| device.all("rom"));
    let files = |what| move |element: &Element| Some((what, element.attr("file")?.to_owned()));
    let mut found: Vec<(&'static str, String)> = Vec::new();
    found.extend(os("kernel", "kernel"));
    found.extend(os("initrd", "initial RAM disk"));
    found.extend(os("dtb", "device tree"));
    // Firmware that libvirt chose by itself it can choose again.
    if domain.root.attr_at(&["os"], "firmware") != Some("efi") {
        found.extend(os("loader", "firmware"));
    }
    found.extend(tables.map(|table| ("ACPI table", table.trimmed().to_owned())));
    found.extend(entries.filter_map(files("fw_cfg file")));
    found.extend(roms.filter_map(files("device ROM")));
    found.extend(arguments::files(domain));
    found.retain(|(_, path)| !path.is_empty());
    found
}

/// Kernels and tables that are there under the same path, of which nobody knows whether they are the source's: with another kernel a
/// guest may not boot, and is another machine. Firmware is its package's, and tells its version to nobody.
pub(super) fn warning(domain: &Domain, context: &CarryContext<'_>) -> Option<String> {
    if context.whereabouts == Whereabouts::SameHost {
        return None;
    }
    let is_there = |(what, path): &(&str, String)| *what != "firmware" && context.paths_present.contains(path);
    let own = paths(domain).into_iter().filter(is_there).map(|(what, path)| format!("the {what} {path}"));
    let own: Vec<String> = own.collect();
    let names = own.join(", ");
    (!own.is_empty())
        .then(|| format!("the machine boots with what the target has as {names}, not compared with the source's"))
}

/// Kernels and tables that the target does not have under the same path.
pub(super) fn refuse_missing(domain: &Domain, context: &CarryContext<'_>) -> Vec<Error> {
    let missing = paths(domain).into_iter().filter(|(_, path)| !context.paths_present.contains(path));
    let refuse = |(what, path): (&str, String)| {
        Error::insufficient(format!("the machine boots with the {what} {path}, which the target does not have"))
            .with("path", &path)
            .help(format!("Copy {path} to the same place on the target"))
    };
    missing.map(refuse).collect()
}
