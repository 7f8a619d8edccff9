//! The disks that are copied: a real Debian tree, and a huge disk with little in it. Made once and kept in the cache.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::cache::ready;
use crate::guest::DiskFormat;
use crate::run::{make_dir, output, program};
use crate::{LabError, Result};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// How much of the machine's own `/usr` becomes the tree, about.
const TREE_BYTES: u64 = 2 * GIB - 200 * MIB;

/// What a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// 8 GiB with an ext4 of about 2 GB: programs, libraries and documents of this machine's Debian.
    Tree,
    /// 64 GiB with 100 MiB of data.
    Little,
}

impl Content {
    pub(super) const fn size(self) -> u64 {
        match self {
            Self::Tree => 8 * GIB,
            Self::Little => 64 * GIB,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Tree => "bench-tree",
            Self::Little => "bench-little",
        }
    }
}

/// Puts an image with this content to `path`.
pub(super) fn provide(content: Content, format: DiskFormat, path: &Path) -> Result<()> {
    let raw = ready(content.name(), |dir| match content {
        Content::Tree => build_tree(dir),
        Content::Little => build_little(&dir.join("disk")),
    })?
    .join("disk");
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    let mut command = match format {
        DiskFormat::Raw => program("cp"),
        DiskFormat::Qcow2 => program("qemu-img"),
    };
    match format {
        DiskFormat::Raw => command.args(["--sparse=always", "--"]),
        DiskFormat::Qcow2 => command.args(["convert", "-q", "-f", "raw", "-O", "qcow2", "--"]),
    };
    output(command.arg(&raw).arg(path)).map(drop)
}

/// An ext4 of what `/usr` holds, directory by directory until it is enough.
fn build_tree(dir: &Path) -> Result<()> {
    let tree = dir.join("tree");
    make_dir(&tree)?;
    // `cp` takes what there is in a fixed order; `du` says when it is enough.
    let script = format!(
        "for place in /usr/bin /usr/sbin /usr/share /usr/lib/python3 /usr/include /usr/lib/gcc \
         /usr/lib/x86_64-linux-gnu /usr/libexec /usr/lib /usr/local; do \
         [ -d \"$place\" ] || continue; \
         for entry in \"$place\"/*; do [ -L \"$entry\" ] && continue; \
         [ \"$used\" -lt {TREE_BYTES} ] || exit 0; \
         mkdir -p \"$1$place\"; cp -a --update \"$entry\" \"$1$place/\"; \
         used=$((used + $(du -sB1 \"$entry\" | cut -f1))); done; done"
    );
    output(program("bash").env("used", "0").args(["-eu", "-c", &script, "bash"]).arg(&tree))?;
    let image = dir.join("disk");
    let file = File::create(&image).map_err(LabError::file("make", &image))?;
    file.set_len(Content::Tree.size()).map_err(LabError::file("grow", &image))?;
    output(program("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&tree).arg(&image))?;
    std::fs::remove_dir_all(&tree).map_err(LabError::file("remove", &tree))
}

/// Data that does not compress, in pieces of 1 MiB all over the disk.
fn build_little(image: &Path) -> Result<()> {
    let file = File::create(image).map_err(LabError::file("make", image))?;
    let size = Content::Little.size();
    file.set_len(size).map_err(LabError::file("grow", image))?;
    let mut random = File::open("/dev/urandom").map_err(LabError::file("open", Path::new("/dev/urandom")))?;
    let mut piece = vec![0; 1 << 20];
    for index in 0..100 {
        std::io::Read::read_exact(&mut random, &mut piece)
            .map_err(LabError::file("read", Path::new("/dev/urandom")))?;
        file.write_all_at(&piece, index * (size / 100) / MIB * MIB).map_err(LabError::file("fill", image))?;
    }
    Ok(())
}
