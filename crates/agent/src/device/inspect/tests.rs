//! Real images by `qemu-img`, and rubbish.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use proptest::prelude::*;

use super::*;

fn qemu_img(args: &[&str]) {
    let out = Command::new("qemu-img").args(args).output().expect("qemu-img is installed");
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// An image by `qemu-img create`, with its path.
fn image(dir: &Path, name: &str, options: &[&str], size: &[&str]) -> std::path::PathBuf {
    let path = dir.join(name);
    qemu_img(&[&["create", "-q", "-f", "qcow2"], options, &[path.to_str().unwrap()], size].concat());
    path
}

#[test]
fn what_qemu_makes_is_told_right() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path(), "base", &[], &["3M"]);
    for version in ["compat=0.10", "compat=1.1"] {
        let path = image(dir.path(), version, &["-o", version, "-b", "base", "-F", "qcow2"], &[]);
        qemu_img(&["snapshot", "-c", "one", path.to_str().unwrap()]);
        let info = inspect(&path).unwrap();
        let backing = Backing { name: "base".into(), format: Some("qcow2".into()) };
        assert_eq!((info.format, info.virtual_size, info.cluster_size), (ImageFormat::Qcow2, 3 << 20, 65536));
        assert_eq!(
            (info.backing.as_ref(), info.snapshots, info.dirty, info.corrupt),
            (Some(&backing), 1, false, false)
        );
        assert_eq!(info.features, []);
        info.readable().unwrap();
    }
}

#[test]
fn features_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("data_file={}", dir.path().join("data").display());
    let cases: [(&str, &[Feature]); 4] = [
        ("compression_type=zstd", &[Feature::ZstdCompression]),
        ("extended_l2=on", &[Feature::ExtendedL2]),
        ("lazy_refcounts=on", &[Feature::LazyRefcounts]),
        (&data, &[Feature::ExternalDataFile]),
    ];
    for (option, expected) in cases {
        let info = inspect(&image(dir.path(), "image", &["-o", option], &["1G"])).unwrap();
        assert_eq!(info.features, expected);
        assert_eq!(info.readable().is_ok(), expected == [Feature::LazyRefcounts], "{option}");
    }
    // qemu-img measures the processor to make a LUKS header, which fails on a busy one: the method's number says it as well.
    let path = image(dir.path(), "luks", &[], &["1M"]);
    let method = 2u32.to_be_bytes();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &method, 32).unwrap();
    assert_eq!(inspect(&path).unwrap().features, [Feature::LuksEncryption]);
    let path = image(dir.path(), "bitmaps", &[], &["1M"]);
    qemu_img(&["bitmap", "--add", path.to_str().unwrap(), "b"]);
    assert_eq!(inspect(&path).unwrap().features, [Feature::Bitmaps]);
}

#[test]
fn anything_else_is_raw() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw");
    std::fs::write(&path, [1; 700]).unwrap();
    let info = inspect(&path).unwrap();
    assert_eq!((info.format, info.virtual_size), (ImageFormat::Raw, 700));
}

/// A header that would be right, to be bent.
fn sound() -> Vec<u8> {
    let mut bytes = vec![0; 65536];
    for (at, value) in [(0usize, 0x5146_49fb_u32), (4, 3), (20, 16), (28, 1 << 20), (36, 1), (44, 65536), (100, 104)] {
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    bytes
}

fn set(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[test]
fn impossible_headers_are_refused() {
    header::parse(&sound()).unwrap();
    let bent: [&[(usize, u32)]; 9] = [
        &[(4, 1)],
        &[(100, 103)],
        &[(100, 65544)],
        &[(36, 0)],
        &[(36, 1 << 23)],
        &[(44, 65537)],
        &[(40, 1 << 24)],
        &[(12, 65530), (16, 20)],
        &[(104, 0xe279_2aca), (108, u32::MAX)],
    ];
    for changes in bent {
        let mut bytes = sound();
        changes.iter().for_each(|(at, value)| set(&mut bytes, *at, *value));
        header::parse(&bytes).expect_err(&format!("{changes:?}"));
    }
}

proptest! {
    #[test]
    fn rubbish_never_panics(
        noise in prop::collection::vec((0usize..160, any::<u8>()), 0..40),
        tail in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut bytes = sound();
        bytes[104..104 + tail.len()].copy_from_slice(&tail);
        noise.into_iter().for_each(|(at, value)| bytes[at] = value);
        let _ = (header::cluster_size(&bytes), header::parse(&bytes), header::parse(&tail));
    }

    #[test]
    fn rubbish_files_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        if magic {
            bytes.splice(0..bytes.len().min(8), [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let _ = inspect(file.path());
    }
}
