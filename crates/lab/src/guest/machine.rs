//! Machines: defined from a short description, started, watched on their serial console.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use crate::guest::disk::{self, Disk, DiskSpec};
use crate::guest::image::{GuestImage, guest_image};
use crate::guest::trial::DomainType;
use crate::run::{make_dir, wait_until, write};
use crate::{Host, LabError, Result};

const MIB: u64 = 1 << 20;
/// Where hosts have the guest's kernel and initramfs.
const KERNEL: &str = "/var/lib/libvirt/boot/lab-vmlinuz";
const INITRD: &str = "/var/lib/libvirt/boot/lab-initrd.gz";
/// Without the kernel's test of its timer: an emulated processor that the machine has no time for fails it, and the kernel
/// stops there for good ("8254 timer not connected to IO-APIC"). And without what costs an emulated one a quarter of the boot:
/// tests of ciphers, and what keeps attackers out that a lab does not have.
const KERNEL_WORDS: &str = "console=ttyS0 panic=-1 quiet no_timer_check cryptomgr.notests nokaslr mitigations=off";

/// A machine that is to be defined.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    name: String,
    uuid: Option<String>,
    memory: u64,
    disks: Vec<DiskSpec>,
    devices: String,
    domain: String,
    append: String,
    network: bool,
}

impl MachineSpec {
    /// A q35 machine with 128 MiB, an interface in network `default` and no disk.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let (devices, domain, append) = (String::new(), String::new(), String::new());
        let (name, disks) = (name.to_owned(), Vec::new());
        Self { name, uuid: None, memory: 128 * MIB, disks, devices, domain, append, network: true }
    }

    /// Adds a disk.
    #[must_use]
    pub fn disk(mut self, disk: DiskSpec) -> Self {
        self.disks.push(disk);
        self
    }

    /// A UUID of the test's choice instead of a random one.
    #[must_use]
    pub fn uuid(mut self, uuid: &str) -> Self {
        self.uuid = Some(uuid.to_owned());
        self
    }

    /// The guest's memory in bytes.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// More of `<devices>`.
    #[must_use]
    pub fn devices_xml(mut self, fragment: &str) -> Self {
        self.devices.push_str(fragment);
        self
    }

    /// More of `<domain>`, e.g. `<metadata>`.
    #[must_use]
    pub fn domain_xml(mut self, fragment: &str) -> Self {
        self.domain.push_str(fragment);
        self
    }

    /// No network interface.
    #[must_use]
    pub fn no_network(mut self) -> Self {
        self.network = false;
        self
    }

    /// The guest writes numbered records to its first two disks for ever (`init.sh` describes them).
    #[must_use]
    pub fn writing(mut self) -> Self {
        self.append.push_str(" lab.write");
        self
    }

    /// More words for the guest kernel's command line.
    #[must_use]
    pub fn kernel_arguments(mut self, words: &str) -> Self {
        self.append.push(' ');
        self.append.push_str(words);
        self
    }

    fn xml(&self, domain_type: DomainType, uuid: &str, disks: &[Disk]) -> String {
        let Self { name, memory, domain, append, .. } = self;
        let kind = domain_type.name();
        let cpu = if domain_type == DomainType::Kvm { "<cpu mode='host-passthrough'/>" } else { "" };
        let mut xml = format!(
            "<domain type='{kind}'><name>{name}</name><uuid>{uuid}</uuid>{domain}<memory unit='b'>{memory}</memory>\
             <vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type><kernel>{KERNEL}</kernel>\
             <initrd>{INITRD}</initrd><cmdline>{KERNEL_WORDS}{append}</cmdline></os>\
             <features><acpi/></features>{cpu}<on_reboot>destroy</on_reboot><devices>",
        );
        for (spec, disk) in self.disks.iter().zip(disks) {
            let Disk { target, path, format, .. } = disk;
            let (kind, word) = if path.starts_with("/dev/") { ("block", "dev") } else { ("file", "file") };
            let (format, extra) = (format.name(), &spec.extra_xml);
            let _ = write!(
                xml,
                "<disk type='{kind}' device='disk'><driver name='qemu' type='{format}' discard='unmap'/>\
                 <source {word}='{path}'/><target dev='{target}' bus='virtio'/>{extra}</disk>",
            );
        }
        if self.network {
            xml.push_str("<interface type='network'><source network='default'/><model type='virtio'/></interface>");
        }
        let console = console_path(name);
        let _ = write!(
            xml,
            "<serial type='file'><source path='{console}' append='on'/><target port='0'/></serial>{}</devices></domain>",
            self.devices
        );
        xml
    }
}

