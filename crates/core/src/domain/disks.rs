//! Disks: formatdomain, "Hard drives, floppy disks, CDROMs".

use std::collections::{BTreeMap, BTreeSet};

use super::Domain;
use super::edit::{Edits, escape};
use super::limits::unreadable;
use super::refuse::cannot;
use super::tree::Element;
use crate::error::{Error, Result};
use crate::inventory::ImageFormat;
use crate::name::DiskTarget;

/// A `<disk>` of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskElement {
    /// The device as the guest's definition names it; unique within a machine.
    pub target: DiskTarget,
    /// What it looks like to the guest.
    pub device: DiskDevice,
    /// Where its data comes from.
    pub kind: DiskKind,
    /// The path, or `volume` of a pool; nothing for an empty drive.
    pub source: Option<String>,
    /// The pool of a disk of kind [`DiskKind::Volume`].
    pub pool: Option<String>,
    /// The image format as libvirt writes it; libvirt takes a missing one as `raw`.
    pub format: Option<String>,
    /// Whether the guest may not write to it.
    pub readonly: bool,
    /// Whether several machines may write to it at once.
    pub shareable: bool,
    /// Whether libvirt starts the machine without its image where that is missing (`startupPolicy`).
    pub optional: bool,
    /// Whether what the guest writes is dropped when it stops.
    pub transient: bool,
    /// The serial number that the guest sees.
    pub serial: Option<String>,
}

/// What a disk looks like to the guest (`device`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskDevice {
    /// A fixed disk.
    Disk,
    /// A CD-ROM drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// A SCSI unit passed through with its commands.
    Lun,
}

impl DiskDevice {
    /// Whether its medium can be taken out.
    #[must_use]
    pub fn is_removable(self) -> bool {
        matches!(self, Self::Cdrom | Self::Floppy)
    }
}

impl DiskElement {
    /// Its format; libvirt takes one that is not said as raw.
    #[must_use]
    pub fn format(&self) -> ImageFormat {
        ImageFormat::named(self.format.as_deref())
    }
}

/// Where a disk's data comes from (`type`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskKind {
    /// A file.
    File,
    /// A block device of the host.
    Block,
    /// A volume of a storage pool, named by pool and volume.
    Volume,
    /// A network protocol.
    Network,
    /// A kind that we know nothing of.
    Other(String),
}

/// The image that takes the place of a source disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// Its path on the target.
    pub path: String,
    /// Its format.
    pub format: ImageFormat,
    /// The images that it stands on, the nearest first, by path and format: named, so that libvirt and qemu never guess them.
    pub over: Vec<(String, ImageFormat)>,
    /// Whether it is a block device, not a file.
    pub device: bool,
}

impl NewDisk {
    /// An image by itself.
    #[must_use]
    pub fn new(path: impl Into<String>, format: ImageFormat) -> Self {
        Self { path: path.into(), format, over: Vec::new(), device: false }
    }

    /// Images that stand on each other, the topmost first. All are files.
    #[must_use]
    pub fn of_chain(images: &[(String, ImageFormat)]) -> Option<Self> {
        let ((path, format), over) = images.split_first()?;
        Some(Self { over: over.to_vec(), ..Self::new(path, format.clone()) })
    }
}

/// Reads every disk; two with one target would make "the disk vda" mean two things.
pub(super) fn read(root: &Element) -> Result<Vec<DiskElement>> {
    let mut targets = BTreeSet::new();
    let mut disks = Vec::new();
    let elements = root.child("devices").into_iter().flat_map(|devices| devices.all("disk"));
    for element in elements {
        let target = element.attr_at(&["target"], "dev").ok_or_else(|| unreadable("a disk has no target device"))?;
        let disk = read_one(element, target.parse().map_err(unreadable)?)?;
        if !targets.insert(disk.target.clone()) {
            return Err(unreadable(format!("it has two disks {}", disk.target)));
        }
        disks.push(disk);
    }
    Ok(disks)
}

fn read_one(element: &Element, target: DiskTarget) -> Result<DiskElement> {
    let device = match element.attr("device").unwrap_or("disk") {
        "disk" => DiskDevice::Disk,
        "cdrom" => DiskDevice::Cdrom,
        "floppy" => DiskDevice::Floppy,
        "lun" => DiskDevice::Lun,
        other => return Err(unreadable(format!("disk {target} is a {other:?}, which libvirt does not know"))),
    };
    // formatdomain: the attribute `type` is "file" where it is missing.
    let (kind, attribute) = match element.attr("type").unwrap_or("file") {
        "file" => (DiskKind::File, "file"),
        "block" => (DiskKind::Block, "dev"),
        "volume" => (DiskKind::Volume, "volume"),
        "network" => (DiskKind::Network, "name"),
        other => (DiskKind::Other(other.to_owned()), "path"),
    };
    let of_source = |name| element.attr_at(&["source"], name).filter(|value| !value.is_empty()).map(str::to_owned);
    Ok(DiskElement {
        target,
        device,
        source: of_source(attribute),
        pool: if kind == DiskKind::Volume { of_source("pool") } else { None },
        kind,
        format: element.attr_at(&["driver"], "type").map(str::to_owned),
        readonly: element.child("readonly").is_some(),
        shareable: element.child("shareable").is_some(),
        optional: of_source("startupPolicy").as_deref() == Some("optional"),
        transient: element.child("transient").is_some(),
        serial: element.text_at(&["serial"]).map(str::to_owned),
    })
}

