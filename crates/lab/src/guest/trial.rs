//! Whether guests can boot under KVM here: tried once and remembered.
//!
//! Where this machine is a guest itself, KVM may be offered and yet hang in a kernel's early boot. Asking does not tell;
//! booting does.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::cache::ready;
use crate::guest::image::GuestImage;
use crate::run::{program, read, wait_until, write};
use crate::{LabError, Result};

/// A boot takes about a second under a KVM that works.
const LIMIT: Duration = Duration::from_secs(8);

/// How guests are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainType {
    /// By the CPU.
    Kvm,
    /// By emulation.
    Qemu,
}

impl DomainType {
    /// The value of a domain's `type` attribute.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }

    /// What works here.
    pub(crate) fn of_this_machine(image: &GuestImage) -> Result<Self> {
        // The answer holds for this boot: the cache may travel, or the machine may get another hypervisor.
        let boot = read(Path::new("/proc/sys/kernel/random/boot_id"))?;
        let answer = ready(&format!("trial-{}", boot.trim()), |dir| {
            let word = if Path::new("/dev/kvm").exists() && boots(image, dir)? { "kvm" } else { "qemu" };
            write(&dir.join("answer"), word, 0o644)
        })?;
        Ok(if read(&answer.join("answer"))? == "kvm" { Self::Kvm } else { Self::Qemu })
    }
}

fn boots(image: &GuestImage, dir: &Path) -> Result<bool> {
    let console = dir.join("console");
    let mut command = program("qemu-system-x86_64");
    command.args(["-accel", "kvm", "-machine", "q35", "-cpu", "host", "-m", "128", "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-net", "none", "-append", "console=ttyS0 panic=-1", "-no-reboot"]);
    command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|source| LabError::Start { program: "qemu".to_owned(), source })?;
    let look = || {
        let text = fs::read(&console).unwrap_or_default();
        Ok(String::from_utf8_lossy(&text).contains("kvm-clone-guest: up").then_some(()))
    };
    let came_up = wait_until("a trial boot under KVM", LIMIT, look, String::new).is_ok();
    let _ = child.kill();
    let _ = child.wait();
    Ok(came_up)
}
