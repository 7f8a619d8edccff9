//! Small file systems and block devices of a host, backed by files on the machine: they fill up, and their power can be cut.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};

use crate::run::{append, make_dir, output, program, read, run, wait_until, write};
use crate::{Host, LabError, Result};

/// The kind of a small file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsKind {
    /// ext4: a file holds at most 16 TiB.
    Ext4,
    /// XFS with reflinks; at least 300 MiB.
    Xfs,
    /// Memory: no direct I/O on older kernels, gone after a reboot.
    Tmpfs,
}

impl FsKind {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Tmpfs => "tmpfs",
        }
    }
}

impl Host {
    /// Mounts a new file system of `bytes` over a directory of the host. It is mounted again at each boot.
    pub fn small_filesystem(&self, inside: &str, kind: FsKind, bytes: u64) -> Result<()> {
        plain(inside)?;
        let directory = self.root_dir().join(inside.trim_start_matches('/'));
        make_dir(&directory)?;
        make_dir(&self.path(inside))?;
        let source = match kind {
            FsKind::Tmpfs => bytes.to_string(),
            FsKind::Ext4 | FsKind::Xfs => {
                let image = self.sparse_file("fs", bytes)?;
                run(&[&format!("mkfs.{}", kind.name()), "-q", &image.to_string_lossy()])?;
                image.to_string_lossy().into_owned()
            }
        };
        append(&self.dir().join("mounts"), &format!("{} {source} {inside}\n", kind.name()))?;
        self.mount(kind.name(), &source, inside)
    }

    /// Mounts a file system made by [`Host::small_filesystem`] in another host as well: storage that both share. It is not
    /// mounted again at that host's next boot.
    pub fn share_filesystem(&self, inside: &str, with: &Self) -> Result<()> {
        let (kind, source) = self.mounted(inside)?;
        let devices = run(&["losetup", "--noheadings", "--output", "NAME", "--associated", &source])?;
        let device = devices.lines().next().ok_or_else(|| LabError::Refused(format!("{inside} is not mounted")))?;
        make_dir(&with.path(inside))?;
        with.mount_device(&kind, device.trim(), inside)
    }

    /// A block device of `bytes` in the host, for disks that are no files; its path inside. It stays over reboots.
    pub fn block_device(&self, name: &str, bytes: u64) -> Result<String> {
        plain(name)?;
        let image = self.sparse_file("block", bytes)?;
        let device = run(&["losetup", "--find", "--show", &image.to_string_lossy()])?;
        let (major, minor) = numbers(Path::new(device.trim()))?;
        let inside = format!("/dev/{name}");
        append(&self.dir().join("blocks"), &format!("{inside} {major} {minor}\n"))?;
        make_node(&self.path(&inside), major, minor)?;
        Ok(inside)
    }

    /// What a power cut does to a file system made by [`Host::small_filesystem`]: what was not made durable is gone. Nothing may
    /// have a file of it open; [`Host::crash`] takes care of that.
    pub fn power_cut(&self, inside: &str) -> Result<()> {
        let (kind, source) = self.mounted(inside)?;
        self.go_down(inside)?;
        let what = format!("the unmount of {inside}");
        let seen = || self.shell("ls -l /proc/[0-9]*/fd/ 2>/dev/null").unwrap_or_default();
        let unmount = || Ok(self.exec(&["umount", inside]).is_ok().then_some(()));
        wait_until(&what, Duration::from_secs(5), unmount, seen)?;
        self.mount(&kind, &source, inside)
    }

    /// From now on nothing that writes to a file system made by [`Host::small_filesystem`] gets on, until it is thawed.
    pub fn freeze_filesystem(&self, inside: &str) -> Result<()> {
        self.exec(&["fsfreeze", "--freeze", inside]).map(drop)
    }

    /// What waits for a frozen file system goes on.
    pub fn thaw_filesystem(&self, inside: &str) -> Result<()> {
        self.exec(&["fsfreeze", "--unfreeze", inside]).map(drop)
    }

    /// A power cut of the whole host: every small file system loses what was not durable, every process ends, and the host
    /// boots again. None of them may be shared with a host that stays up.
    pub fn crash(&self) -> Result<()> {
        let stopped: Vec<_> = self.mounts()?.into_iter().filter(|(kind, ..)| kind != "tmpfs").collect();
        for (_, _, inside) in &stopped {
            self.go_down(inside)?;
        }
        self.halt()?;
        // The kernel unmounts a dead namespace's file systems some time after its processes are gone. Until then `mount -o loop`
        // would find their devices in use, take those, and so show the stopped file systems again.
        for (_, source, inside) in &stopped {
            let devices = || run(&["losetup", "--noheadings", "--output", "NAME", "--associated", source]);
            let gone = || Ok(devices()?.trim().is_empty().then_some(()));
            let seen = || devices().unwrap_or_default();
            wait_until(&format!("the end of {inside}"), Duration::from_secs(20), gone, seen)?;
        }
        self.start()
    }

