//! What a transformed definition says.

use super::*;

fn transformed(xml: &str, change: impl FnOnce(&mut Transform)) -> (String, Vec<String>) {
    let domain = Domain::parse(xml).unwrap();
    let mut wanted = clone_of(&domain);
    change(&mut wanted);
    transform(&domain, &wanted).unwrap()
}

#[test]
fn a_clone_of_a_rich_machine() {
    let (xml, notes) = transformed(WEB, |_| ());
    insta::assert_snapshot!(format!("{xml}\n{}", notes.join("\n")));
}

#[test]
fn a_clone_is_a_machine_of_its_own() {
    let (xml, _) = transformed(WEB, |_| ());
    let copy = Domain::parse(&xml).unwrap();
    assert_eq!(copy.name().as_str(), "copy");
    for old in ["aaaaaaaa", "52:54:00:01:02:03", "webnet0", "5901", "/srv/a/", " id='7'"] {
        assert!(!xml.contains(old), "{old} is still there");
    }
    assert!(xml.contains("<entry name='uuid'>00000000-0000-0000-0000-000000000007</entry>"));
    let macs: Vec<_> = copy.interfaces().into_iter().map(|nic| nic.mac.unwrap()).collect();
    assert_eq!(macs, ["52:54:00:01:02:0a", "00:16:3e:01:02:0b"]);
}

#[test]
fn a_fresh_address_is_never_one_that_the_machine_has() {
    let (xml, _) = transformed(WEB, |wanted| {
        wanted.macs = Macs::Fresh(vec![[0, 0, 0, 1, 2, 3], [0, 0, 0, 1, 2, 4], [0, 0, 0, 1, 2, 4]]);
    });
    assert!(xml.contains("52:54:00:01:02:04") && xml.contains("00:16:3e:01:02:04"), "{xml}");
    let domain = Domain::parse(WEB).unwrap();
    let none = Transform { macs: Macs::Fresh(Vec::new()), ..clone_of(&domain) };
    assert_eq!(transform(&domain, &none).unwrap_err().code.number(), 1000);
}

#[test]
fn the_lineage_is_read_back_and_replaced() {
    let (first, _) = transformed(SMALL, |wanted| {
        wanted.lineage.host_name = "o'brien & <sons> \"ü\"".to_owned();
        wanted.lineage.policy.networks = vec![("a'b".to_owned(), "none".to_owned())];
        wanted.lineage.policy.macs = Identity::Kept;
        let image = |path: &str, format, apart| KeptImage { path: path.to_owned(), format, apart };
        let images =
            [("vda", image("/a'b <c>", ImageFormat::Raw, false)), ("vdb", image("/d", ImageFormat::Qcow2, true))];
        let images = images.into_iter().map(|(disk, image)| (disk.parse().unwrap(), image)).collect();
        wanted.lineage.points = vec![KeptPoint { point: "2030-01-01T00:00:00Z".to_owned(), images }];
    });
    let lineage = Domain::parse(&first).unwrap().lineage().unwrap();
    assert_eq!(lineage.host_name, "o'brien & <sons> \"ü\"");
    assert_eq!(lineage.policy.networks, [("a'b".to_owned(), "none".to_owned())]);
    assert_eq!(lineage.policy.macs, Identity::Kept);
    assert_eq!(lineage.points[0].images[&"vda".parse().unwrap()].path, "/a'b <c>");
    assert!(lineage.points[0].standing().count() == 1 && lineage.points[0].images.len() == 2);
    let (second, _) = transformed(&first, |wanted| wanted.name = "third".parse().unwrap());
    assert_eq!(second.matches("<kvm-clone:lineage").count(), 1);
    assert_eq!(Domain::parse(&second).unwrap().lineage().unwrap().name.as_str(), "copy");
}

#[test]
fn media_stay_where_the_target_has_them() {
    let (xml, notes) = transformed(WEB, |_| ());
    assert!(!xml.contains("debian.iso") && xml.contains("<target dev='sdb' bus='sata'/>"));
    assert!(notes.iter().any(|note| note.contains("/iso/debian.iso is ejected from sdb")), "{notes:?}");
    let present = BTreeSet::from(["/iso/debian.iso".to_owned()]);
    let (xml, notes) = transformed(WEB, |wanted| wanted.paths_present = present);
    assert!(xml.contains("<source file='/iso/debian.iso'/>"));
    assert!(!notes.iter().any(|note| note.contains("ejected")), "{notes:?}");
}

