//! The guest's kernel and initramfs, made from Debian's own packages once and kept outside the source tree.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::cache::ready;
use crate::run::{make_dir, output, program, run, symlink, write};
use crate::{LabError, Result};

const INIT: &str = include_str!("init.sh");
/// What a q35 machine needs to find its disks, in the order of loading.
const MODULES: &[&str] = &[
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
];

/// The guest's files on the machine.
#[derive(Debug, Clone)]
pub(crate) struct GuestImage {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

/// The guest's kernel and initramfs; made if they are not there.
pub(crate) fn guest_image() -> Result<GuestImage> {
    let kernel = ready("kernel", build_kernel)?;
    let init = format!("init-{:016x}", fingerprint(INIT));
    let modules = kernel.join("modules");
    let initrd = ready(&init, |dir| build_initrd(dir, &modules))?;
    Ok(GuestImage { kernel: kernel.join("vmlinuz"), initrd: initrd.join("initrd.gz") })
}

/// FNV-1a: a changed init makes another initramfs.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn build_kernel(dir: &Path) -> Result<()> {
    let depends = run(&["apt-cache", "depends", "linux-image-cloud-amd64"])?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image"));
    let package = package.ok_or_else(|| LabError::Refused("apt knows no linux-image-cloud-amd64".to_owned()))?;
    let package = format!("linux-image{package}");
    output(program("apt-get").args(["download", "-qq", &package]).current_dir(dir))?;
    let deb = only(dir, ".deb")?;
    let tree = dir.join("tree");
    output(program("dpkg").arg("-x").arg(&deb).arg(&tree))?;
    let kernel = dir.join("vmlinuz");
    fs::rename(only(&tree.join("boot"), "")?, &kernel).map_err(LabError::file("rename to", &kernel))?;
    make_dir(&dir.join("modules"))?;
    let drivers = only(&tree.join("lib/modules"), "")?.join("kernel/drivers");
    for module in MODULES {
        let from = drivers.join(module).with_extension("ko");
        let to = dir.join("modules").join(module.rsplit('/').next().unwrap_or(module)).with_extension("ko");
        fs::copy(&from, &to).map_err(LabError::file("copy", &from))?;
    }
    fs::remove_dir_all(&tree).map_err(LabError::file("remove", &tree))?;
    fs::remove_file(&deb).map_err(LabError::file("remove", &deb))
}

/// The file of a directory that ends so; for a kernel's `boot`, the one that is the kernel.
fn only(dir: &Path, end: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).map_err(LabError::file("list", dir))?;
    let mut names = entries.flatten().map(|entry| entry.path());
    let fits = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.ends_with(end) && !name.starts_with("System.map") && !name.starts_with("config")
    };
    names.find(fits).ok_or_else(|| LabError::Refused(format!("{} has no file *{end}", dir.display())))
}

fn build_initrd(dir: &Path, modules: &Path) -> Result<()> {
    let tree = dir.join("tree");
    write(&tree.join("init"), INIT, 0o755)?;
    make_dir(&tree.join("bin"))?;
    make_dir(&tree.join("dev"))?;
    fs::copy("/usr/bin/busybox", tree.join("bin/busybox")).map_err(LabError::file("copy", "/usr/bin/busybox"))?;
    symlink("busybox", &tree.join("bin/sh"))?;
    output(program("cp").arg("-r").arg(modules).arg(tree.join("modules")))?;
    output(program("mknod").arg(tree.join("dev/console")).args(["c", "5", "1"]))?;

    let archive = dir.join("initrd");
    let file = File::create(&archive).map_err(LabError::file("write", &archive))?;
    let mut find = program("find");
    find.arg(".").current_dir(&tree).stdout(Stdio::piped());
    let mut find = find.spawn().map_err(|source| LabError::Start { program: "find".to_owned(), source })?;
    let mut cpio = program("cpio");
    cpio.args(["--quiet", "-o", "-H", "newc"]).current_dir(&tree).stdout(file);
    if let Some(names) = find.stdout.take() {
        cpio.stdin(names);
    }
    let packed = cpio.status().map_err(|source| LabError::Start { program: "cpio".to_owned(), source })?;
    let listed = find.wait().map_err(|source| LabError::Start { program: "find".to_owned(), source })?;
    if !packed.success() || !listed.success() {
        return Err(LabError::Refused("the initramfs could not be packed".to_owned()));
    }
    output(program("gzip").arg("-1").arg(&archive))?;
    fs::remove_dir_all(&tree).map_err(LabError::file("remove", &tree))
}
