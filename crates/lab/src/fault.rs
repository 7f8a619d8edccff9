//! Finding and striking processes of a host: what a crash, a hang or the out-of-memory killer would do.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::run::wait_until;
use crate::{Host, LabError, Process, Result};

/// The processes of the host whose words contain `pattern`.
pub fn find(host: &Host, pattern: &str) -> Result<Vec<Process>> {
    Ok(processes(host)?.into_iter().filter(|process| process.command.contains(pattern)).collect())
}

/// Waits until there is such a process.
pub fn wait_for(host: &Host, pattern: &str, limit: Duration) -> Result<Vec<Process>> {
    let what = format!("a process like {pattern:?} on {}", host.name());
    let look = || Ok(Some(find(host, pattern)?).filter(|found| !found.is_empty()));
    wait_until(&what, limit, look, || "none".to_owned())
}

/// Waits until there is no such process any more.
pub fn wait_gone(host: &Host, pattern: &str, limit: Duration) -> Result<()> {
    let what = format!("the end of all processes like {pattern:?} on {}", host.name());
    let look = || Ok(find(host, pattern)?.is_empty().then_some(()));
    wait_until(&what, limit, look, || format!("{:?}", find(host, pattern)))
}

/// `SIGKILL` to every such process; how many there were.
pub fn kill(host: &Host, pattern: &str) -> Result<usize> {
    strike(host, pattern, Signal::KILL)
}

/// `SIGSTOP` to every such process: it hangs, its connections stay open.
pub fn freeze(host: &Host, pattern: &str) -> Result<usize> {
    strike(host, pattern, Signal::STOP)
}

/// `SIGCONT` to every such process.
pub fn thaw(host: &Host, pattern: &str) -> Result<usize> {
    strike(host, pattern, Signal::CONT)
}

pub(crate) fn strike(host: &Host, pattern: &str, signal: Signal) -> Result<usize> {
    let found = find(host, pattern)?;
    for process in &found {
        let Some(pid) = i32::try_from(process.outer_pid).ok().and_then(Pid::from_raw) else { continue };
        match kill_process(pid, signal) {
            // It ended by itself meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(source) => return Err(LabError::system(format!("signal {}", process.command))(source)),
        }
    }
    Ok(found.len())
}

/// Read from the machine's `/proc`, so looking adds no process to what is looked at.
pub(crate) fn processes(host: &Host) -> Result<Vec<Process>> {
    let Some(init) = host.init_pid() else { return Ok(Vec::new()) };
    let namespace = fs::read_link(format!("/proc/{init}/ns/pid")).map_err(LabError::file("read", "/proc"))?;
    let entries = fs::read_dir("/proc").map_err(LabError::file("list", "/proc"))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let inside = pids.filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == namespace));
    Ok(inside.filter_map(|pid| describe(init, pid)).collect())
}

/// None for the host's first process, its idle helper, and one that has ended meanwhile.
fn describe(init: u32, outer_pid: u32) -> Option<Process> {
    let words = fs::read(format!("/proc/{outer_pid}/cmdline")).ok()?;
    let mut command = String::from_utf8_lossy(&words).trim_end_matches('\0').replace('\0', " ");
    let status = fs::read_to_string(format!("/proc/{outer_pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let pid = field("NSpid:")?.split_whitespace().next_back()?.parse().ok()?;
    let parent: u32 = field("PPid:")?.parse().ok()?;
    let state = field("State:")?.chars().next()?;
    // One whose first thread has ended has no words any more, but its files and their locks as long as another one lives.
    if command.is_empty() && (field("Threads:") != Some("1") || !"ZX".contains(state)) {
        field("Name:")?.clone_into(&mut command);
    }
    let own = outer_pid == init || (parent == init && command == "sleep infinity");
    (!own).then_some(Process { pid, outer_pid, command, state })
}