fn console_path(name: &str) -> String {
    format!("/var/log/libvirt/qemu/{name}-console.log")
}

/// A machine that is defined on a host.
#[derive(Debug, Clone)]
pub struct Machine {
    host: Host,
    name: String,
    uuid: String,
    disks: Vec<Disk>,
}

/// Makes the disks and defines the machine; it is not started. The host has the guest's kernel and initramfs afterwards.
pub fn define_machine(host: &Host, spec: MachineSpec) -> Result<Machine> {
    let image = guest_image()?;
    let domain_type = DomainType::of_this_machine(&image)?;
    provide_guest(host, &image)?;
    let disks: Vec<Disk> = spec.disks.iter().map(|disk| disk::create(host, &spec.name, disk)).collect::<Result<_>>()?;
    let uuid = match &spec.uuid {
        Some(uuid) => uuid.clone(),
        None => crate::root::fresh_uuid()?,
    };
    make_dir(&host.path("/var/tmp"))?;
    let inside = format!("/var/tmp/{}.xml", spec.name);
    write(&host.path(&inside), spec.xml(domain_type, &uuid, &disks), 0o600)?;
    host.exec(&["virsh", "-q", "-c", "qemu:///system", "define", "--validate", &inside])?;
    let outside = host.path(&inside);
    fs::remove_file(&outside).map_err(LabError::file("remove", &outside))?;
    Ok(Machine { host: host.clone(), name: spec.name, uuid, disks })
}

/// Makes the guest's kernel and initramfs visible in a host, e.g. in the target of a clone.
pub(crate) fn provide_guest(host: &Host, image: &GuestImage) -> Result<()> {
    for (from, to) in [(&image.kernel, KERNEL), (&image.initrd, INITRD)] {
        if !host.path(to).exists() {
            host.install_file(from, to, 0o644)?;
        }
    }
    Ok(())
}

impl Host {
    /// Puts the lab guest's kernel and initramfs where machines from other hosts look for them.
    pub fn provide_guest(&self) -> Result<()> {
        provide_guest(self, &guest_image()?)
    }

    /// A machine that somebody else defined on this host, e.g. the clone, by its name.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        let uuid = self.exec(&["virsh", "-c", "qemu:///system", "domuuid", name])?.trim().to_owned();
        Ok(Machine { host: self.clone(), name: name.to_owned(), uuid, disks: Vec::new() })
    }
}

impl Machine {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its UUID.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The disks it was made with; none for a machine of somebody else's making.
    #[must_use]
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// The host it is defined on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Starts it.
    pub fn start(&self) -> Result<()> {
        self.virsh("start").map(drop)
    }

    /// Pulls its plug.
    pub fn destroy(&self) -> Result<()> {
        self.virsh("destroy").map(drop)
    }

    /// Removes its definition; its disks stay.
    pub fn undefine(&self) -> Result<()> {
        self.virsh("undefine").map(drop)
    }

    /// Its state in virsh's words: "running", "shut off".
    pub fn state(&self) -> Result<String> {
        Ok(self.virsh("domstate")?.trim().to_owned())
    }

    /// Its definition as it will be at the next start.
    pub fn xml(&self) -> Result<String> {
        self.host.exec(&["virsh", "-q", "-c", "qemu:///system", "dumpxml", "--inactive", &self.name])
    }

    /// All it ever wrote to its serial console on this host, unless the definition names another file.
    #[must_use]
    pub fn console(&self) -> String {
        let text = fs::read(self.host.path(&console_path(&self.name))).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until the console holds `text` in a line that is complete; that line.
    pub fn wait_for_console(&self, text: &str, limit: Duration) -> Result<String> {
        let find = |console: &str| {
            let mut whole = console.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            whole.find(|line| line.contains(text)).map(|line| line.trim().to_owned())
        };
        let what = format!("{text:?} on the console of {}", self.name);
        wait_until(&what, limit, || Ok(find(&self.console())), || self.console())
    }

    fn virsh(&self, verb: &str) -> Result<String> {
        self.host.exec(&["virsh", "-q", "-c", "qemu:///system", verb, &self.name])
    }
}