#[test]
fn a_floppy_is_not_written_by_two_machines() {
    let floppy = "<disk type='file' device='floppy'><source file='/f.img'/><target dev='fda'/></disk>";
    for (whereabouts, stays) in [(Whereabouts::SameHost, false), (Whereabouts::OtherHost, true)] {
        let (xml, _) = transformed(&with_device(floppy), |wanted| {
            wanted.paths_present = BTreeSet::from(["/f.img".to_owned()]);
            wanted.whereabouts = whereabouts;
        });
        assert_eq!(xml.contains("/f.img"), stays);
    }
}

#[test]
fn drives_without_a_file_of_the_target_are_emptied() {
    for source in
        ["type='block' device='cdrom'><source dev='/dev/sr0'/>", "type='network' device='cdrom'><source name='a'/>"]
    {
        let (xml, notes) = transformed(&with_device(&format!("<disk {source}<target dev='sdz'/></disk>")), |_| ());
        assert!(xml.contains("<disk type='file' device='cdrom'><target dev='sdz'/></disk>"), "{xml}");
        assert_eq!(notes.len(), 1, "{notes:?}");
    }
}

#[test]
fn networks_are_mapped_or_unplugged() {
    let plug = |plug: Plug| vec![("br0".to_owned(), plug)];
    let mapped = |new: Plug| {
        let (xml, notes) = transformed(WEB, |wanted| wanted.plugs = plug(new));
        (Domain::parse(&xml).unwrap().interfaces().remove(1), xml, notes)
    };
    let network = "<network><name>lan</name><bridge name='virbr1'/></network>";
    let (nic, xml, notes) = mapped(Plug::Network(Network::from_xml(network, true).unwrap()));
    assert_eq!((nic.kind.as_str(), nic.source.as_deref()), ("network", Some("lan")));
    assert!(!xml.contains("virtualport") && notes.iter().any(|note| note.contains("virtualport")), "{notes:?}");
    let (nic, ..) = mapped(Plug::Bridge("br1".to_owned()));
    assert_eq!((nic.kind.as_str(), nic.source.as_deref()), ("bridge", Some("br1")));
    for (way, kind) in [(Plug::Nowhere, "ethernet"), (Plug::User, "user")] {
        let (nic, xml, notes) = mapped(way);
        assert_eq!((nic.kind.as_str(), nic.source), (kind, None));
        assert!(xml.contains("<link state='down'/>") && notes.iter().any(|note| note.contains("unplugged")));
    }
}

#[test]
fn displays_get_ports_of_their_own() {
    let cases = [
        (
            "<graphics type='spice' port='5900' tlsPort='5901' autoport='no'/>",
            "<graphics type='spice' autoport='yes'/>",
        ),
        ("<graphics type='vnc' port='5900'/>", "<graphics autoport='yes' type='vnc'/>"),
        ("<graphics type='vnc' port='-1' autoport='yes'/>", "<graphics type='vnc' port='-1' autoport='yes'/>"),
        (
            "<graphics type='vnc' socket='/a'><listen type='socket' socket='/a'/></graphics>",
            "<graphics type='vnc'><listen type='socket'/></graphics>",
        ),
        (
            "<vsock model='virtio'><cid auto='no' address='3'/></vsock>",
            "<vsock model='virtio'><cid auto='yes'/></vsock>",
        ),
    ];
    for (old, new) in cases {
        let (xml, notes) = transformed(&with_device(old), |_| ());
        assert!(xml.contains(new), "{xml}");
        assert_eq!(notes.is_empty(), old == new, "{notes:?}");
    }
}

#[test]
fn the_emulator_is_the_targets() {
    let (xml, _) = transformed(SMALL, |wanted| wanted.emulator = Some("/usr/libexec/qemu-kvm".to_owned()));
    assert!(xml.contains("<emulator>/usr/libexec/qemu-kvm</emulator>"));
}

#[test]
fn a_volume_becomes_a_file_and_that_is_said() {
    let volume = "<disk type='volume'><source pool='fast' volume='v 1'/><target dev='vdb'/></disk>";
    let (xml, notes) = transformed(&with_device(volume), |_| ());
    assert!(!xml.contains("'volume'"), "{xml}");
    assert_eq!(notes, ["disk vdb, volume v 1 of pool fast, becomes a file"]);
}