impl Domain {
    /// The disks with their elements.
    pub(super) fn disk_elements(&self) -> impl Iterator<Item = (&DiskElement, &Element)> {
        self.disks().iter().zip(self.devices_named("disk"))
    }
}

/// What cannot be copied yet, one error for each disk.
pub(super) fn refusals(domain: &Domain) -> Vec<Error> {
    let data = domain.disk_elements().filter(|(disk, _)| !disk.device.is_removable());
    data.filter_map(|(disk, element)| refuse_one(disk, element)).collect()
}

fn refuse_one(disk: &DiskElement, element: &Element) -> Option<Error> {
    let target = &disk.target;
    let refuse = |what: &str, help: &str| Some(cannot(format!("disk {target} {what}"), help).with("disk", target));
    let detach = &format!("Leave the disk out with --exclude {target}, and see to its contents by other means");
    match (&disk.device, &disk.kind) {
        (DiskDevice::Lun, _) => return refuse("is a SCSI unit passed through from the host", detach),
        (_, DiskKind::File | DiskKind::Block | DiskKind::Volume) => {}
        (_, DiskKind::Network) => return refuse("is reached over a network protocol", detach),
        (_, DiskKind::Other(kind)) => return refuse(&format!("is of the kind {kind:?}"), detach),
    }
    if disk.source.is_none() {
        return refuse("has no source", "Look at the source machine with: virsh domblklist --inactive VM");
    }
    if disk.shareable {
        return refuse("is shared between machines, so no copy of it is one point in time", detach);
    }
    if let Some(inside) = element.descendants().iter().find(|inside| !carried_inside(inside)) {
        return refuse(&format!("uses <{}>", inside.name), detach);
    }
    None
}

/// Whether an element inside a `<disk>` can be carried: secrets, slices of files and other sources can not.
fn carried_inside(element: &Element) -> bool {
    const NOT_CARRIED: [&str; 7] =
        ["encryption", "auth", "slices", "reservations", "cookies", "dataStore", "throttlefilters"];
    !NOT_CARRIED.contains(&element.name.as_str())
}

/// Points each disk at its new image.
pub(super) fn edit(domain: &Domain, new: &BTreeMap<DiskTarget, NewDisk>, edits: &mut Edits<'_>) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for (disk, element) in domain.disk_elements().filter(|(disk, _)| !disk.device.is_removable()) {
        let new = new.get(&disk.target).ok_or_else(|| Error::internal(format!("disk {} has no image", disk.target)))?;
        let source = element.child("source");
        let source = source.ok_or_else(|| Error::internal(format!("disk {} has no source", disk.target)))?;
        repoint(element, source, new, edits);
        if let (DiskKind::Volume, Some(volume), Some(pool)) = (&disk.kind, &disk.source, &disk.pool) {
            let target = &disk.target;
            notes.push(format!("disk {target}, volume {volume} of pool {pool}, becomes a file"));
        }
        if disk.readonly {
            notes.push(format!("disk {} is read-only; the copy has an image of its own all the same", disk.target));
        }
        if disk.transient {
            notes
                .push(format!("disk {} is transient: what its guest wrote since its start is not copied", disk.target));
        }
        if source.child("seclabel").is_some() {
            notes.push(format!("the security label of disk {} is not carried; libvirt labels the copy", disk.target));
        }
    }
    Ok(notes)
}

/// Makes an image the source of a disk or drive.
pub(super) fn repoint(element: &Element, source: &Element, new: &NewDisk, edits: &mut Edits<'_>) {
    edits.set_attribute(element, "type", if new.device { "block" } else { "file" });
    edits.replace(source, &(new_source(source, new) + &backing_store(new)));
    set_driver(element, source, new, edits);
    // The source's chain is not the copy's; `mirror` describes a job of the source that the copy does not have.
    for name in ["backingStore", "mirror"] {
        element.all(name).for_each(|stale| edits.remove(stale));
    }
}

fn new_source(source: &Element, new: &NewDisk) -> String {
    let policy = source.attr("startupPolicy").map(|policy| format!(" startupPolicy='{}'", escape(policy)));
    let attribute = if new.device { "dev" } else { "file" };
    format!("<source {attribute}='{}'{}/>", escape(&new.path), policy.unwrap_or_default())
}

/// formatdomain, "Hard drives, floppy disks, CDROMs" (`backingStore`): each holds the next one, an empty one ends the chain.
fn backing_store(new: &NewDisk) -> String {
    let hold = |inner: String, (path, format): &(String, ImageFormat)| {
        let inner = inner.replace('\n', "\n  ");
        let path = escape(path);
        format!(
            "<backingStore type='file'>\n  <format type='{format}'/>\n  <source file='{path}'/>\n  {inner}\n</backingStore>"
        )
    };
    if new.over.is_empty() {
        return String::new();
    }
    format!("\n{}", new.over.iter().rev().fold("<backingStore/>".to_owned(), hold))
}

fn set_driver(disk: &Element, source: &Element, new: &NewDisk, edits: &mut Edits<'_>) {
    let Some(driver) = disk.child("driver") else {
        edits.insert_after(source, &format!("<driver name='qemu' type='{}'/>", new.format));
        return;
    };
    edits.set_attribute(driver, "type", &new.format.to_string());
    // formatdomain: the metadata cache belongs to qcow2 alone.
    if new.format != ImageFormat::Qcow2 {
        driver.all("metadata_cache").for_each(|cache| edits.remove(cache));
    }
}
