//! The file in which UEFI firmware keeps its variables: formatdomain, "Operating system booting" (`nvram`).

use std::collections::BTreeSet;

use super::Domain;
use super::edit::Edits;
use super::refuse::cannot;
use super::tree::Element;
use crate::error::Error;
use crate::inventory::ImageFormat;

/// A machine's variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvram {
    /// Their file; none leaves its name to libvirt.
    pub path: Option<String>,
    /// Its format.
    pub format: ImageFormat,
}

/// The variables of a machine with UEFI firmware; none for one that boots otherwise.
pub(super) fn read(domain: &Domain) -> Option<Nvram> {
    let os = domain.root.child("os")?;
    let nvram = os.child("nvram");
    let flash = os.child("loader").is_some_and(|loader| loader.attr("type") == Some("pflash"));
    let is_stateless = os.child("loader").is_some_and(|loader| loader.attr("stateless") == Some("yes"));
    let is_uefi = os.attr("firmware") == Some("efi") || flash || nvram.is_some();
    let format = match nvram.and_then(|nvram| nvram.attr("format")) {
        Some("qcow2") => ImageFormat::Qcow2,
        Some("raw") | None => ImageFormat::Raw,
        Some(other) => ImageFormat::Other(other.to_owned()),
    };
    let path = nvram.and_then(path).map(str::to_owned);
    (is_uefi && !is_stateless).then_some(Nvram { path, format })
}

/// The path stands in the element's text, or in a `<source>` of its own since libvirt 8.5.
fn path(nvram: &Element) -> Option<&str> {
    let source = nvram.attr_at(&["source"], "file");
    source.or_else(|| Some(nvram.trimmed())).filter(|path| path.starts_with('/'))
}

/// Variables that lie elsewhere than in a file, or in a file that we do not know how to carry.
pub(super) fn refusals(domain: &Domain) -> Vec<Error> {
    let Some(nvram) = domain.root.at(&["os", "nvram"]) else { return Vec::new() };
    let help = "Move the variables into a file of the source's host, or copy the machine by hand";
    let elsewhere = nvram.attr("type").filter(|kind| *kind != "file");
    let elsewhere = elsewhere.map(|kind| cannot(format!("its firmware variables lie on {kind:?} storage"), help));
    let odd = read(domain).filter(|nvram| matches!(nvram.format, ImageFormat::Other(_)));
    let odd = odd.map(|nvram| cannot(format!("its firmware variables have the format {}", nvram.format), help));
    elsewhere.into_iter().chain(odd).collect()
}

/// Paths that matter here and that a target may do without: firmware that libvirt chooses by itself, templates.
pub(super) fn wished_paths(domain: &Domain) -> Vec<String> {
    let loader = domain.root.text_at(&["os", "loader"]);
    let template = domain.root.attr_at(&["os", "nvram"], "template");
    let variables = read(domain).and_then(|nvram| nvram.path);
    let dir = variables.as_deref().and_then(|path| path.rsplit_once('/')).map(|(dir, _)| dir);
    [loader, template, dir].into_iter().flatten().filter(|path| path.starts_with('/')).map(str::to_owned).collect()
}

/// Names the copy's own variables, and lets libvirt of the target choose firmware where it chose the source's.
pub(super) fn edit(
    domain: &Domain,
    new: Option<&str>,
    paths_present: &BTreeSet<String>,
    edits: &mut Edits<'_>,
) -> Vec<String> {
    let Some(os) = domain.root.child("os") else { return Vec::new() };
    let mut notes = Vec::new();
    let missing = |path: Option<&str>| path.is_some_and(|path| !paths_present.contains(path));
    if let (Some(nvram), Some(new)) = (os.child("nvram"), new) {
        match nvram.child("source") {
            Some(source) => edits.set_attribute(source, "file", new),
            None => edits.set_text(nvram, new),
        }
        if missing(nvram.attr("template")) {
            // Only a machine without variables needs the template, and then libvirt finds its own.
            edits.remove_attribute(nvram, "template");
        }
    }
    let loader = os.child("loader").filter(|_| os.attr("firmware") == Some("efi"));
    if let Some(loader) = loader.filter(|loader| missing(Some(loader.trimmed())) && !loader.trimmed().is_empty()) {
        edits.remove(loader);
        notes
            .push(format!("the target has no {}; its libvirt chooses firmware of the same features", loader.trimmed()));
    }
    notes
}
