//! `qemu-img` asked about images: what those are that we do not read ourselves, and whether one is broken.

use std::path::Path;
use std::time::Duration;

use kvm_clone_core::inventory::ImageFormat as Format;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Error, Result};
use serde::Deserialize;

use super::blockdev;
use crate::program;

/// How long a look at an image may take.
const INFO_DEADLINE: Duration = Duration::from_secs(30);
/// How long a check may take: it reads all metadata, of which a large image has gigabytes.
const CHECK_DEADLINE: Duration = Duration::from_secs(1800);
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

#[derive(Deserialize)]
struct Bitmap {
    name: String,
}

#[derive(Deserialize)]
struct Extent {
    filename: String,
}

/// Looks at an image of a format that is qemu's alone.
pub(super) fn look(path: &Path, format: &str) -> Result<Foreign> {
    let shown = path.display().to_string();
    // `-U`: a look must not keep a guest from starting.
    let outcome =
        program::run("qemu-img", &["info", "-U", "--output=json", "-f", format, &shown], None, INFO_DEADLINE, &|| {
            false
        })?;
    if !outcome.status.success() {
        return Err(Error::verification(format!(
            "{shown} cannot be read as a {format} image: {}",
            outcome.output.trim()
        ))
        .with("path", &shown)
        .help("Correct the driver type of the disk in the machine's definition, or repair the image"));
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

fn info(shown: &str, told: &str) -> Result<Info> {
    serde_json::from_str(told)
        .map_err(|error| Error::internal(format!("qemu-img info of {shown} is no JSON of an image: {error}")))
}

/// The names of the bitmaps in a qcow2 image of ours, also of those that were never closed.
pub(super) fn bitmaps(path: &str) -> Result<Vec<String>> {
    let arguments = ["info", "--output=json", "-f", "qcow2", "--", path];
    let outcome = program::run("qemu-img", &arguments, None, INFO_DEADLINE, &|| false)?;
    if !outcome.status.success() {
        let message = format!("{path} cannot be read as a qcow2 image: {}", outcome.output.trim());
        return Err(Error::verification(message).with("path", path).help("Nothing was made at the target"));
    }
    let specific = info(path, &outcome.output)?.format_specific.and_then(|specific| specific.data);
    Ok(specific.into_iter().flat_map(|data| data.bitmaps).map(|bitmap| bitmap.name).collect())
}

/// What is wrong with the image itself, whatever is behind it. Clusters that are lost but belong to nobody (leaks) are
/// nothing wrong; a host without `qemu-img` cannot say.
pub(super) fn check(image: &ImageSpec) -> Result<Option<String>> {
    // A raw image has no structure that could be broken.
    if image.format == Format::Raw || program::find("qemu-img").is_none() {
        return Ok(None);
    }
    let alone = ImageSpec { backing: Vec::new(), ..image.clone() };
    let outcome =
        program::run("qemu-img", &["check", "-U", &blockdev::filename(&alone)], None, CHECK_DEADLINE, &|| false)?;
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
