//! The definition of a machine: libvirt's domain XML, read and transformed without loss.
//!
//! [`Domain::parse`] reads it, [`refusals`] says what this version cannot carry, [`warnings`] what depends on the
//! host, and [`transform`] makes the definition of the new machine. Each theme has a file that holds both what is
//! read and what is changed. Facts about elements come from libvirt's `formatdomain` manual, whose sections are named
//! where they are used.

mod arguments;
mod binding;
mod chardev;
mod cpu;
mod devices;
mod disks;
mod edit;
mod firmware;
mod hostbound;
mod identity;
mod incomplete;
mod kept;
mod limits;
mod lineage;
mod media;
mod network;
mod nvram;
mod output;
mod plug;
mod reduce;
mod refuse;
mod tpm;
mod transform;
pub(crate) mod tree;
mod which;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use uuid::Uuid;

pub use binding::Binding;
pub use cpu::Cpu;
pub use disks::{DiskDevice, DiskElement, DiskKind, NewDisk};
pub(crate) use edit::escape;
pub use identity::{Identity, Macs, macs_of};
pub use incomplete::{
    Incomplete, WrittenImage, given_since, is_withdrawn_by, starts_without, with_true_images, withdraw,
};
pub use kept::{KeptImage, KeptPoint};
pub(crate) use limits::unreadable;
pub use lineage::{Lineage, LineagePolicy};
pub use network::Interface;
pub use nvram::Nvram;
pub(crate) use nvram::is_read_by;
pub use plug::Plug;
pub use reduce::{Reduction, reduce};
pub use refuse::{CarryContext, Whereabouts, refusals, warnings};
pub use tpm::{EmulatedTpm, TpmState};
pub use transform::{Transform, redact, repoint, transform};

use crate::error::Result;
use crate::inventory::ImageFormat;
use crate::name::SourceName;
use crate::size::ByteSize;
use tree::Element;

/// A definition that was read.
#[derive(Debug, Clone)]
pub struct Domain {
    xml: String,
    root: Element,
    name: SourceName,
    uuid: Uuid,
    disks: Vec<DiskElement>,
}

/// What the machine runs on: formatdomain, "Operating system booting" and "Devices" (`emulator`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The accelerator: `kvm`, `qemu`, …
    pub virt_type: String,
    /// The guest's architecture: `x86_64`, `aarch64`, …
    pub arch: Option<String>,
    /// The machine type: `pc-q35-7.2`, …
    pub machine: Option<String>,
    /// The path of the emulator.
    pub emulator: Option<String>,
}

/// Elements that libvirt reads once; a second one could hide something from us that libvirt sees, or the reverse.
const ONLY_ONCE: [&str; 9] = ["name", "uuid", "genid", "title", "memory", "vcpu", "os", "metadata", "devices"];

impl Domain {
    /// Reads a definition as libvirt gives it out.
    ///
    /// # Errors
    /// [`Code::Libvirt`](crate::Code::Libvirt) where it is too large or too deep, declares entities, is not
    /// well-formed, or lacks what every machine has.
    pub fn parse(xml: &str) -> Result<Self> {
        let root = Element::parse(xml)?;
        if !root.is("domain") {
            return Err(unreadable(format!("it describes a <{}>, not a <domain>", root.name)));
        }
        for name in ONLY_ONCE {
            if root.all(name).count() > 1 {
                return Err(unreadable(format!("it has more than one <{name}>")));
            }
        }
        let name = root.text_at(&["name"]).ok_or_else(|| unreadable("it has no <name>"))?;
        let name = name.parse().map_err(unreadable)?;
        let uuid = root.text_at(&["uuid"]).ok_or_else(|| unreadable("it has no <uuid>"))?;
        let uuid = uuid.parse().map_err(|_| unreadable("its <uuid> is not a UUID"))?;
        let disks = disks::read(&root)?;
        Ok(Self { xml: xml.to_owned(), root, name, uuid, disks })
    }

    /// The definition as it was read.
    #[must_use]
    pub fn xml(&self) -> &str {
        &self.xml
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &SourceName {
        &self.name
    }

    /// The machine's UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The memory that the machine boots with: formatdomain, "Memory Allocation".
    #[must_use]
    pub fn memory(&self) -> ByteSize {
        ByteSize(self.root.child("memory").and_then(amount).unwrap_or(0))
    }

    /// The virtual CPUs that the machine boots with: formatdomain, "CPU Allocation".
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        let Some(element) = self.root.child("vcpu") else { return 1 };
        element.attr("current").unwrap_or_else(|| element.trimmed()).parse().unwrap_or(1)
    }

    /// Every disk, CD-ROM drive and floppy drive, in order.
    #[must_use]
    pub fn disks(&self) -> &[DiskElement] {
        &self.disks
    }

