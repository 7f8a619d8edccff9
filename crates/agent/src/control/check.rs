//! `qemu-img` asked about images: what those are that we do not read ourselves, and whether one is broken.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use kvm_clone_core::inventory::ImageFormat as Format;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Error, Result};
use serde::Deserialize;

use super::blockdev;
use super::progress::Progress;
use crate::place::io_error;
use crate::program::{self, Watch};

/// How long a look at an image may take.
const INFO_DEADLINE: Duration = Duration::from_secs(30);
/// As much of a file as tells what it is.
const HEAD: u64 = 512;
/// Lines of a check's report that are shown.
const SHOWN: usize = 3;

/// What `qemu-img info` says of an image of a format that is qemu's alone.
pub(super) struct Foreign {
    /// The size that the guest sees, in bytes.
    pub(super) virtual_size: u64,
    /// Why it cannot be copied.
    pub(super) refused: Option<String>,
}

/// The part of `qemu-img info --output=json` that is used (qemu's `qapi/block-core.json`, `ImageInfo`).
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    backing_filename: Option<String>,
    format_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    data: Option<SpecificData>,
}

#[derive(Deserialize)]
struct SpecificData {
    #[serde(default)]
    extents: Vec<Extent>,
    #[serde(default)]
    bitmaps: Vec<Bitmap>,
}

/// A bitmap in a qcow2 image.
#[derive(Deserialize)]
pub(super) struct Bitmap {
    pub(super) name: String,
    #[serde(default)]
    flags: Vec<String>,
}

impl Bitmap {
    /// Whether it was never closed: what it said is lost (qemu's `qapi/block-core.json`, `Qcow2BitmapInfoFlags`).
    pub(super) fn is_lost(&self) -> bool {
        self.flags.iter().any(|flag| flag == "in-use")
    }
}

#[derive(Deserialize)]
struct Extent {
    filename: String,
}

/// What a vmdk file is before any program opens it.
#[derive(Debug, PartialEq, Eq)]
enum Vmdk {
    /// An image, all of it in this file.
    Alone,
    /// A description of other files, which qemu would open at once, whatever they are.
    Describes,
    /// Neither.
    None,
}

/// Virtual Disk Format 1.1, `SparseExtentHeader` and "The Descriptor File": an image begins with `KDMV`, or `COWD` as old
/// ones do. A header with a capacity of nought holds nothing but a description, as qemu's `vmdk_open_vmdk4` reads it.
fn vmdk(head: &[u8]) -> Vmdk {
    let has_capacity = head.get(12..20).is_some_and(|capacity| capacity.iter().any(|byte| *byte != 0));
    let text = head.trim_ascii_start();
    match () {
        () if head.starts_with(b"COWD") || head.starts_with(b"KDMV") && has_capacity => Vmdk::Alone,
        () if head.starts_with(b"KDMV") || text.is_empty() || text.is_ascii() => Vmdk::Describes,
        () => Vmdk::None,
    }
}

fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    std::fs::File::open(path)?.take(HEAD).read_to_end(&mut head)?;
    Ok(head)
}

/// Looks at an image of a format that is qemu's alone.
pub(super) fn look(path: &Path, format: &str) -> Result<Foreign> {
    let shown = path.display().to_string();
    if format == "vmdk" {
        match vmdk(&head(path).map_err(|error| io_error("reading", path, &error))?) {
            Vmdk::Alone => {}
            Vmdk::Describes => {
                let refused = "a description of other files, of format vmdk, which are not opened".to_owned();
                return Ok(Foreign { virtual_size: 0, refused: Some(refused) });
            }
            Vmdk::None => return Err(no_image(&shown, format, "it has no header of that format")),
        }
    }
    // `-U`: a look must not keep a guest from starting.
    let outcome = program::run(
        "qemu-img",
        &["info", "-U", "--output=json", "-f", format, &shown],
        Vec::new(),
        &Watch::briefly(INFO_DEADLINE),
    )?;
    if !outcome.status.success() {
        return Err(no_image(&shown, format, outcome.output.trim()));
    }
    let info = info(&shown, &outcome.output)?;
    let extents = info.format_specific.and_then(|specific| specific.data).map_or(Vec::new(), |data| data.extents);
    let refused = if info.backing_filename.is_some() {
        Some(format!("a backing image under one of format {format}"))
    } else if extents.iter().any(|extent| Path::new(&extent.filename) != path) {
        Some(format!("several files for one image of format {format}"))
    } else {
        None
    };
    Ok(Foreign { virtual_size: info.virtual_size, refused })
}

