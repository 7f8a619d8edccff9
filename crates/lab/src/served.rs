//! A file that a process serves: it hangs while that process is stopped, as one does whose disk or server is gone; it can be slow,
//! and it can have a sector that cannot be read.

use std::time::Duration;

use crate::{Host, Result, fault};

/// How long the end of a process may take.
const END: Duration = Duration::from_secs(10);

/// A file of a host with a process between it and whoever opens it.
#[derive(Debug)]
pub struct ServedFile {
    host: Host,
    /// What the words of its process contain, and those of no other.
    process: String,
}

impl Host {
    /// Serves a file from now on, no faster than so many bytes a second (0: as fast as it can). Nothing of it is kept in the
    /// host's memory, and at each look it seems to have been changed just now.
    pub fn serve_file(&self, inside: &str, bytes_per_second: u64) -> Result<ServedFile> {
        let throttled = [
            "--object",
            &format!("throttle-group,id=speed,x-bps-total={bytes_per_second}"),
            "--blockdev",
            &format!("file,node-name=file,filename={inside}"),
            "--blockdev",
            "throttle,node-name=served,throttle-group=speed,file=file",
        ];
        self.serve(inside, &throttled)
    }

    /// Serves a file of which the sector at this offset cannot be read from now on (`EIO`), as on a medium that fails; it can be
    /// written to. Reads that touch it fail as a whole.
    pub fn serve_unreadable(&self, inside: &str, offset: u64) -> Result<ServedFile> {
        // qemu's docs/devel/blkdebug.rst. Without a cache of its own, the kernel asks for no more than what is read.
        let failing = format!(
            "blkdebug,node-name=served,image=file,inject-error.0.event=none,inject-error.0.iotype=read,\
             inject-error.0.errno=5,inject-error.0.sector={},inject-error.0.once=off",
            offset / 512
        );
        self.serve(inside, &["--blockdev", &format!("file,node-name=file,filename={inside}"), "--blockdev", &failing])
    }

    fn serve(&self, inside: &str, nodes: &[&str]) -> Result<ServedFile> {
        // Mounted over the very file that it serves (qemu-storage-daemon(1), `--export fuse`); returns once it is there.
        let export = format!("fuse,id=served,node-name=served,mountpoint={inside},writable=on");
        let words = [&["qemu-storage-daemon", "--daemonize"], nodes, &["--export", &export]].concat();
        self.exec(&words)?;
        Ok(ServedFile { host: self.clone(), process: format!("mountpoint={inside},") })
    }
}

impl ServedFile {
    /// From now on nothing that reads from the file or looks at it gets on.
    pub fn hang(&self) -> Result<()> {
        fault::freeze(&self.host, &self.process).map(drop)
    }

    /// What hangs goes on.
    pub fn go_on(&self) -> Result<()> {
        fault::thaw(&self.host, &self.process).map(drop)
    }

    /// The file is a plain one again; nobody may have it open.
    pub fn end(&self) -> Result<()> {
        self.go_on()?;
        let end = rustix::process::Signal::TERM;
        fault::strike(&self.host, &self.process, end)?;
        fault::wait_gone(&self.host, &self.process, END)
    }
}
