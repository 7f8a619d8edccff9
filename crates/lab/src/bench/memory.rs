//! The most memory that our programs take, for disks of very different size with equally little in them.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::IMAGES;
use crate::{DiskSpec, Host, MachineSpec, Result, define_machine};

/// Virtual sizes, as words and in bytes.
const SIZES: [(&str, u64); 2] = [("1 GiB", 1 << 30), ("64 TiB", 1 << 46)];
/// What is written to a disk, at its beginning, middle and end.
const PIECE: u64 = 34 << 20;
/// How often `/proc` is looked at. The kernel keeps each process's peak, so only what grows in a process's last moment is missed.
const INTERVAL: Duration = Duration::from_millis(2);

/// Peaks of a run in KiB.
#[derive(Debug, Default)]
struct Peak {
    controller: u64,
    /// Of the agent that took the most.
    agent: u64,
}

/// Clones and syncs a machine of each size; a table in Markdown.
///
/// # Errors
/// As [`super::run`].
pub(super) fn run(alpha: &Host, beta: &Host, say: &dyn Fn(&str)) -> Result<String> {
    let mut text = String::from("\n| memory, at most | disk | controller | agent |\n|---|---|---|---|\n");
    for (words, size) in SIZES {
        say(&format!("== memory, {words}"));
        let image = format!("{IMAGES}/memory-vda.qcow2");
        alpha.exec(&["qemu-img", "create", "-q", "-f", "qcow2", &image, &size.to_string()])?;
        for offset in [0, size / 2, size - PIECE] {
            write(alpha, &image, offset, 7)?;
        }
        let disk = DiskSpec::qcow2("vda", size).at(&image).existing();
        let machine = define_machine(alpha, MachineSpec::named("memory").disk(disk))?;
        let runs = [
            ("clone", "clone local beta memory --replica"),
            ("sync, all read", "sync local beta memory --paranoid"),
            ("sync after a change", "sync local beta memory"),
        ];
        for (name, command) in runs {
            let peak = watch(|| alpha.shell(&format!("kvm-clone -q -y {command}")).map(drop))?;
            let mib = |kib: u64| kib.div_ceil(1024);
            text += &format!("| {name} | {words} | {} MiB | {} MiB |\n", mib(peak.controller), mib(peak.agent));
            write(alpha, &image, size / 4, 8)?;
        }
        machine.undefine()?;
        alpha.exec(&["rm", "-f", &image])?;
        beta.shell(&format!("virsh -q undefine memory; rm -f {IMAGES}/memory-vda.*"))?;
    }
    Ok(text)
}

fn write(host: &Host, image: &str, offset: u64, byte: u8) -> Result<()> {
    let command = format!("write -q -P {byte} {offset} {PIECE}");
    host.exec(&["qemu-io", "-f", "qcow2", "-c", &command, image]).map(drop)
}

/// The peaks of our processes, on this machine and so in all hosts, while `work` is done.
fn watch(work: impl FnOnce() -> Result<()>) -> Result<Peak> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = Peak::default();
            while !done.load(Ordering::Acquire) {
                look(&mut peak);
                thread::sleep(INTERVAL);
            }
            peak
        });
        let worked = work();
        done.store(true, Ordering::Release);
        let peak = watcher.join().unwrap_or_default();
        worked.map(|()| peak)
    })
}

/// Processes end while they are looked at; those are left out.
fn look(peak: &mut Peak) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let highest = match name.trim_end() {
            "kvm-clone" => &mut peak.controller,
            "kvm-clone-agent" => &mut peak.agent,
            _ => continue,
        };
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        // proc(5): the peak resident set size, in KiB.
        let own = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        *highest = (*highest).max(own.unwrap_or_default());
    }
}
