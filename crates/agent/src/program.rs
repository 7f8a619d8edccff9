//! Programs that the agent runs: `qemu-img` and `virsh`.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kvm_clone_core::{Code, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{PidfdFlags, pidfd_open};

/// The most of a program's output that is kept.
const OUTPUT_LIMIT: u64 = 64 * 1024;

/// Where programs are looked for: a login's PATH may lack the `sbin` directories, or name a user's own.
pub(crate) const PROGRAM_DIRS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];

/// The path of a program of that name, if there is one.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    PROGRAM_DIRS.iter().map(|dir| PathBuf::from(dir).join(name)).find(|path| path.is_file())
}

/// What a program left.
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
}

/// How a program is watched while it runs.
pub(crate) struct Watch<'a> {
    /// How long it may run; none where its progress is what counts.
    pub(crate) deadline: Option<Duration>,
    /// Whether it is to stop.
    pub(crate) stop: &'a dyn Fn() -> bool,
    /// Told of work that it did.
    pub(crate) worked: &'a dyn Fn(u64),
}

impl Watch<'_> {
    /// Of a program that takes a moment.
    pub(crate) fn briefly(deadline: Duration) -> Self {
        Self { deadline: Some(deadline), stop: &|| false, worked: &|_| () }
    }
}

/// Runs a program to its end, to its deadline, or until it is to stop. It ends with us, and holds `users` open until it has
/// ended.
pub(crate) fn run(name: &str, arguments: &[&str], users: Vec<File>, watch: &Watch<'_>) -> Result<Outcome> {
    let path = find(name).ok_or_else(|| missing(name))?;
    let mut command = Command::new(path);
    // A user's own libvirt is found by these.
    let kept = ["HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"];
    let kept = kept.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.args(arguments).env_clear().envs(kept).env("LC_ALL", "C").env("PATH", PROGRAM_DIRS.join(":"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    holds(&mut command, users);
    ends_with_us(&mut command);
    let mut child = command.spawn().map_err(|error| failed(name, &error.to_string()))?;
    let readers = [child.stdout.take().map(keep_output), child.stderr.take().map(keep_output)];
    let status = wait(&mut child, name, watch)?;
    let output: Vec<String> = readers.into_iter().flatten().filter_map(|reader| reader.join().ok()).collect();
    Ok(Outcome { status, output: output.concat() })
}

/// Has a program hold these files open until it has ended, whatever becomes of us.
fn holds(command: &mut Command, files: Vec<File>) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes system calls (fcntl(2)) on files
    // that it owns, and touches no memory that another thread could hold.
    unsafe {
        command.pre_exec(move || {
            files.iter().try_for_each(|file| fcntl_setfd(file, FdFlags::empty())).map_err(Into::into)
        });
    }
}

/// Has the kernel kill the program when the thread that started it, which waits for it, is gone.
pub(crate) fn ends_with_us(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes one system call
    // (prctl) and touches no memory that another thread could hold.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(Into::into)
        });
    }
}

fn keep_output(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let _ = stream.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut kept);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        String::from_utf8_lossy(&kept).into_owned()
    })
}

fn wait(child: &mut Child, name: &str, watch: &Watch<'_>) -> Result<ExitStatus> {
    let started = Instant::now();
    let handle = pidfd_open(rustix::process::Pid::from_child(child), PidfdFlags::empty()).ok();
    let mut worked = 0;
    loop {
        if let Some(status) = child.try_wait().map_err(|error| failed(name, &error.to_string()))? {
            return Ok(status);
        }
        let stopped = (watch.stop)();
        let late = watch.deadline.filter(|deadline| started.elapsed() >= *deadline);
        if stopped || late.is_some() {
            let _ = child.kill();
            let _ = child.wait();
            if stopped {
                return Err(Error::new(Code::Cancelled, format!("{name} was stopped")).with("program", name));
            }
            let seconds = late.unwrap_or_default().as_secs();
            return Err(Error::timeout(format!("{name} took longer than {seconds} s")).with("program", name));
        }
        let done = work_of(child.id());
        if done > worked {
            (watch.worked)(done - std::mem::replace(&mut worked, done));
        }
        doze(handle.as_ref());
    }
}

/// Sleeps until the program behind this handle has ended, and no longer than until it is to be looked whether it shall be
/// stopped. Linux before 5.3 has no such handles; there it is looked again after a moment.
fn doze(handle: Option<&OwnedFd>) {
    const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let polled = handle.map(|handle| poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&LOOK_EVERY)));
    if !matches!(polled, Some(Ok(_))) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a process has done so far: bytes that it read and wrote, also those that its storage read and wrote for it (`proc(5)`,
/// `/proc/PID/io`), and the time that it computed. Of the last because checking large tables reads nothing for a while. One that
/// is stopped, or that waits for a disk, adds to none of them.
fn work_of(pid: u32) -> u64 {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let moved = ["rchar:", "wchar:", "read_bytes:", "write_bytes:"];
    let io = read("io");
    let lines = io.lines().filter_map(|line| line.split_once(' '));
    let bytes: u64 = lines.filter(|(name, _)| moved.contains(name)).filter_map(|(_, n)| n.parse::<u64>().ok()).sum();
    bytes + computed(&read("stat"))
}

/// Clock ticks of `/proc/PID/stat`, fields 14 and 15; the second field is a name that may hold blanks, in parentheses.
fn computed(stat: &str) -> u64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_ascii_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

fn missing(name: &str) -> Error {
    let package = if name.starts_with("qemu") { "qemu-utils (Debian) or qemu-img (Fedora)" } else { "libvirt-clients" };
    Error::insufficient(format!("{name} is not installed on this host"))
        .with("program", name)
        .help(format!("Install {package} on the host"))
}

fn failed(name: &str, why: &str) -> Error {
    Error::insufficient(format!("{name} cannot be run: {why}")).with("program", name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "7 (a) b (c)) R 1 7 7 0 -1 4194304 90 0 0 0 12 30 0 0 20 0 1 0 5 0 0";
        assert_eq!((computed(stat), computed("")), (42, 0));
    }

    #[test]
    fn a_program_that_only_waits_has_no_progress() {
        let work = |words: &[&str]| {
            let done = AtomicU64::new(0);
            // The count right after its start is that of its loading.
            let worked = |work| {
                done.fetch_add(work, Ordering::Relaxed);
            };
            let deadline = Some(Duration::from_secs(2));
            let ended = run(words[0], &words[1..], Vec::new(), &Watch { deadline, stop: &|| false, worked: &worked });
            assert_eq!(ended.err().unwrap().code, Code::Timeout);
            done.into_inner()
        };
        let waits = work(&["sleep", "60"]);
        let reads = work(&["dd", "if=/dev/zero", "of=/dev/null", "bs=1M"]);
        assert!(waits < 1 << 20 && reads > 10 << 20, "{waits} {reads}");
    }
}