    /// The disks whose content a copy must bring: everything but exchangeable media.
    pub fn data_disks(&self) -> impl Iterator<Item = &DiskElement> {
        self.disks.iter().filter(|disk| !disk.device.is_removable())
    }

    /// Every network interface, in order.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Interface> {
        network::read(self)
    }

    /// Where this machine was copied from, if we made it.
    #[must_use]
    pub fn lineage(&self) -> Option<Lineage> {
        lineage::read(self)
    }

    /// The machine's generation id, where one is written: formatdomain, "General metadata" (`genid`).
    #[must_use]
    pub fn genid(&self) -> Option<Uuid> {
        self.root.text_at(&["genid"])?.parse().ok()
    }

    /// What the machine runs on.
    #[must_use]
    pub fn platform(&self) -> Platform {
        let os_type = self.root.at(&["os", "type"]);
        let os_attribute = |name| os_type.and_then(|os_type| os_type.attr(name)).map(str::to_owned);
        Platform {
            virt_type: self.root.attr("type").unwrap_or_default().to_owned(),
            arch: os_attribute("arch"),
            machine: os_attribute("machine"),
            emulator: self.root.text_at(&["devices", "emulator"]).map(str::to_owned),
        }
    }

    /// Paths on the host that the definition names and that a copy does not bring: media, kernels, firmware tables, directories
    /// of logs.
    ///
    /// The target is asked which of them it has; [`refusals`] and [`transform`] need the answer.
    #[must_use]
    pub fn host_paths(&self) -> BTreeSet<String> {
        let media = self.disks.iter().filter(|disk| disk.device.is_removable());
        let media = media.filter_map(|disk| disk.source.clone()).filter(|path| path.starts_with('/'));
        let firmware = firmware::paths(self).into_iter().map(|(_, path)| path);
        media.chain(firmware).chain(nvram::wished_paths(self)).chain(output::directories(self)).collect()
    }

    /// Everything in the definition that looks like a path, whatever it is for: files that must not be taken from under
    /// the machine, those of backing and data stores that are only written here among them.
    #[must_use]
    pub fn named_paths(&self) -> BTreeSet<String> {
        let elements = self.root.descendants();
        let texts = elements.iter().map(|element| element.trimmed());
        let values = elements.iter().flat_map(|element| element.attributes.iter().map(|a| a.value.as_str()));
        texts.chain(values).filter(|text| text.starts_with('/')).map(str::to_owned).collect()
    }

    /// The variables of the machine's UEFI firmware; none where it boots otherwise.
    #[must_use]
    pub fn nvram(&self) -> Option<Nvram> {
        nvram::read(self)
    }

    /// The file of the machine's firmware variables, which may not be there yet, and its format. `dir` is where libvirt has
    /// those that no definition names.
    #[must_use]
    pub fn nvram_file(&self, dir: &str) -> Option<(String, ImageFormat)> {
        let nvram = self.nvram()?;
        Some((nvram.path.unwrap_or_else(|| nvram::unnamed(dir, self.name().as_str())), nvram.format))
    }

    /// Drives with an image that the target lacks, or must not share with the source.
    #[must_use]
    pub fn media_to_copy(&self, paths_present: &BTreeSet<String>, whereabouts: Whereabouts) -> Vec<&DiskElement> {
        media::to_copy(self, paths_present, whereabouts)
    }

    /// The machine's emulated TPM, if it has one.
    #[must_use]
    pub fn tpm(&self) -> Option<EmulatedTpm> {
        tpm::read(self)
    }

    /// The child elements of `<devices>`.
    pub(crate) fn devices(&self) -> &[Element] {
        self.root.child("devices").map_or(&[], |devices| &devices.children)
    }

    /// The devices of one kind.
    pub(crate) fn devices_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.devices().iter().filter(move |device| device.is(name))
    }
}

/// An amount of memory in bytes, as an element has it: a number, and a unit beside it.
fn amount(element: &Element) -> Option<u64> {
    let number: u64 = element.trimmed().parse().ok()?;
    Some(number.saturating_mul(bytes_of_unit(element.attr("unit").unwrap_or("KiB"))))
}

/// formatdomain, "Memory Allocation": the units are those of `virsh`, KiB where none is given.
fn bytes_of_unit(unit: &str) -> u64 {
    let powers_of = |base: u64, letter: &str| {
        let power = ["K", "M", "G", "T", "P", "E"].iter().position(|known| known.eq_ignore_ascii_case(letter));
        power.and_then(|power| u32::try_from(power + 1).ok()).and_then(|power| base.checked_pow(power))
    };
    let known = match unit {
        "b" | "byte" | "bytes" => Some(1),
        _ if unit.ends_with("iB") => powers_of(1024, unit.trim_end_matches("iB")),
        _ if unit.ends_with('B') => powers_of(1000, unit.trim_end_matches('B')),
        _ => powers_of(1024, unit),
    };
    known.unwrap_or(1024)
}
