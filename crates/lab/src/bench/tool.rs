//! The tools that are compared: ours, and what people copy images with today, each as its users would call it.

use crate::guest::DiskFormat;

/// A tool.
#[derive(Debug, Clone)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) ours: bool,
    /// The cipher of its SSH connections.
    pub(super) cipher: &'static str,
    /// What is run on the source host; `MACHINE`, `SOURCE`, `TARGET` and `SIZE` are put in.
    pub(super) command: String,
}

/// What OpenSSH chooses by itself where neither side's configuration names a cipher.
const USUAL: &str = "chacha20-poly1305";
const FAST: &str = "aes128-gcm";
const FAST_OPTION: &str = "-c aes128-gcm@openssh.com";

impl Tool {
    fn peer(name: &'static str, cipher: &'static str, command: String) -> Self {
        Self { name, ours: false, cipher, command }
    }

    /// The command for one disk of one machine.
    pub(super) fn script(&self, machine: &str, source: &str, target: &str, size: u64) -> String {
        let named = self.command.replace("MACHINE", machine).replace("SOURCE", source).replace("TARGET", target);
        named.replace("SIZE", &size.to_string())
    }
}

/// All tools for disks of this format. The others get the fast cipher too, which few users know to ask for; `scp` runs with
/// its own besides.
pub(super) fn all(format: DiskFormat) -> Vec<Tool> {
    let ours = "kvm-clone -q -y clone local beta MACHINE -n copy";
    let our = |name, cipher, options| Tool { name, ours: true, cipher, command: format!("{ours}{options}") };
    let sparse = match format {
        DiskFormat::Raw => " --sparse",
        DiskFormat::Qcow2 => "",
    };
    vec![
        our("kvm-clone", "AES-256-GCM (host to host)", ""),
        our("kvm-clone over SSH", FAST, " --route relay"),
        Tool::peer("scp", USUAL, "scp -q SOURCE beta:TARGET".to_owned()),
        Tool::peer("scp, fast cipher", FAST, format!("scp -q {FAST_OPTION} SOURCE beta:TARGET")),
        Tool::peer("rsync -S", FAST, format!("rsync -S -e 'ssh {FAST_OPTION}' SOURCE beta:TARGET")),
        Tool::peer(
            "zstd -1 | ssh",
            FAST,
            format!("zstd -q -1 -T0 -c SOURCE | ssh {FAST_OPTION} beta 'zstd -q -d{sparse} -f -o TARGET'"),
        ),
        Tool::peer("qemu-img convert over NBD", FAST, over_nbd(format, &converting(format))),
        Tool::peer("nbdcopy over NBD", FAST, over_nbd(format, &copying(format))),
    ]
}

/// The source exported read-only on a unix socket, which SSH forwards to the target; there `pull` runs.
fn over_nbd(format: DiskFormat, pull: &str) -> String {
    let format = format.name();
    // sshd leaves the forwarded socket behind, and binds none that is there.
    format!(
        "qemu-nbd -r -f {format} -k /tmp/nbd.sock -e 8 --fork SOURCE; \
         ssh {FAST_OPTION} -R /tmp/nbd.sock:/tmp/nbd.sock beta \"{pull}; rm /tmp/nbd.sock\""
    )
}

fn converting(format: DiskFormat) -> String {
    format!("qemu-img convert -W -m 16 -f raw -O {} 'nbd+unix:///?socket=/tmp/nbd.sock' TARGET", format.name())
}

fn copying(format: DiskFormat) -> String {
    let from = "nbdcopy 'nbd+unix:///?socket=/tmp/nbd.sock'";
    match format {
        DiskFormat::Raw => format!("{from} TARGET"),
        DiskFormat::Qcow2 => {
            format!("qemu-img create -q -f qcow2 TARGET SIZE && {from} -- [ qemu-nbd -f qcow2 --discard=unmap TARGET ]")
        }
    }
}
