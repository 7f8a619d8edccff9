//! Disks of a machine: where they lie, in which format, with which content.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::guest::Fill;
use crate::run::{make_dir, output, program, run};
use crate::{Host, LabError, Result};

/// The format of a disk's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// The bytes themselves.
    Raw,
    /// qemu's own format.
    Qcow2,
}

impl DiskFormat {
    /// Its name for qemu and libvirt, and the usual suffix of files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The suffix that kvm-clone gives to its files.
    pub(crate) fn file_suffix(self) -> &'static str {
        match self {
            Self::Raw => "img",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A disk that is to be made.
#[derive(Debug, Clone)]
pub struct DiskSpec {
    pub(crate) target: String,
    pub(crate) format: DiskFormat,
    pub(crate) size: u64,
    pub(crate) fill: Fill,
    pub(crate) path: Option<String>,
    pub(crate) existing: bool,
    pub(crate) extra_xml: String,
}

impl DiskSpec {
    /// An empty qcow2 disk; `target` is its name for the guest, e.g. `vda`.
    #[must_use]
    pub fn qcow2(target: &str, size: u64) -> Self {
        Self::new(target, DiskFormat::Qcow2, size)
    }

    /// An empty raw disk, sparse.
    #[must_use]
    pub fn raw(target: &str, size: u64) -> Self {
        Self::new(target, DiskFormat::Raw, size)
    }

    fn new(target: &str, format: DiskFormat, size: u64) -> Self {
        let (target, extra_xml) = (target.to_owned(), String::new());
        Self { target, format, size, fill: Fill::None, path: None, existing: false, extra_xml }
    }

    /// What it holds.
    #[must_use]
    pub fn fill(mut self, fill: Fill) -> Self {
        self.fill = fill;
        self
    }

    /// Where the image lies inside the host; otherwise `/var/lib/libvirt/images/<machine>-<target>.<format>`.
    #[must_use]
    pub fn at(mut self, path: &str) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// The image (or block device) is there already and is only named.
    #[must_use]
    pub fn existing(mut self) -> Self {
        self.existing = true;
        self
    }

    /// More elements of the `<disk>`, e.g. a `<serial>`.
    #[must_use]
    pub fn xml(mut self, fragment: &str) -> Self {
        self.extra_xml.push_str(fragment);
        self
    }
}

/// A disk of a machine that is defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its name for the guest.
    pub target: String,
    /// The image's path inside the host.
    pub path: String,
    /// The image's format.
    pub format: DiskFormat,
    /// Its size for the guest.
    pub size: u64,
}

/// Makes the image, unless it exists. Runs on the machine: the host may lack `qemu-img`.
pub(crate) fn create(host: &Host, machine: &str, spec: &DiskSpec) -> Result<Disk> {
    let format = spec.format.name();
    let usual = || format!("/var/lib/libvirt/images/{machine}-{}.{format}", spec.target);
    let path = spec.path.clone().unwrap_or_else(usual);
    if !spec.existing {
        let outside = host.path(&path);
        if let Some(parent) = outside.parent() {
            make_dir(parent)?;
        }
        match spec.format {
            DiskFormat::Raw => create_raw(&outside, spec)?,
            DiskFormat::Qcow2 => create_qcow2(&outside, spec)?,
        }
        if host.spec().qemu_unprivileged {
            run(&["chmod", "0644", &outside.to_string_lossy()])?;
        }
    }
    Ok(Disk { target: spec.target.clone(), path, format: spec.format, size: spec.size })
}

fn create_raw(path: &Path, spec: &DiskSpec) -> Result<()> {
    let image = File::create(path).map_err(LabError::file("make", path))?;
    image.set_len(spec.size).map_err(LabError::file("grow", path))?;
    spec.fill.write(&image, spec.size, path)
}

fn create_qcow2(path: &Path, spec: &DiskSpec) -> Result<()> {
    if spec.fill == Fill::None {
        let mut command = program("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "--"]).arg(path).arg(spec.size.to_string());
        return output(&mut command).map(drop);
    }
    let raw = PathBuf::from(format!("{}.filling", path.display()));
    create_raw(&raw, spec)?;
    let mut command = program("qemu-img");
    command.args(["convert", "-q", "-f", "raw", "-O", "qcow2", "--"]).arg(&raw).arg(path);
    output(&mut command)?;
    std::fs::remove_file(&raw).map_err(LabError::file("remove", &raw))
}
