//! One run, measured: time until it is durable, processor time of the whole machine, bytes on the wire.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::run::run;
use crate::{Host, LabError, Result};

/// What a run took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// Until the copy was durable.
    pub(super) seconds: f64,
    /// Processor seconds of both ends, the kernel's included.
    pub(super) cpu: f64,
    /// Bytes that the source host sent and received.
    pub(super) wire: u64,
}

/// The ticks of `/proc/stat` in a second: `USER_HZ`, which is 100 on every Linux that libvirt runs on (proc(5)).
const TICKS: f64 = 100.0;
/// What `timeout` ends with when it had to end a command (timeout(1)).
const TIMED_OUT: i32 = 124;

/// The disks are cold, the programs of all tools are not, at either end: who copies machines has run them before.
const LOAD_PROGRAMS: &str = "for program in kvm-clone ssh scp rsync zstd qemu-nbd qemu-img nbdcopy; do \
    \"$program\" --version >/dev/null 2>&1 </dev/null || true; done; \
    cat /usr/sbin/sshd /usr/lib/openssh/sftp-server /var/lib/kvm-clone/agents/*/kvm-clone-agent >/dev/null 2>&1 || true";

/// Runs `script` on the source host with a cold cache, and syncs `target`; none where it took longer than `limit`.
pub(super) fn measure(
    source: &Host,
    target_host: &Host,
    script: &str,
    target: &str,
    limit: Duration,
) -> Result<Option<Sample>> {
    run(&["sync"])?;
    let caches = Path::new("/proc/sys/vm/drop_caches");
    fs::write(caches, "3").map_err(LabError::file("write", caches))?;
    [source, target_host].into_iter().try_for_each(|host| host.shell(LOAD_PROGRAMS).map(drop))?;
    let (wire, cpu, began) = (bytes_on_wire(source)?, cpu()?, Instant::now());
    let seconds = limit.as_secs_f64().ceil().to_string();
    let mut command = source.command("timeout");
    command.args(["-k", "5", &seconds, "bash", "-euo", "pipefail", "-c", script]);
    let ended = command.output().map_err(|cause| LabError::Start { program: script.to_owned(), source: cause })?;
    if ended.status.code() == Some(TIMED_OUT) {
        return Ok(None);
    }
    if !ended.status.success() {
        let stderr = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        return Err(LabError::Command { command: script.to_owned(), status: ended.status, stderr });
    }
    target_host.exec(&["sync", target])?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Some(Sample { seconds, cpu: self::cpu()? - cpu, wire: bytes_on_wire(source)? - wire }))
}

/// Processor seconds that this machine has spent since it booted.
fn cpu() -> Result<f64> {
    let path = Path::new("/proc/stat");
    let text = fs::read_to_string(path).map_err(LabError::file("read", path))?;
    let ticks: Vec<f64> =
        text.lines().next().unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // proc(5): user, nice, system, idle, iowait, irq, softirq, ...
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|field| ticks.get(*field)).sum::<f64>();
    Ok(busy / TICKS)
}

/// Bytes that went through the host's interface, in both directions.
fn bytes_on_wire(host: &Host) -> Result<u64> {
    let table = host.exec(&["cat", "/proc/net/dev"])?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
    let fields: Vec<u64> = line.unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // proc(5): eight fields of what was received, then what was sent; bytes come first.
    Ok([0, 8].iter().filter_map(|field| fields.get(*field)).sum())
}
