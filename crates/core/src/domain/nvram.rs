//! The file in which UEFI firmware keeps its variables: formatdomain, "Operating system booting" (`nvram`).

use super::edit::{Edits, escape};
use super::refuse::cannot;
use super::tree::Element;
use super::{Domain, Transform};
use crate::error::Error;
use crate::inventory::ImageFormat;

/// A machine's variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvram {
    /// Their file; none leaves its name to libvirt, which before 9.2 wrote it down for a process only.
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

/// What libvirt calls the file that a definition does not name: `qemu_domain.c`, `qemuDomainNVRAMPathFormat`.
pub(super) fn unnamed(dir: &str, machine: &str) -> String {
    format!("{dir}/{machine}_VARS.fd")
}

/// The path stands in the element's text, or in a `<source>` of its own since libvirt 8.5.
fn path(nvram: &Element) -> Option<&str> {
    let source = nvram.attr_at(&["source"], "file");
    source.or_else(|| Some(nvram.trimmed())).filter(|path| path.starts_with('/'))
}

/// Variables that lie elsewhere than in a file, or in a file that we do not know how to carry.
pub(super) fn refusals(domain: &Domain) -> Vec<Error> {
    let by_hand = "Copy the machine by hand";
    let store = domain.root.at(&["os", "varstore"]);
    let store = store.map(|_| cannot("its firmware variables lie in a <varstore>, which is not known here", by_hand));
    let Some(nvram) = domain.root.at(&["os", "nvram"]) else { return store.into_iter().collect() };
    let help = "Move the variables into a file of the source's host, or copy the machine by hand";
    let elsewhere = nvram.attr("type").filter(|kind| *kind != "file");
    let elsewhere = elsewhere.map(|kind| cannot(format!("its firmware variables lie on {kind:?} storage"), help));
    let odd = read(domain).filter(|nvram| matches!(nvram.format, ImageFormat::Other(_)));
    let odd = odd.map(|nvram| cannot(format!("its firmware variables have the format {}", nvram.format), help));
    elsewhere.into_iter().chain(odd).chain(store).collect()
}

/// Paths that matter here and that a target may do without: firmware that libvirt chooses by itself, templates.
pub(super) fn wished_paths(domain: &Domain) -> Vec<String> {
    let loader = domain.root.text_at(&["os", "loader"]);
    let template = domain.root.attr_at(&["os", "nvram"], "template");
    let variables = read(domain).and_then(|nvram| nvram.path);
    let dir = variables.as_deref().and_then(|path| path.rsplit_once('/')).map(|(dir, _)| dir);
    [loader, template, dir].into_iter().flatten().filter(|path| path.starts_with('/')).map(str::to_owned).collect()
}

/// From here on libvirt writes down the firmware that it chose, and reads the format of variables: its news of 9.2.0.
const CHOICE_IS_KEPT: u64 = 9_002_000;

/// Whether a libvirt of this version reads variables of this format; an older one takes all of them as raw.
pub(crate) fn is_read_by(format: &ImageFormat, libvirt: u64) -> bool {
    *format == ImageFormat::Raw || libvirt >= CHOICE_IS_KEPT
}

/// Names the copy's own variables, and lets libvirt of the target choose firmware where it chose the source's.
pub(super) fn edit(domain: &Domain, wanted: &Transform, edits: &mut Edits<'_>) -> Vec<String> {
    let Some(os) = domain.root.child("os") else { return Vec::new() };
    let missing = |path: &str| !path.is_empty() && !wanted.paths_present.contains(path);
    let is_chosen = os.attr("firmware") == Some("efi");
    let forgets = is_chosen && wanted.libvirt_version < CHOICE_IS_KEPT;
    match (os.child("nvram"), wanted.nvram.as_deref()) {
        (Some(nvram), Some(new)) => {
            match nvram.child("source") {
                Some(source) => edits.set_attribute(source, "file", new),
                None => edits.set_text(nvram, new),
            }
            if forgets || nvram.attr("template").is_some_and(missing) {
                // Only a machine without variables needs the template, and then libvirt finds its own.
                ["template", "templateFormat"].iter().for_each(|name| edits.remove_attribute(nvram, name));
            }
        }
        (None, Some(new)) => edits.append(os, &format!("<nvram>{}</nvram>", escape(new))),
        (_, None) => {}
    }
    let loader = os.child("loader").filter(|_| is_chosen);
    let Some(loader) = loader.filter(|loader| missing(loader.trimmed()) || (forgets && is_a_choice(loader))) else {
        return Vec::new();
    };
    choose_again(loader, edits);
    let why = if missing(loader.trimmed()) { "the target does not have it" } else { "its libvirt is older" };
    vec![format!("the firmware {} is chosen again at the target, with the same features: {why}", loader.trimmed())]
}

/// What somebody may ask of the firmware to be chosen: formatdomain, "Operating system booting". The rest of the element
/// is the choice itself, which an older libvirt refuses.
const ASKED: [&str; 2] = ["secure", "stateless"];

fn is_a_choice(loader: &Element) -> bool {
    !loader.trimmed().is_empty() || loader.attributes.iter().any(|attribute| !ASKED.contains(&attribute.name.as_str()))
}

/// Leaves of a choice what was asked for: secure boot must not get lost with the path.
fn choose_again(loader: &Element, edits: &mut Edits<'_>) {
    let asked = ASKED.iter().filter_map(|name| Some(format!(" {name}='{}'", escape(loader.attr(name)?))));
    let asked: String = asked.collect();
    if asked.is_empty() { edits.remove(loader) } else { edits.replace(loader, &format!("<loader{asked}/>")) }
}
