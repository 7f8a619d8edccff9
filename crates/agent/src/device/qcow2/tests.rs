//! Against images that `qemu-img` and `qemu-io` make.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::{FileExt, symlink};
use std::process::Command;

use kvm_clone_core::blocks::ExtentKind;
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::{ImageFormat, Problem};
use super::*;

const MIB: u64 = 1 << 20;

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().expect("qemu-utils are installed");
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn create(&self, name: &str, args: &[&str]) -> String {
        let path = self.text(name);
        run("qemu-img", &[&["create", "-q", "-f", "qcow2", path.as_str()], args].concat());
        path
    }

    fn named(&self, names: &[(&str, ImageFormat)]) -> Vec<NamedImage> {
        names.iter().map(|(name, format)| NamedImage { path: self.path(name), format: *format }).collect()
    }

    /// What qemu reads from an image.
    fn by_qemu(&self, image: &str) -> Vec<u8> {
        let raw = self.text("by-qemu");
        run("qemu-img", &["convert", "-U", "-f", "qcow2", "-O", "raw", image, &raw]);
        std::fs::read(raw).unwrap()
    }
}

fn io(image: &str, commands: &[&str]) {
    let mut args = vec!["-f", "qcow2"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    run("qemu-io", &[&args[..], &[image]].concat());
}

fn whole(reader: &Qcow2Reader) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(reader.size()).unwrap()];
    reader.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// The extents cover the disk, and what they call zero is zero.
fn extents_agree(reader: &Qcow2Reader, bytes: &[u8]) -> Vec<Extent> {
    let list = reader.extents(0, reader.size()).unwrap();
    let mut at = 0;
    for extent in &list {
        assert_eq!(extent.offset, at);
        at = extent.end();
        let inside = &bytes[usize::try_from(extent.offset).unwrap()..usize::try_from(at).unwrap()];
        assert!(extent.kind == ExtentKind::Data || inside.iter().all(|byte| *byte == 0));
    }
    assert_eq!(at, reader.size());
    list
}

#[test]
fn a_chain_reads_as_qemu_reads_it() {
    let dir = Dir::new();
    // From the bottom: raw, shorter than what is above it; compressed; and overlays with zeros and new data.
    std::fs::write(dir.path("raw"), vec![7; 300_000]).unwrap();
    let low = dir.create("low", &["-b", "raw", "-F", "raw", "2M"]);
    io(&low, &["write -P 1 64k 64k", "write -c -P 2 512k 128k"]);
    let mid = dir.create("mid", &["-o", "cluster_size=4k", "-b", "low", "-F", "qcow2", "3M"]);
    io(&mid, &["write -P 3 100k 9k", "write -z 520k 64k", "write -c -P 4 2052k 4k"]);
    let top = dir.create("top", &["-o", "compat=0.10", "-b", &dir.text("mid"), "-F", "qcow2"]);
    io(&top, &["write -P 5 1M 1000"]);
    let allowed = dir.named(&[("mid", ImageFormat::Qcow2), ("raw", ImageFormat::Raw), ("low", ImageFormat::Qcow2)]);
    let reader = Qcow2Reader::open(Path::new(&top), &allowed).unwrap();
    let expected = dir.by_qemu(&top);
    assert!(whole(&reader) == expected);
    extents_agree(&reader, &expected);
    reader.drop_cache(0, reader.size());
    std::thread::scope(|scope| {
        for start in 0..4u64 {
            let (reader, expected) = (&reader, &expected);
            scope.spawn(move || {
                for offset in (start * 999..reader.size() - 20_000).step_by(7001) {
                    let mut bytes = vec![0; 20_000];
                    reader.read_at(&mut bytes, offset).unwrap();
                    assert!(bytes == expected[usize::try_from(offset).unwrap()..][..20_000]);
                }
            });
        }
    });
}

