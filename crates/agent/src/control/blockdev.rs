//! An image as qemu's programs are told it: every file by name, so that they open no other.

use std::fs;
use std::os::unix::fs::FileTypeExt;

use kvm_clone_core::inventory::ImageFormat as Format;
use kvm_clone_core::wire::lane::ImageSpec;
use serde_json::{Value, json};

/// The pseudo file name `json:{…}` (qemu(1), "Disk image file formats"; qemu's `qapi/block-core.json`,
/// `BlockdevOptions`). Opened read-only and without locks: a guest's start is never hindered.
pub(super) fn filename(image: &ImageSpec) -> String {
    let mut top = chain(image);
    top["read-only"] = json!(true);
    top["force-share"] = json!(true);
    format!("json:{top}")
}

/// The same for a program that changes the image, and locks it meanwhile, as qemu does for a guest.
pub(super) fn writable(image: &ImageSpec) -> String {
    format!("json:{}", chain(image))
}

fn chain(image: &ImageSpec) -> Value {
    let mut node = Value::Null;
    for (path, format) in image.backing.iter().rev() {
        node = layer(image, path, format, node);
    }
    layer(image, &image.path, &image.format, node)
}

fn layer(image: &ImageSpec, path: &str, format: &Format, backing: Value) -> Value {
    let mut node = json!({ "driver": format.to_string(), "file": file(path) });
    if *format != Format::Raw {
        node["backing"] = backing;
    }
    if let Some((_, data)) = image.data_files.iter().find(|(owner, _)| owner == path) {
        node["data-file"] = file(data);
    }
    node
}

fn file(path: &str) -> Value {
    let is_device = fs::metadata(path).is_ok_and(|facts| facts.file_type().is_block_device());
    json!({ "driver": if is_device { "host_device" } else { "file" }, "filename": path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_named_and_what_is_under_the_last_is_nothing() {
        let image = ImageSpec {
            backing: vec![("/a/\"base\"".into(), Format::Qcow2)],
            data_files: vec![("/a/top".into(), "/a/data".into())],
            ..ImageSpec::new("/a/top", Format::Qcow2)
        };
        let told: Value = serde_json::from_str(filename(&image).strip_prefix("json:").unwrap()).unwrap();
        let plain = |path: &str| json!({ "driver": "file", "filename": path });
        let base = json!({ "driver": "qcow2", "file": plain("/a/\"base\""), "backing": null });
        let top = json!({
            "driver": "qcow2", "file": plain("/a/top"), "data-file": plain("/a/data"), "backing": base,
            "read-only": true, "force-share": true
        });
        assert_eq!(told, top);
    }
}
