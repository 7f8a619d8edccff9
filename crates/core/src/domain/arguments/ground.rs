//! What an option stands on: qemu-system's manual, "Options".

use super::option::Argument;

/// What an argument stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ground {
    /// A file or directory that is only read, as a kernel is: what it is, and its path.
    File(&'static str, String),
    /// What is the source's host's alone, or what two machines would share.
    Host(&'static str),
}

/// Devices whose other end is hardware or a process of the host, by how their names begin.
const DEVICES: [&str; 9] = [
    "vfio-",
    "usb-host",
    "pci-assign",
    "virtio-input-host",
    "vhost-scsi",
    "vhost-user",
    "vhost-vdpa",
    "ccid-card-emulated",
    "u2f-passthru",
];

/// Character devices that each machine has for itself.
const OWN_BACKENDS: [&str; 15] = [
    "null",
    "none",
    "vc",
    "ringbuf",
    "memory",
    "stdio",
    "pty",
    "spicevmc",
    "spiceport",
    "msmouse",
    "wctablet",
    "testdev",
    "dbus",
    "qemu-vdagent",
    "chardev",
];

/// What an argument stands on, as far as qemu's manual says.
pub(super) fn grounds(argument: &Argument) -> Vec<Ground> {
    let value = argument.value.as_str();
    match argument.option.as_str() {
        "" | "drive" | "blockdev" | "hda" | "hdb" | "hdc" | "hdd" | "cdrom" | "fda" | "fdb" | "pflash" | "mtdblock"
        | "sd" => vec![Ground::Host("an image")],
        // Words for the guest's kernel or for people; and sound, which libvirt's elements bring to the host's as well.
        "append" | "name" | "uuid" | "audiodev" => Vec::new(),
        "kernel" => file("kernel", value),
        "initrd" => file("initial RAM disk", value),
        "dtb" => file("device tree", value),
        // Names without a path are those of files that qemu brings.
        "bios" | "option-rom" if !value.contains('/') => Vec::new(),
        "bios" => file("firmware", value),
        "option-rom" => file("device ROM", value),
        "L" => file("directory of firmware", value),
        "fw_cfg" => parts("fw_cfg file", argument, &["file"]),
        "smbios" => parts("SMBIOS table", argument, &["file", "path"]),
        "acpitable" => parts("ACPI table", argument, &["file", "data"]),
        "device" => device(argument),
        "object" => object(argument),
        "chardev" => backend(argument.kind("backend"), argument),
        "serial" | "parallel" | "monitor" | "qmp" | "qmp-pretty" | "debugcon" | "gdb" => {
            let end = value.strip_prefix("mon:").unwrap_or(value);
            backend(end.split([':', ',']).next().unwrap_or_default(), argument)
        }
        "s" => vec![Ground::Host("a port")],
        "netdev" | "nic" | "net" if argument.kind("type").starts_with("vhost-") => vec![Ground::Host("a device")],
        "virtfs" | "fsdev" => vec![Ground::Host("a directory")],
        "tpmdev" => vec![Ground::Host("a TPM")],
        "mem-path" => vec![Ground::Host("memory in a file")],
        "usbdevice" if value.starts_with("host:") => vec![Ground::Host("a device")],
        "vnc" if value.starts_with("unix:") => vec![Ground::Host("a socket")],
        "display" | "spice" => {
            let mut found = parts("render node", argument, &["rendernode"]);
            found.extend(named(argument, &["rendernode"]));
            found
        }
        "readconfig" | "incoming" => vec![Ground::Host("a file")],
        _ => named(argument, &[]),
    }
}

fn device(argument: &Argument) -> Vec<Ground> {
    let driver = argument.kind("driver");
    // A ROM without a path is one that qemu brings.
    let rom = argument.part("romfile").filter(|path| path.contains('/'));
    let mut found = rom.map_or_else(Vec::new, |path| file("device ROM", path));
    match DEVICES.iter().any(|known| driver.starts_with(known)) {
        true => found.push(Ground::Host("a device")),
        false => found.extend(named(argument, &["romfile"])),
    }
    found
}

fn object(argument: &Argument) -> Vec<Ground> {
    match argument.kind("qom-type") {
        "memory-backend-file" => vec![Ground::Host("memory in a file")],
        "input-linux" => vec![Ground::Host("an input device")],
        "sev-guest" | "sev-snp-guest" | "tdx-guest" | "s390-pv-guest" => {
            vec![Ground::Host("memory that is sealed to a CPU")]
        }
        "can-host-socketcan" => vec![Ground::Host("a network device")],
        // As <rng model='random'>, whose device every host has.
        "rng-random" => Vec::new(),
        "secret" => parts("secret", argument, &["file"]),
        kind if kind.starts_with("tls-creds") => parts("directory of certificates", argument, &["dir"]),
        kind if kind.starts_with("authz-list") => parts("list of names", argument, &["filename"]),
        _ => named(argument, &[]),
    }
}

fn backend(kind: &str, argument: &Argument) -> Vec<Ground> {
    match kind.is_empty() || OWN_BACKENDS.contains(&kind) {
        true => named(argument, &[]),
        false => vec![Ground::Host("a socket, port, device or file")],
    }
}

/// A relative path begins where qemu was started, which is nobody's to know.
fn file(what: &'static str, path: &str) -> Vec<Ground> {
    match path.starts_with('/') {
        true => vec![Ground::File(what, path.to_owned())],
        false => vec![Ground::Host("a file under a relative path")],
    }
}

fn parts(what: &'static str, argument: &Argument, keys: &[&str]) -> Vec<Ground> {
    let named = argument.parts.iter().filter(|(key, value)| keys.contains(&key.as_str()) && !value.is_empty());
    named.flat_map(|(_, path)| file(what, path)).collect()
}

/// Whatever looks like a file, but for parts that were looked at already.
fn named(argument: &Argument, known: &[&str]) -> Vec<Ground> {
    let is_file = |(key, value): &(String, String)| {
        let is_said = matches!(key.as_str(), "file" | "filename" | "path") && !value.is_empty();
        !known.contains(&key.as_str()) && (is_said || value.starts_with('/'))
    };
    let found = argument.parts.iter().any(is_file).then_some(Ground::Host("a file"));
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::option::read;
    use super::*;

    fn found(line: &str) -> Vec<Ground> {
        let words: Vec<&str> = line.split(' ').collect();
        read(&words).iter().flat_map(grounds).collect()
    }

    #[test]
    fn what_is_the_hosts_alone_is_recognised() {
        for line in [
            "-device vfio-pci,host=01:00.0",
            "-device driver=usb-host,vendorid=0x1234",
            r#"-device {"driver":"vfio-pci","host":"01:00.0"}"#,
            "-device vhost-user-fs-pci,chardev=c,tag=t",
            "-device virtio-gpu,x=/dev/dri",
            "-object memory-backend-file,id=m,mem-path=/dev/kvmfr0",
            "-object input-linux,id=k,evdev=/dev/input/event1",
            "-object sev-guest,id=s",
            "-object filter-dump,id=d,file=dump.pcap",
            "-chardev socket,id=c,path=/tmp/x.sock",
            "-chardev file,id=c,path=log",
            "-chardev stdio,id=c,logfile=/tmp/log",
            "-qmp unix:/tmp/qmp,server",
            "-serial tcp::5555,server",
            "-serial /dev/ttyS0",
            "-monitor mon:telnet::1,server",
            "-gdb tcp::1234",
            "-s",
            "-drive if=none,file=/a.img",
            "-hda a.img",
            "-virtfs local,path=/srv,mount_tag=t",
            "-tpmdev passthrough,id=t",
            "-mem-path /dev/shm",
            "-usbdevice host:1234:5678",
            "-vnc unix:/tmp/vnc",
            "-netdev vhost-user,id=n,chardev=c",
            "-readconfig /a.cfg",
            "-D /tmp/qemu.log",
            "-pidfile /run/x.pid",
            "-kernel vmlinuz",
            "/a.img",
        ] {
            assert!(found(line).iter().any(|ground| matches!(ground, Ground::Host(_))), "{line}: {:?}", found(line));
        }
    }

    #[test]
    fn files_that_are_only_read_are_looked_for_at_the_target() {
        for (line, what, path) in [
            ("-fw_cfg name=opt/com.coreos/config,file=/srv/coreos.ign", "fw_cfg file", "/srv/coreos.ign"),
            ("-fw_cfg opt/x,file=/srv/a,,b", "fw_cfg file", "/srv/a,b"),
            ("-L /srv/bios", "directory of firmware", "/srv/bios"),
            ("-bios /srv/bios.bin", "firmware", "/srv/bios.bin"),
            ("-kernel /boot/vmlinuz", "kernel", "/boot/vmlinuz"),
            ("-smbios file=/srv/smbios", "SMBIOS table", "/srv/smbios"),
            ("-acpitable file=/srv/slic", "ACPI table", "/srv/slic"),
            ("-device virtio-net-pci,romfile=/srv/rom", "device ROM", "/srv/rom"),
            ("-object secret,id=s,file=/etc/key", "secret", "/etc/key"),
            ("-display egl-headless,rendernode=/dev/dri/renderD128", "render node", "/dev/dri/renderD128"),
        ] {
            assert_eq!(found(line), [Ground::File(what, path.to_owned())], "{line}");
        }
        let both = found("-device vfio-pci,host=01:00.0,romfile=/srv/rom");
        assert_eq!(both, [Ground::File("device ROM", "/srv/rom".to_owned()), Ground::Host("a device")]);
    }

    #[test]
    fn what_stands_on_nothing_is_carried() {
        for line in [
            "-global ICH9-LPC.disable_s3=1",
            "-device virtio-balloon-pci,id=b",
            "-device virtio-net-pci,netdev=n,romfile=",
            "-netdev user,id=n,hostfwd=tcp::2222-:22",
            "-fw_cfg name=opt/x,string=/not/a/file -cpu host,+vmx",
            "-append root=/dev/vda1",
            "-audiodev pa,id=a,server=/run/user/1000/pulse/native",
            "-smbios type=11,value=/x",
            "-object memory-backend-memfd,id=m,size=1G",
            "-object rng-random,id=r,filename=/dev/urandom",
            "-serial null -monitor none -qmp chardev:c -serial mon:stdio",
            "-chardev pty,id=p",
            "-bios seabios.bin",
            "-no-hpet -boot menu=on",
        ] {
            assert_eq!(found(line), [], "{line}");
        }
    }
}
