//! What cannot be carried is refused in words, each rule by itself.

use super::*;

fn context(paths_present: &BTreeSet<String>, whereabouts: Whereabouts) -> CarryContext<'_> {
    CarryContext { paths_present, whereabouts, identity: Identity::New, tpm: TpmState::Unsaid }
}

fn refuse(xml: &str) -> Vec<(u16, String)> {
    let domain = Domain::parse(xml).unwrap();
    let paths_present = BTreeSet::from(["/boot/here".to_owned()]);
    let errors = refusals(&domain, &context(&paths_present, Whereabouts::OtherHost));
    assert!(errors.iter().all(|error| !error.help.is_empty()), "{errors:?}");
    errors.into_iter().map(|error| (error.code.number(), error.message)).collect()
}

fn warn(xml: &str, whereabouts: Whereabouts) -> String {
    let paths_present = BTreeSet::from(["/boot/here".to_owned()]);
    warnings(&Domain::parse(xml).unwrap(), &context(&paths_present, whereabouts)).join("\n")
}

#[test]
fn ordinary_machines_are_carried() {
    assert_eq!(refuse(WEB), []);
    assert_eq!(refuse(SMALL), []);
    assert_eq!(
        refuse(&with_device("<interface type='ethernet'><link state='down'/></interface>")),
        [],
        "unplugged by us"
    );
}

#[test]
fn devices_of_the_host_are_refused() {
    let cases = [
        ("<tpm model='tpm-tis'><backend type='passthrough'/></tpm>", "TPM of its host"),
        ("<tpm model='tpm-tis'><backend type='external'/></tpm>", "outside of libvirt"),
        (
            "<tpm><backend type='emulator' version='2.0'><source type='dir' path='/a'/></backend></tpm>",
            "place of its own",
        ),
        ("<tpm><backend type='emulator' version='3.0'/></tpm>", "\"3.0\""),
        ("<hostdev mode='subsystem' type='pci'/>", "device of its host"),
        ("<filesystem type='mount'><source dir='/a'/></filesystem>", "directory of its host"),
        ("<shmem name='x'/>", "shares memory"),
        ("<lease><key>k</key></lease>", "lease"),
        ("<pstore backend='acpi-erst'><path>/a</path></pstore>", "crash records"),
        ("<input type='evdev'><source dev='/dev/input/event1'/></input>", "<input>"),
        ("<rng model='virtio'><backend model='egd' type='tcp'/></rng>", "<rng>"),
        ("<memory model='nvdimm'><source><path>/a</path></source></memory>", "<memory>"),
        ("<smartcard mode='host'/>", "<smartcard>"),
        ("<interface type='vhostuser'><source type='unix' path='/a' mode='client'/></interface>", "vhostuser"),
        ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", "vdpa"),
        ("<interface type='hostdev'/>", "hostdev"),
        ("<interface type='ethernet'><target dev='tap0' managed='no'/></interface>", "ethernet"),
        ("<interface type='ethernet'><script path='/etc/qemu-ifup'/></interface>", "ethernet"),
        ("<serial type='dev'><source path='/dev/ttyS0'/></serial>", "/dev/ttyS0"),
        ("<serial type='unix'><source mode='bind' path='/run/small.sock'/></serial>", "/run/small.sock"),
        ("<serial type='tcp'><source mode='bind' host='::' service='4555'/></serial>", "\"tcp\""),
        ("<channel type='unix'><source mode='bind' path='/run/shared.sock'/></channel>", "/run/shared.sock"),
        (
            "<channel type='unix'><source mode='connect' path='/run/libvirt/qemu/a'/><target type='virtio'/></channel>",
            "/run/libvirt/qemu/a",
        ),
        (
            "<channel type='unix'><source mode='bind' path='/run/small'/><target type='guestfwd' port='1'/></channel>",
            "/run/small",
        ),
        ("<redirdev bus='usb' type='tcp'><source mode='connect' host='h' service='1'/></redirdev>", "<redirdev>"),
    ];
    for (device, words) in cases {
        let refused = refuse(&with_device(device));
        assert_eq!(refused.len(), 1, "{device}: {refused:?}");
        assert_eq!(refused[0].0, 1013, "{device}");
        assert!(refused[0].1.contains(words), "{device}: {}", refused[0].1);
    }
}