fn no_image(shown: &str, format: &str, why: &str) -> Error {
    Error::verification(format!("{shown} cannot be read as a {format} image: {why}"))
        .with("path", shown)
        .help("Correct the driver type of the disk in the machine's definition, or repair the image")
}

fn info(shown: &str, told: &str) -> Result<Info> {
    serde_json::from_str(told)
        .map_err(|error| Error::internal(format!("qemu-img info of {shown} is no JSON of an image: {error}")))
}

/// The bitmaps in a qcow2 image of ours, also those that were never closed.
pub(super) fn bitmaps(path: &str) -> Result<Vec<Bitmap>> {
    let arguments = ["info", "--output=json", "-f", "qcow2", "--", path];
    let outcome = program::run("qemu-img", &arguments, Vec::new(), &Watch::briefly(INFO_DEADLINE))?;
    if !outcome.status.success() {
        let message = format!("{path} cannot be read as a qcow2 image: {}", outcome.output.trim());
        return Err(Error::verification(message).with("path", path).help("Look at it: qemu-img info"));
    }
    let specific = info(path, &outcome.output)?.format_specific.and_then(|specific| specific.data);
    Ok(specific.into_iter().flat_map(|data| data.bitmaps).collect())
}

/// What is wrong with the image itself, whatever is behind it. Clusters that are lost but belong to nobody (leaks) are
/// nothing wrong; a host without `qemu-img` cannot say. It takes as long as it takes: all metadata is read, of which a large
/// image has gigabytes.
pub(super) fn check(image: &ImageSpec, progress: &Progress) -> Result<Option<String>> {
    // A raw image has no structure that could be broken.
    if image.format == Format::Raw || program::find("qemu-img").is_none() {
        return Ok(None);
    }
    let alone = ImageSpec { backing: Vec::new(), ..image.clone() };
    let watch = Watch { deadline: None, stop: &|| false, worked: &|work| progress.add(work) };
    let outcome = program::run("qemu-img", &["check", "-U", &blockdev::filename(&alone)], Vec::new(), &watch)?;
    // qemu-img(1), "check": 0 is well, 2 is corrupt, 3 has leaks, 63 is a format that knows no check.
    match outcome.status.code() {
        Some(0 | 3 | 63) => Ok(None),
        _ => Ok(Some(summary(&outcome.output))),
    }
}

fn summary(report: &str) -> String {
    let lines: Vec<&str> = report.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let more = if lines.len() > SHOWN { format!("; and {} more lines", lines.len() - SHOWN) } else { String::new() };
    format!("{}{more}", lines.iter().take(SHOWN).copied().collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_vmdk_that_describes_other_files_is_known_before_a_program_opens_it() {
        let header = |magic: &[u8], capacity: u64| [magic, &[1, 0, 0, 0, 3, 0, 0, 0], &capacity.to_le_bytes()].concat();
        assert_eq!(vmdk(&header(b"KDMV", 128)), Vmdk::Alone);
        assert_eq!(vmdk(&header(b"COWD", 0)), Vmdk::Alone);
        assert_eq!(vmdk(&header(b"KDMV", 0)), Vmdk::Describes);
        assert_eq!(vmdk(b"KDMV"), Vmdk::Describes);
        for text in ["# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0\n", "\n  version=1\n", ""] {
            assert_eq!(vmdk(text.as_bytes()), Vmdk::Describes, "{text}");
        }
        assert_eq!(vmdk(&[0xeb, 0x63, 0x90, 0xff]), Vmdk::None);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vmdk");
        std::fs::write(&path, "# Disk DescriptorFile\nRW 1 FLAT \"/dev/null\" 0\n").unwrap();
        let refused = look(&path, "vmdk").unwrap().refused.unwrap();
        assert!(refused.contains("other files"), "{refused}");
    }
}