    /// The file system stops here and now, without writing its log: `FS_IOC_GOINGDOWN` with `FSOP_GOING_FLAGS_NOLOGFLUSH`.
    fn go_down(&self, inside: &str) -> Result<()> {
        let path = self.path(inside);
        let directory = File::open(&path).map_err(LabError::file("open", &path))?;
        let no_log_flush: u32 = 2;
        // SAFETY: the opcode's argument is a pointer to a u32 that the kernel only reads.
        let done = unsafe {
            let going_down = rustix::ioctl::Setter::<GOINGDOWN, u32>::new(no_log_flush);
            rustix::ioctl::ioctl(&directory, going_down)
        };
        done.map_err(LabError::system(format!("stop the file system at {inside}")))
    }

    fn mounts(&self) -> Result<Vec<(String, String, String)>> {
        let path = self.dir().join("mounts");
        let text = if path.exists() { read(&path)? } else { String::new() };
        let words = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            Some((words.next()?, words.next()?, words.next()?))
        };
        Ok(text.lines().filter_map(words).collect())
    }

    fn mounted(&self, inside: &str) -> Result<(String, String)> {
        let found = self.mounts()?.into_iter().find(|(kind, _, at)| at == inside && kind != "tmpfs");
        let found = found.ok_or_else(|| LabError::Refused(format!("{inside} is no loop-backed file system")))?;
        Ok((found.0, found.1))
    }

    /// Mounts in the host what lies outside of it: the machine's loop device is shown to the host for that moment, and goes by
    /// itself with its last mount.
    fn mount(&self, kind: &str, source: &str, inside: &str) -> Result<()> {
        if kind == "tmpfs" {
            return self.exec(&["mount", "-t", "tmpfs", "-o", &format!("size={source}"), "tmpfs", inside]).map(drop);
        }
        let device = run(&["losetup", "--find", "--show", source])?;
        let device = device.trim();
        let mounted = self.mount_device(kind, device, inside);
        // A mounted device is only marked, and let go at the unmount.
        run(&["losetup", "--detach", device])?;
        mounted
    }

    fn mount_device(&self, kind: &str, device: &str, inside: &str) -> Result<()> {
        let (major, minor) = numbers(Path::new(device))?;
        let node = self.path("/dev/.lab-mount");
        make_node(&node, major, minor)?;
        let mounted = self.exec(&["mount", "-t", kind, "/dev/.lab-mount", inside]);
        std::fs::remove_file(&node).map_err(LabError::file("remove", &node))?;
        mounted.map(drop)
    }

    fn sparse_file(&self, kind: &str, bytes: u64) -> Result<PathBuf> {
        let dir = self.dir().join("images");
        make_dir(&dir)?;
        let count = std::fs::read_dir(&dir).map_err(LabError::file("list", &dir))?.count();
        let path = dir.join(format!("{count}-{kind}"));
        write(&path, "", 0o600)?;
        output(program("truncate").arg("-s").arg(bytes.to_string()).arg(&path))?;
        Ok(path)
    }
}

/// `_IOR('X', 125, __u32)` of `linux/fs.h`.
const GOINGDOWN: rustix::ioctl::Opcode = 0x8004_587d;

pub(crate) fn make_node(path: &Path, major: u32, minor: u32) -> Result<()> {
    let device = rustix::fs::makedev(major, minor);
    let made = rustix::fs::mknodat(CWD, path, FileType::BlockDevice, Mode::from_raw_mode(0o660), device);
    made.map_err(LabError::system(format!("make {}", path.display())))
}

pub(crate) fn numbers(device: &Path) -> Result<(u32, u32)> {
    let status = rustix::fs::stat(device).map_err(LabError::system(format!("look at {}", device.display())))?;
    Ok((rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev)))
}

/// Paths become words of the lists that the boot reads.
fn plain(path: &str) -> Result<()> {
    if path.contains(char::is_whitespace) || path.contains("..") {
        return Err(LabError::Refused(format!("{path:?} is not a plain path")));
    }
    Ok(())
}
