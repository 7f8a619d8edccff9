//! Starting and ending a host's processes.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::run::{program, wait_until};
use crate::{Host, LabError, Result, capabilities};

const RAISE: &str = include_str!("script/raise.sh");
const BOOT: &str = include_str!("script/boot.sh");
const BOOT_LIMIT: Duration = Duration::from_secs(60);
const HALT_LIMIT: Duration = Duration::from_secs(20);

/// Boots the host; returns when its services answer.
pub(crate) fn start(host: &Host) -> Result<()> {
    if host.init_pid().is_some() {
        return Err(LabError::Refused(format!("{} is up already", host.name())));
    }
    let path = host.dir().join("boot.log");
    let log = File::create(&path).map_err(LabError::file("write", &path))?;
    let errors = log.try_clone().map_err(LabError::file("write", &path))?;
    let mut command = program("nsenter");
    command.arg(format!("--net=/run/netns/{}", host.netns()));
    command.args([
        "unshare",
        "--mount",
        "--pid",
        "--uts",
        "--ipc",
        "--fork",
        "--kill-child",
        "--propagation",
        "private",
    ]);
    command.args(["bash", "-c", RAISE, "raise"]).arg(host.dir()).arg(BOOT);
    command.env_clear().envs([("LC_ALL", "C"), ("HOME", "/root"), ("TERM", "dumb")]);
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.current_dir("/").stdout(Stdio::from(log)).stderr(Stdio::from(errors));
    detach(&mut command);
    host.adopt(command.spawn().map_err(|source| LabError::Start { program: "nsenter".to_owned(), source })?);

    let what = format!("the start of {}", host.name());
    let told = || fs::read_to_string(&path).unwrap_or_default();
    wait_until(&what, BOOT_LIMIT, || ready(host, &told()), told)?;
    capabilities::keep(host)
}

/// In a process group of its own: a Ctrl-C ends the owner, and the lab is then removed in order.
fn detach(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

fn ready(host: &Host, log: &str) -> Result<Option<()>> {
    if log.lines().any(|line| line == "kvm-clone-lab: ready") {
        return Ok(Some(()));
    }
    if host.has_ended() {
        return Err(LabError::Refused(format!("{} did not start: {log}", host.name())));
    }
    Ok(None)
}

/// Kills the host's first process; the kernel ends all others of its pid namespace before that one is gone.
pub(crate) fn halt(host: &Host) -> Result<()> {
    let Some(pid) = host.init_pid() else { return Ok(()) };
    let known = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let known = known.ok_or_else(|| LabError::Refused(format!("{pid} is not a pid")))?;
    match kill_process(known, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(source) => return Err(LabError::system(format!("kill {pid}"))(source)),
    }
    let what = format!("the end of {}", host.name());
    wait_until(&what, HALT_LIMIT, || Ok(is_gone(host, pid).then_some(())), || format!("process {pid} is there"))?;
    host.reap();
    Ok(())
}

fn is_gone(host: &Host, pid: u32) -> bool {
    // A process that ended but was not reaped has no namespaces any more.
    host.init_pid() != Some(pid)
}