#[test]
fn only_named_backing_files_are_opened() {
    let dir = Dir::new();
    let secret = dir.path("secret");
    std::fs::write(&secret, b"root:x:0:0").unwrap();
    std::fs::write(dir.path("raw"), vec![1; 65536]).unwrap();
    let top = dir.create("top", &["-b", "raw", "-F", "raw", "64k"]);
    let open = |allowed: &[(&str, ImageFormat)]| Qcow2Reader::open(Path::new(&top), &dir.named(allowed));
    open(&[("raw", ImageFormat::Raw)]).unwrap();
    for allowed in [&[][..], &[("raw", ImageFormat::Qcow2)], &[("top", ImageFormat::Raw), ("secret", ImageFormat::Raw)]]
    {
        let error = open(allowed).unwrap_err();
        assert!(matches!(&error.problem, Problem::NotNamed { named } if named.ends_with("/raw (raw)")), "{error}");
    }
    // A link where the named file was leads elsewhere: what it leads to is what counts.
    std::fs::rename(dir.path("raw"), dir.path("moved")).unwrap();
    symlink(&secret, dir.path("raw")).unwrap();
    open(&[("moved", ImageFormat::Raw)]).unwrap_err();
    // And a link to a named file is that file.
    std::fs::remove_file(dir.path("raw")).unwrap();
    symlink(dir.path("moved"), dir.path("raw")).unwrap();
    open(&[("moved", ImageFormat::Raw)]).unwrap();
}

#[test]
fn protocols_and_loops_are_refused() {
    let dir = Dir::new();
    let top = dir.create("top", &["-u", "-b", "nbd://host/export", "-F", "raw", "1M"]);
    let error = Qcow2Reader::open(Path::new(&top), &[]).unwrap_err();
    assert!(matches!(error.problem, Problem::Unsupported { .. }), "{error}");
    let ring = dir.create("ring", &["-u", "-b", "ring", "-F", "qcow2", "1M"]);
    let error = Qcow2Reader::open(Path::new(&ring), &dir.named(&[("ring", ImageFormat::Qcow2)])).unwrap_err();
    assert!(matches!(error.problem, Problem::Corrupt(_)), "{error}");
}

#[test]
fn what_it_cannot_read_is_named() {
    let dir = Dir::new();
    let data = format!("data_file={}", dir.text("data"));
    for (option, feature) in [
        ("compression_type=zstd", "zstd compression"),
        ("extended_l2=on", "extended L2 entries"),
        (&data, "an external data file"),
    ] {
        let image = dir.create("image", &["-o", option, "1M"]);
        match Qcow2Reader::open(Path::new(&image), &[]).unwrap_err().problem {
            Problem::Unsupported { feature: named } => assert_eq!(named, feature),
            other => panic!("{other}"),
        }
    }
    let image = dir.create("image", &["1M"]);
    let bit =
        |value: u8| std::fs::File::options().write(true).open(&image).unwrap().write_all_at(&[value], 79).unwrap();
    let open = || Qcow2Reader::open(Path::new(&image), &[]).map(drop).map_err(|error| error.problem);
    bit(1);
    assert!(matches!(open(), Err(Problem::Unsupported { .. })));
    bit(2);
    assert!(matches!(open(), Err(Problem::Corrupt(_))));
    bit(0);
    assert!(open().is_ok());
}

#[test]
fn preallocated_clusters_that_are_holes_are_not_read() {
    let dir = Dir::new();
    let image = dir.create("image", &["-o", "preallocation=metadata", "64M"]);
    io(&image, &["write -P 1 5M 64k"]);
    let reader = Qcow2Reader::open(Path::new(&image), &[]).unwrap();
    let list = extents_agree(&reader, &whole(&reader));
    assert!(extents::data_len(&list) <= 2 * 65536, "{list:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever the tables of an image say, reading it ends, with data or an error.
    #[test]
    fn bent_tables_never_panic(noise in prop::collection::vec((0u64..6, 0u64..512, any::<u64>(), 0u32..64), 1..12)) {
        let dir = Dir::new();
        let image = dir.create("image", &["-o", "cluster_size=4k", "4M"]);
        io(&image, &["write -P 1 0 64k", "write -c -P 2 1M 64k"]);
        let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
        // Table pages: cluster 3 is the L1 table, cluster 4 the first L2 table.
        for (cluster, entry, value, shift) in noise {
            if cluster > 0 {
                file.write_all_at(&(value >> shift).to_be_bytes(), cluster * 4096 + entry * 8).unwrap();
            }
        }
        if let Ok(reader) = Qcow2Reader::open(Path::new(&image), &[]) {
            let _ = reader.extents(0, 4 * MIB);
            let mut bytes = vec![0; 4096];
            for offset in (0..4 * MIB).step_by(4096) {
                let _ = reader.read_at(&mut bytes, offset);
            }
        }
    }
}