#[test]
fn each_device_of_a_host_is_named() {
    let devices = "<hostdev type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>\
                   <hostdev type='pci'><source><address bus='0x02' slot='0x00' function='0x0'/></source></hostdev>\
                   <input type='evdev'><source dev='/dev/input/event1'/></input>\
                   <interface type='hostdev'><source><address bus='0x03'/></source></interface>\
                   <redirdev bus='usb' type='tcp'><source mode='connect' host='h' service='7'/></redirdev>";
    let domain = Domain::parse(&with_device(devices)).unwrap();
    let context = CarryContext {
        paths_present: &BTreeSet::new(),
        whereabouts: Whereabouts::OtherHost,
        identity: Identity::New,
        tpm: TpmState::Unsaid,
    };
    let errors = refusals(&domain, &context);
    let messages: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "the machine uses a device of its host: USB device 1:2",
            "the machine uses a device of its host: PCI device 0000:02:00.0",
            "an <input> stands on a device, file or socket of its host: evdev, /dev/input/event1",
            "a network interface of type \"hostdev\" belongs to its host: PCI device 0000:03:00.0",
            "a <redirdev> of type \"tcp\" leads to h, port 7, which the copy would share",
        ]
    );
    assert_eq!(errors[1].context["which"], "PCI device 0000:02:00.0");
    assert_eq!(errors[3].help[0], "Leave it out with --drop-hostdev");
}

#[test]
fn a_shared_socket_of_an_agent_says_how_libvirt_names_it() {
    let channel = "<channel type='unix'><source mode='bind' path='/run/shared.sock'/><target type='virtio'/></channel>";
    let domain = Domain::parse(&with_device(channel)).unwrap();
    let errors = chardev::refusals(&domain);
    assert!(errors.len() == 1 && errors[0].help[0].contains("without <source>"), "{errors:?}");
}

#[test]
fn disks_that_are_no_plain_images_are_refused() {
    let file = "<disk type='file' device='disk'>";
    let cases = [
        (file, "<disk type='network' device='disk'>", "network"),
        (file, "<disk type='nvme' device='disk'>", "\"nvme\""),
        (file, "<disk type='block' device='lun'>", "SCSI unit"),
        ("<target", "<shareable/><target", "shared"),
        ("<target", "<encryption format='luks'/><target", "<encryption>"),
        ("<source file='/pool/small.qcow2'/>", "<source file='/a'><auth username='u'/></source>", "<auth>"),
        ("<source file='/pool/small.qcow2'/>", "<source file='/a'><slices/></source>", "<slices>"),
        ("<source file='/pool/small.qcow2'/>", "", "no source"),
    ];
    for (old, new, words) in cases {
        let refused = refuse(&small_with(old, new));
        assert!(refused.len() == 1 && refused[0].0 == 1013 && refused[0].1.contains(words), "{new}: {refused:?}");
        assert!(refused[0].1.contains("vda"));
    }
}

#[test]
fn firmware_and_hypervisors_that_we_do_not_carry_are_refused() {
    let cases = [
        ("</os>", "<nvram type='network'><source protocol='iscsi' name='x'/></nvram></os>", "\"network\""),
        ("</os>", "<nvram format='vmdk'>/a/VARS.fd</nvram></os>", "vmdk"),
        ("</os>", "<varstore path='/a/VARS.json'/></os>", "<varstore>"),
        ("type='kvm'", "type='xen'", "\"xen\""),
        ("</os>", "</os><launchSecurity type='sev'/>", "sealed"),
    ];
    for (old, new, words) in cases {
        let refused = refuse(&small_with(old, new));
        assert!(refused.len() == 1 && refused[0].0 == 1013 && refused[0].1.contains(words), "{new}: {refused:?}");
    }
}

