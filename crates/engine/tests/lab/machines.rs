//! Machines as administrators have them: UEFI, devices of their host, tuning, disks of every kind.

use std::process::Command;

use crate::common::*;
use crate::oracle::{Gate, PATIENCE, Run, wait_for};
use crate::pair::{Pair, web};
use kvm_clone_core::domain::Reduction;
use kvm_clone_core::plan::{CloneRequest, Consistency, Existing};
use kvm_clone_lab::{DiskSpec, Fill, Host, Machine, define_machine};
use tokio_util::sync::CancellationToken;

const NVRAM: &str = "/var/lib/libvirt/qemu/nvram";
/// Debian's OVMF.
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

impl Pair {
    /// A machine that boots UEFI firmware, with variables of its own.
    fn uefi(&self) -> Machine {
        let machine = define_machine(&self.alpha, web()).unwrap();
        let xml = self.alpha.exec(&["virsh", "-q", "dumpxml", "--inactive", "web1"]).unwrap();
        let start = xml.find("<kernel>").unwrap();
        let end = xml.find("</cmdline>").unwrap() + "</cmdline>".len();
        let firmware = format!(
            "<loader readonly='yes' type='pflash'>{CODE}</loader><nvram template='{VARS}'>{NVRAM}/web1_VARS.fd</nvram>"
        );
        self.define(&format!("{}{firmware}{}", &xml[..start], &xml[end..]));
        machine.start().unwrap();
        machine.destroy().unwrap();
        // Something that no template has.
        self.alpha
            .shell(&format!("printf 'boot from web1' | dd of={NVRAM}/web1_VARS.fd bs=1 seek=300000 conv=notrunc"))
            .unwrap();
        machine
    }

