//! Facts from libvirt's XML.

#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn a_pool_is_read() {
    let xml = "<pool type='dir'><name>default</name><uuid>u</uuid><capacity unit='bytes'>100</capacity>\
               <allocation unit='bytes'>40</allocation><available unit='bytes'>60</available>\
               <source/><target><path>/var/lib/libvirt/images</path></target></pool>";
    let pool = Pool::from_xml(xml, true).unwrap();
    assert_eq!((pool.capacity, pool.available, pool.path.as_deref()), (100, 60, Some("/var/lib/libvirt/images")));
    assert!(pool.holds_files());
    assert!(!Pool { kind: "logical".to_owned(), ..pool }.holds_files());
    for bad in ["<domain/>", "<pool type='dir'/>", "<!DOCTYPE a><pool/>"] {
        assert_eq!(Pool::from_xml(bad, true).unwrap_err().code.number(), 1009, "{bad}");
    }
}

#[test]
fn capabilities_are_read() {
    let xml = "<capabilities><host><cpu><arch>x86_64</arch></cpu></host>
      <guest><os_type>hvm</os_type><arch name='x86_64'><wordsize>64</wordsize>
        <emulator>/usr/bin/qemu-system-x86_64</emulator>
        <machine maxCpus='255'>pc-i440fx-7.2</machine><machine canonical='pc-q35-7.2' maxCpus='288'>q35</machine>
        <domain type='qemu'/>
        <domain type='kvm'><emulator>/usr/bin/kvm</emulator><machine>only</machine></domain></arch></guest>
      <guest><os_type>exe</os_type><arch name='x86_64'><emulator>/lxc</emulator><domain type='lxc'/></arch></guest>
      </capabilities>";
    let all = DomainCapabilities::all_from_xml(xml).unwrap();
    let shown: Vec<_> =
        all.iter().map(|one| (one.virt_type.as_str(), one.emulator.as_str(), one.machines.len())).collect();
    assert_eq!(shown, [("qemu", "/usr/bin/qemu-system-x86_64", 3), ("kvm", "/usr/bin/kvm", 1)]);
    assert!(all[0].machines.contains(&"pc-q35-7.2".to_owned()));
    assert_eq!(DomainCapabilities::all_from_xml("<domain/>").unwrap_err().code.number(), 1009);
}

#[test]
fn a_machine_is_listed_with_the_promised_names() {
    let xml = include_str!("../domain/fixtures/web.xml");
    let machine = Machine::from_xml("alpha", MachineState::Running, xml).unwrap();
    let json = serde_json::to_value(&machine).unwrap();
    assert_eq!(json["state"], "running");
    assert_eq!(json["memory"], 2048);
    assert_eq!(json["disks"][2]["pool"], "fast");
    assert_eq!(json["disks"][0]["target"], "vda");
    assert_eq!(json["networks"][0]["mac_address"], "52:54:00:01:02:03");
    assert_eq!(json["networks"][0]["interface"], "webnet0");
    assert!(json["replica_of"].is_null());
    assert_eq!(serde_json::from_value::<Machine>(json).unwrap(), machine);
}

#[test]
fn a_file_of_shared_storage_is_known_also_where_it_grows() {
    let seen = |device, inode, length, born| FileId { device, inode, length, born };
    let here = seen(1, 100, 10, Some(7));
    // Another device number, another length at a later look; and a host that does not know when it was made.
    for there in [seen(2, 100, 10, Some(7)), seen(2, 100, 99, Some(7)), seen(2, 100, 10, None), seen(2, 100, 99, None)]
    {
        assert!(here.is_shared_with(&there) && there.is_shared_with(&here), "{there:?}");
    }
    assert!(seen(1, 100, 10, None).is_shared_with(&seen(2, 100, 99, None)));
    for there in [seen(1, 101, 10, Some(7)), seen(1, 100, 10, Some(8)), seen(2, 101, 10, None)] {
        assert!(!here.is_shared_with(&there), "{there:?}");
    }
}
