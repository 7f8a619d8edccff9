//! Programs that the agent runs: `qemu-img` and `virsh`.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kvm_clone_core::{Code, Error, Result};

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

/// Runs a program to its end, with a deadline, or until it is to `stop`. It ends with us, and holds `users` open until it
/// has ended.
pub(crate) fn run(
    name: &str,
    arguments: &[&str],
    users: Option<File>,
    deadline: Duration,
    stop: &dyn Fn() -> bool,
) -> Result<Outcome> {
    let path = find(name).ok_or_else(|| missing(name))?;
    let mut command = Command::new(path);
    // A user's own libvirt is found by these.
    let kept = ["HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"];
    let kept = kept.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.args(arguments).env_clear().envs(kept).env("LC_ALL", "C").env("PATH", PROGRAM_DIRS.join(":"));
    command.stdin(users.map_or_else(Stdio::null, Stdio::from)).stdout(Stdio::piped()).stderr(Stdio::piped());
    ends_with_us(&mut command);
    let mut child = command.spawn().map_err(|error| failed(name, &error.to_string()))?;
    let readers = [child.stdout.take().map(keep_output), child.stderr.take().map(keep_output)];
    let status = wait(&mut child, name, deadline, stop)?;
    let output: Vec<String> = readers.into_iter().flatten().filter_map(|reader| reader.join().ok()).collect();
    Ok(Outcome { status, output: output.concat() })
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

fn wait(child: &mut Child, name: &str, deadline: Duration, stop: &dyn Fn() -> bool) -> Result<ExitStatus> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().map_err(|error| failed(name, &error.to_string()))? {
            return Ok(status);
        }
        let stopped = stop();
        if stopped || Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            if stopped {
                return Err(Error::new(Code::Cancelled, format!("{name} was stopped")).with("program", name));
            }
            return Err(
                Error::timeout(format!("{name} took longer than {} s", deadline.as_secs())).with("program", name)
            );
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
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