/// As oVirt, virt-manager of old, CloudStack and libvirt itself name them.
#[test]
fn sockets_of_channels_are_named_anew() {
    for path in [
        "/var/lib/libvirt/qemu/channels/11111111-2222-4333-8444-555555555555.org.qemu.guest_agent.0",
        "/var/lib/libvirt/qemu/f16x86_64.agent",
        "/var/lib/libvirt/qemu/v-2-VM.agent",
        "/run/libvirt/qemu/channel/3-small/org.qemu.guest_agent.0",
        "/srv/agents/11111111-2222-4333-8444-555555555555.sock",
        "/srv/agents/small.sock",
    ] {
        let channel = format!(
            "<channel type='unix'><source mode='bind' path='{path}'/><target type='virtio' name='agent.0'/></channel>"
        );
        let source = with_device(&channel);
        assert!(chardev::refusals(&Domain::parse(&source).unwrap()).is_empty(), "{path}");
        let (xml, notes) = transformed(&source, |_| ());
        assert!(xml.contains("<channel type='unix'><target type='virtio' name='agent.0'/></channel>"), "{xml}");
        assert_eq!(notes, [format!("the channel agent.0 gets a socket of its own instead of {path}")]);
    }
}

#[test]
fn a_disk_without_a_new_image_is_a_defect() {
    let domain = Domain::parse(SMALL).unwrap();
    let none = Transform { disks: BTreeMap::new(), ..clone_of(&domain) };
    assert_eq!(transform(&domain, &none).unwrap_err().code.number(), 1000);
}

#[test]
fn paths_are_escaped() {
    let path = "/a'b & \"c\" <d>/é.qcow2";
    let (xml, _) = transformed(SMALL, |wanted| {
        wanted.disks.insert(target("vda"), NewDisk::new(path, ImageFormat::Raw));
    });
    assert_eq!(Domain::parse(&xml).unwrap().disks()[0].source.as_deref(), Some(path));
    assert!(xml.contains("<driver name='qemu' type='raw'/>"));
}

#[test]
fn passwords_are_not_shown() {
    let shown = redact(WEB).unwrap();
    assert!(!shown.contains("s3cret") && shown.contains("passwd='***'"));
}

#[test]
fn a_display_listens_on_an_address_that_the_target_has() {
    let with = |address: &str| {
        let display = format!(
            "<graphics type='vnc' port='-1' autoport='yes' listen='{address}'><listen type='address' \
             address='{address}'/></graphics></devices>"
        );
        let source = WEB.replace("</devices>", &display);
        transformed(&source, |wanted| wanted.addresses = ["127.0.0.1", "10.0.0.7"].map(|a| a.parse().unwrap()).into())
    };
    for address in ["10.0.0.7", "0.0.0.0", "::", "127.0.0.1", "display.example"] {
        let (xml, notes) = with(address);
        assert!(xml.contains(&format!("listen='{address}'")), "{xml}");
        assert!(!notes.iter().any(|note| note.contains("does not have the address")), "{notes:?}");
    }
    let (xml, notes) = with("10.0.0.8");
    assert!(xml.contains("listen='127.0.0.1'") && xml.contains("address='127.0.0.1'"), "{xml}");
    assert!(!xml.contains("10.0.0.8"), "{xml}");
    assert!(notes.iter().any(|note| note.contains("does not have the address 10.0.0.8")), "{notes:?}");
}

#[test]
fn files_that_consoles_write_lie_where_the_target_has_a_directory() {
    let devices = "<serial type='file'><source path='/srv/a/tty.log'/></serial>\
                   <serial type='file'><source path='/srv/b/tty.log'/></serial>\
                   <serial type='pty'><log file='/srv/c/small.log'/></serial>\
                   <console type='file'><source path='/srv/a/tty.log'/></console>";
    let (xml, notes) = transformed(&with_device(devices), |wanted| {
        wanted.paths_present.insert("/srv/c".to_owned());
    });
    let logs = "/var/log/libvirt/qemu";
    for (path, times) in
        [(format!("{logs}/copy-tty.log"), 2), (format!("{logs}/2-copy-tty.log"), 1), ("/srv/c/copy.log".to_owned(), 1)]
    {
        assert_eq!(xml.matches(&format!("'{path}'")).count(), times, "{path}: {xml}");
    }
    assert!(
        notes.contains(&format!("what the <serial> writes goes to {logs}/2-copy-tty.log: the target has no /srv/b"))
    );
    assert!(notes.contains(&"what the <serial> writes goes to /srv/c/copy.log".to_owned()), "{notes:?}");
}