#[test]
fn files_that_the_machine_boots_with_must_be_at_the_target() {
    for element in
        ["<kernel>/boot/PATH</kernel>", "<initrd>/boot/PATH</initrd>", "<loader type='rom'>/boot/PATH</loader>"]
    {
        let here = small_with("</os>", &format!("{}</os>", element.replace("PATH", "here")));
        assert_eq!(refuse(&here), [], "{element}");
        let gone = small_with("</os>", &format!("{}</os>", element.replace("PATH", "gone")));
        assert_eq!(refuse(&gone).iter().map(|(code, _)| *code).collect::<Vec<_>>(), [1005], "{element}");
    }
    let table = "</os><sysinfo type='fwcfg'><entry name='opt/a' file='/boot/gone'/></sysinfo>";
    assert_eq!(refuse(&small_with("</os>", table))[0].0, 1005);
}

fn with_arguments(words: &[&str]) -> String {
    let namespace = "<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0' type='kvm'>";
    let words: String = words.iter().map(|word| format!("<q:arg value='{word}'/>")).collect();
    let line = format!("<q:commandline><q:env name='A' value='/a'/>{words}</q:commandline></domain>");
    small_with("<domain type='kvm'>", namespace).replace("</domain>", &line)
}

#[test]
fn arguments_for_qemu_that_name_files_are_refused() {
    let refused = refuse(&with_arguments(&["-device", "vfio-pci,host=01:00.0", "-drive", "file=/a.img,if=none", "-S"]));
    assert_eq!(refused.iter().map(|(code, _)| *code).collect::<Vec<_>>(), [1013, 1013]);
    assert!(refused[0].1.ends_with("a device of the source's host: -device vfio-pci,host=01:00.0"), "{refused:?}");
    assert!(refused[1].1.contains("/a.img"), "{refused:?}");
}

#[test]
fn files_that_arguments_have_read_must_be_at_the_target() {
    assert_eq!(refuse(&with_arguments(&["-fw_cfg", "name=opt/x,file=/boot/here"])), []);
    let gone = with_arguments(&["-fw_cfg", "name=opt/x,file=/boot/gone"]);
    let refused = refuse(&gone);
    assert!(
        refused.len() == 1 && refused[0].0 == 1005 && refused[0].1.contains("fw_cfg file /boot/gone"),
        "{refused:?}"
    );
    assert!(Domain::parse(&gone).unwrap().host_paths().contains("/boot/gone"), "the target is asked about it");
}

#[test]
fn what_was_made_for_the_host_is_said() {
    let web = warn(WEB, Whereabouts::OtherHost);
    assert!(web.contains("CPU of whatever host") && web.contains("qemu itself"), "{web}");
    let pinned = small_with("<vcpu>", "<memoryBacking><hugepages/></memoryBacking><vcpu cpuset='0-3'>");
    let pinned = warn(&pinned, Whereabouts::OtherHost);
    assert!(pinned.contains("pinning") && pinned.contains("huge pages"), "{pinned}");
    assert_eq!(warn(SMALL, Whereabouts::OtherHost), "");
}

#[test]
fn a_kernel_that_the_target_has_is_its_own() {
    let with = |element: &str| small_with("</os>", &format!("{element}</os>"));
    let kernel = with("<kernel>/boot/here</kernel><initrd>/boot/gone</initrd>");
    let said = warn(&kernel, Whereabouts::OtherHost);
    assert!(said.contains("the target has as the kernel /boot/here, not compared with the source's"), "{said}");
    assert_eq!(warn(&kernel, Whereabouts::SameHost), "");
    assert_eq!(warn(&with("<loader type='rom'>/boot/here</loader>"), Whereabouts::OtherHost), "");
}