    fn variables(&self, host: &Host, name: &str) -> Vec<u8> {
        std::fs::read(host.path(&format!("{NVRAM}/{name}"))).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uefi_machine_keeps_its_variables_in_a_file_of_its_own() {
    let Some(pair) = Pair::new("a_uefi_machine_keeps_its_variables") else { return };
    pair.uefi();
    pair.clone(CloneRequest::default()).await.unwrap();
    assert!(pair.copy().contains(&format!("{NVRAM}/web1_clone_VARS.fd")), "{}", pair.copy());
    let variables = pair.variables(&pair.alpha, "web1_VARS.fd");
    assert!(variables == pair.variables(&pair.beta, "web1_clone_VARS.fd"));
    let copy = pair.beta.machine("web1_clone").unwrap();
    copy.start().unwrap();
    copy.destroy().unwrap();
    assert_nothing_left(&pair.beta);

    // Once more over the first one, whose variables go only when the new ones are there.
    let replace = || CloneRequest { existing: Existing::Replace, ..CloneRequest::default() };
    pair.clone(replace()).await.unwrap();
    let there = pair.beta.shell(&format!("ls -A {NVRAM}")).unwrap();
    assert_eq!(there.lines().count(), 1, "{there}");
    assert!(pair.copy().contains(there.trim()), "{there}: {}", pair.copy());
    assert!(variables == pair.variables(&pair.beta, there.trim()));
    pair.beta.machine("web1_clone").unwrap().start().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_copy_of_a_uefi_machine_leaves_no_variables() {
    let Some(pair) = Pair::new("a_failed_copy_of_a_uefi_machine") else { return };
    pair.uefi();
    let gate = Gate::after(4 * MIB);
    let run = Run::start(client(&pair.lab).await, CloneRequest::default(), gate.settings());
    gate.reached().await;
    run.cancel.cancel();
    assert_eq!(number(&run.fails().await), 1008);
    gate.open();
    assert_eq!(pair.beta.shell(&format!("ls -A {NVRAM}")).unwrap(), "");
    assert_nothing_left(&pair.beta);

    // Undone after the definition stood.
    let client = client(&pair.lab).await;
    let (alpha, beta) = (spec("alpha"), spec("beta"));
    let name = "web1".parse().unwrap();
    let prepared = client
        .prepare(&alpha, &beta, &name, CloneRequest::default(), kvm_clone_engine::Recovery::Act, silent())
        .await
        .unwrap();
    pair.alpha.shell(&format!("printf x | dd of={NVRAM}/web1_VARS.fd bs=1 seek=9 conv=notrunc")).unwrap();
    let gate = Gate::after(4 * MIB);
    let copying = tokio::spawn({
        let settings = gate.settings();
        async move { prepared.execute(&settings, silent(), CancellationToken::new()).await }
    });
    gate.reached().await;
    pair.alpha.shell(&format!("printf y | dd of={NVRAM}/web1_VARS.fd bs=1 seek=9 conv=notrunc")).unwrap();
    gate.open();
    let error = copying.await.unwrap().unwrap_err();
    assert_eq!(number(&error), 1014, "{error:?}");
    assert!(error.message.contains("VARS"), "{error:?}");
    assert_eq!(pair.beta.shell(&format!("ls -A {NVRAM}")).unwrap(), "");
}

/// Where libvirt chose the firmware, its definitions name no variables before libvirt 9.2; they come along all the same.
/// Emulated, because the firmware for secure boot needs a mode of the CPU that nested KVM may lack.
#[tokio::test(flavor = "multi_thread")]
async fn secure_boot_keeps_variables_that_no_definition_names() {
    let Some(pair) = Pair::new("secure_boot_keeps_variables") else { return };
    let machine = define_machine(&pair.alpha, web()).unwrap();
    let disk = &machine.disks()[0].path;
    pair.define(&format!(
        "<domain type='qemu'><name>web1</name><uuid>{}</uuid><memory unit='MiB'>128</memory><vcpu>1</vcpu>\
         <os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type><firmware><feature enabled='yes' \
         name='enrolled-keys'/><feature enabled='yes' name='secure-boot'/></firmware><loader secure='yes'/></os>\
         <features><acpi/><smm state='on'/></features><devices><disk type='file' device='disk'>\
         <driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>\
         </devices></domain>",
        machine.uuid()
    ));
    machine.start().unwrap();
    machine.destroy().unwrap();
    pair.alpha.shell(&format!("printf mine | dd of={NVRAM}/web1_VARS.fd bs=1 seek=300000 conv=notrunc")).unwrap();
    pair.clone(CloneRequest::default()).await.unwrap();
    let kept = ["firmware='efi'", "name='secure-boot'", "name='enrolled-keys'", "secure='yes'", "web1_clone_VARS.fd"];
    for text in kept {
        assert!(pair.copy().contains(text), "{text}: {}", pair.copy());
    }
    let variables = pair.variables(&pair.alpha, "web1_VARS.fd");
    assert!(variables == pair.variables(&pair.beta, "web1_clone_VARS.fd"));
    let copy = pair.beta.machine("web1_clone").unwrap();
    copy.start().unwrap();
    let live = pair.beta.exec(&["virsh", "-q", "dumpxml", "web1_clone"]).unwrap();
    assert!(live.contains("OVMF_CODE_4M.ms.fd") && live.contains("web1_clone_VARS.fd"), "{live}");
    copy.destroy().unwrap();
    assert_nothing_left(&pair.beta);

    pair.clone(CloneRequest { existing: Existing::Replace, ..CloneRequest::default() }).await.unwrap();
    let there = pair.beta.shell(&format!("ls -A {NVRAM}")).unwrap();
    assert_eq!(there.lines().count(), 1, "{there}");
    assert!(pair.copy().contains(there.trim()), "{there}: {}", pair.copy());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_uefi_machine_brings_its_variables() {
    let Some(pair) = Pair::new("a_running_uefi_machine_brings_its_variables") else { return };
    let machine = pair.uefi();
    machine.start().unwrap();
    // The firmware writes its variables while it boots, and then no more.
    let written = || std::fs::metadata(pair.alpha.path(&format!("{NVRAM}/web1_VARS.fd"))).unwrap().modified().unwrap();
    wait_for("the firmware to come to rest", || written().elapsed().unwrap().as_secs() >= 10);
    pair.clone(CloneRequest::default()).await.unwrap();
    assert!(pair.variables(&pair.alpha, "web1_VARS.fd") == pair.variables(&pair.beta, "web1_clone_VARS.fd"));
}

/// What belongs to the source's host is refused, and left out by word; the rest of the definition is untouched.
#[tokio::test(flavor = "multi_thread")]
async fn a_tuned_machine_with_host_devices_is_cloned_without_them_by_word() {
    let Some(pair) = Pair::new("a_tuned_machine_with_host_devices") else { return };
    let devices = "<hostdev mode='subsystem' type='usb'><source startupPolicy='optional'><vendor id='0x1234'/>\
                   <product id='0xbeef'/></source></hostdev>\
                   <filesystem type='mount' accessmode='mapped'><source dir='/srv'/><target dir='share'/></filesystem>";
    let domain = "<title>the web</title><metadata><app:x xmlns:app='http://example.org/app' y='1'/></metadata>\
                  <cputune><shares>512</shares><vcpupin vcpu='0' cpuset='0'/></cputune>";
    let spec = web().disk(DiskSpec::raw("vdb", 8 * MIB)).domain_xml(domain).devices_xml(devices);
    define_machine(&pair.alpha, spec).unwrap();
    let refused = pair.clone(CloneRequest::default()).await.unwrap_err();
    assert_eq!(number(&refused), 1013, "{refused:?}");
    assert!(machines(&pair.beta).is_empty());

    let reduction = Reduction {
        disks: ["vdb".parse().unwrap()].into(),
        host_devices: true,
        shared_directories: true,
        tuning: true,
    };
    let result = pair.clone(CloneRequest { reduction, ..CloneRequest::default() }).await.unwrap();
    let xml = pair.copy();
    for gone in ["<hostdev", "<filesystem", "vcpupin", "dev='vdb'"] {
        assert!(!xml.contains(gone), "{gone}: {xml}");
    }
    assert!(xml.contains("http://example.org/app"), "{xml}");
    let said = result.warnings.join("\n");
    assert!(said.contains("disk vdb is left out"), "{said}");
}

/// Saved memory stays at the source, which goes on from it as if nobody had looked.
#[tokio::test(flavor = "multi_thread")]
async fn saved_memory_stays_at_the_source() {
    let Some(pair) = Pair::new("saved_memory_stays_at_the_source") else { return };
    let machine = define_machine(&pair.alpha, web()).unwrap();
    machine.start().unwrap();
    machine.wait_for_console("kvm-clone-guest: up", PATIENCE).unwrap();
    pair.alpha.exec(&["virsh", "-q", "managedsave", "web1"]).unwrap();
    let saved = || pair.alpha.shell("sha256sum /var/lib/libvirt/qemu/save/web1.save").unwrap();
    let before = saved();
    let refused = pair.clone(CloneRequest::default()).await.unwrap_err();
    assert_eq!(number(&refused), 1013, "{refused:?}");
    assert!(refused.help.iter().any(|help| help.contains("--discard-managed-save")), "{refused:?}");

    let request = CloneRequest { discard_managed_save: true, ..CloneRequest::default() };
    let result = pair.clone(request).await.unwrap();
    assert_eq!(result.consistency, Consistency::Crash);
    assert!(result.warnings.iter().any(|warning| warning.contains("saved memory")), "{:?}", result.warnings);
    let copy = pair.beta.path(&crate::oracle::disk_path(&pair.copy(), "vda"));
    assert_same_contents(&pair.alpha.path(&machine.disks()[0].path), "qcow2", &copy, "qcow2");
    crate::oracle::assert_boots(&pair.beta.machine("web1_clone").unwrap());
    assert_eq!(saved(), before);
    machine.start().unwrap();
    assert_eq!(machine.state().unwrap(), "running");
    assert_eq!(machine.console().matches("kvm-clone-guest: up").count(), 1, "it went on and did not boot again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_lacks_is_seen_on_a_real_host() {
    let Some(pair) = Pair::new("what_the_target_lacks_is_seen") else { return };
    let display = "<graphics type='vnc' autoport='yes' listen='192.0.2.7'/>";
    let pinned = "<cputune><vcpupin vcpu='0' cpuset='0,4000'/></cputune>";
    define_machine(&pair.alpha, web().domain_xml(pinned).devices_xml(display)).unwrap();
    let refused = pair.clone(CloneRequest::default()).await.unwrap_err();
    assert_eq!(number(&refused), 1013, "{refused:?}");
    assert!(refused.message.contains("CPUs 4000,"), "{refused:?}");

    let reduction = Reduction { tuning: true, ..Reduction::default() };
    pair.clone(CloneRequest { reduction: reduction.clone(), ..CloneRequest::default() }).await.unwrap();
    let xml = pair.copy();
    assert!(xml.contains("listen='127.0.0.1'") && !xml.contains("192.0.2.7"), "{xml}");

    // What the target has stays.
    let own = pair.beta.shell("hostname -I").unwrap();
    let own = own.split_whitespace().next().unwrap();
    let change = format!("virsh dumpxml web1 | sed 's/192.0.2.7/{own}/g' > /root/x.xml; virsh define /root/x.xml");
    pair.alpha.shell(&change).unwrap();
    let request = CloneRequest { new_name: Some("own".parse().unwrap()), reduction, ..CloneRequest::default() };
    pair.clone(request).await.unwrap();
    let xml = pair.beta.exec(&["virsh", "-q", "dumpxml", "own"]).unwrap();
    assert!(xml.contains(&format!("listen='{own}'")), "{xml}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_device_becomes_a_file() {
    let Some(pair) = Pair::new("a_block_device_becomes_a_file") else { return };
    let device = pair.alpha.block_device("lv-web1", 24 * MIB).unwrap();
    let data: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.to_le_bytes()[..2].to_vec()).collect();
    let file = std::fs::OpenOptions::new().write(true).open(pair.alpha.path(&device)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &data, 8 * MIB).unwrap();
    file.sync_all().unwrap();
    let machine =
        define_machine(&pair.alpha, web().disk(DiskSpec::raw("vdb", 24 * MIB).at(&device).existing())).unwrap();
    pair.clone(CloneRequest::default()).await.unwrap();
    let copy = crate::oracle::disk_path(&pair.copy(), "vdb");
    assert_same_contents(&pair.alpha.path(&device), "raw", &pair.beta.path(&copy), "raw");

    machine.start().unwrap();
    machine.wait_for_console("kvm-clone-guest: up", PATIENCE).unwrap();
    let request = CloneRequest { new_name: Some("live".parse().unwrap()), ..CloneRequest::default() };
    pair.clone(request).await.unwrap();
    let xml = pair.beta.exec(&["virsh", "-q", "dumpxml", "live"]).unwrap();
    machine.destroy().unwrap();
    let copy = crate::oracle::disk_path(&xml, "vdb");
    assert_same_contents(&pair.alpha.path(&device), "raw", &pair.beta.path(&copy), "raw");
    let left = pair.alpha.shell("ls -A /var/lib/libvirt/images | grep scratch || true").unwrap();
    assert_eq!(left, "");
}

/// Read-only and transient disks are disks: their contents come along.
#[tokio::test(flavor = "multi_thread")]
async fn read_only_disks_are_copied() {
    let Some(pair) = Pair::new("read_only_disks_are_copied") else { return };
    let fill = Fill::Random { seed: 4, bytes: 2 * MIB };
    let spec = web().disk(DiskSpec::qcow2("vdb", 8 * MIB).fill(fill).xml("<readonly/>"));
    let machine = define_machine(&pair.alpha, spec).unwrap();
    let result = pair.clone(CloneRequest::default()).await.unwrap();
    assert!(result.warnings.iter().any(|warning| warning.contains("read-only")), "{:?}", result.warnings);
    let copy = pair.beta.path(&crate::oracle::disk_path(&pair.copy(), "vdb"));
    assert_same_contents(&pair.alpha.path(&machine.disks()[1].path), "qcow2", &copy, "qcow2");
    assert!(pair.copy().contains("<readonly/>"));
    let check = Command::new("qemu-img").args(["check", "-q"]).arg(copy).status().unwrap();
    assert!(check.success());
}

/// What CPUs a host has differs; what its libvirt says of them decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_cpu_that_the_target_lacks_is_refused_and_one_that_it_has_arrives() {
    let Some(pair) = Pair::new("a_cpu_that_the_target_lacks") else { return };
    define_machine(&pair.alpha, web()).unwrap();
    let xml = pair.alpha.exec(&["virsh", "-q", "dumpxml", "--inactive", "web1"]).unwrap();
    let start = xml.find("<cpu ").unwrap();
    // With KVM it is the host's own, an empty element; emulated, what libvirt itself wrote there.
    let end = if xml.contains("</cpu>") { "</cpu>" } else { "/>" };
    let end = start + xml[start..].find(end).unwrap() + end.len();
    let with = |cpu: &str| pair.define(&format!("{}{cpu}{}", &xml[..start], &xml[end..]));
    let custom = |check: &str, model: &str| {
        format!("<cpu mode='custom' match='exact' check='{check}'><model fallback='forbid'>{model}</model></cpu>")
    };
    with(&custom("none", "Unheard-Of"));
    let refused = pair.clone(CloneRequest::default()).await.unwrap_err();
    assert_eq!(number(&refused), 1013, "{refused:?}");
    assert!(refused.message.contains("Unheard-Of") && refused.help[0].starts_with("It can run "), "{refused:?}");
    assert!(machines(&pair.beta).is_empty());

    with(&custom("none", "qemu64"));
    pair.clone(CloneRequest::default()).await.unwrap();
    assert!(pair.copy().contains("qemu64"), "{}", pair.copy());
    let request = |name: &str| CloneRequest { new_name: Some(name.parse().unwrap()), ..CloneRequest::default() };
    with(&custom("partial", "pentium3"));
    pair.clone(request("old")).await.unwrap();
}
