//! Disks of the source whose images cannot be looked at.

use super::*;
use crate::error::Code;

fn unseen(error: Error) -> ClonePlan {
    world().with(|w| {
        w.source.images.clear();
        w.source.unseen.insert("vda".parse().unwrap(), error);
        w.add_device("<interface type='network'><source network='nonet'/></interface>");
    })
}

#[test]
fn an_image_that_is_missing_is_told_beside_all_else() {
    let missing = Error::conflict("the image /pool/base.qcow2 is missing").with("path", "/pool/base.qcow2");
    let plan = unseen(unseen_image(missing).unwrap());
    let refusal = plan.refusal().unwrap();
    assert_eq!(refusal.code.number(), 1005);
    assert_eq!(refusal.message, "disk vda cannot be read: the image /pool/base.qcow2 is missing");
    let evidence = ["disk", "path", "host"].map(|name| refusal.context[name].as_str());
    assert_eq!(evidence, ["vda", "/pool/base.qcow2", "alpha"]);
    assert_eq!(refusal.help, ["Restore /pool/base.qcow2 on alpha; or leave the disk out with --exclude vda"]);
    let failed: Vec<_> =
        plan.checks.iter().filter(|check| check.outcome == Outcome::Fail).map(|check| check.name).collect();
    assert_eq!(failed, ["images", "networks"]);
}

#[test]
fn an_image_that_cannot_be_read_keeps_its_reason() {
    let denied = Error::transfer("opening /pool/my disk: Permission denied").with("path", "/pool/my disk");
    let refusal = unseen(unseen_image(denied).unwrap()).refusal().unwrap();
    assert_eq!(refusal.code.number(), 1006);
    assert!(refusal.help[0].contains("ls -l '/pool/my disk' on alpha"), "{:?}", refusal.help);
    let none = Error::verification("/pool/x should be a qcow2 image and is none").help("Correct the driver type");
    let refusal = unseen(unseen_image(none).unwrap()).refusal().unwrap();
    assert_eq!(refusal.code.number(), 1012);
    assert_eq!(refusal.help, ["Correct the driver type; or leave the disk out with --exclude vda"]);
}

#[test]
fn a_host_that_is_lost_is_no_reason_of_a_disks() {
    for error in [Error::connection("gone"), Error::timeout("late"), Error::internal("defect")] {
        assert_eq!(unseen_image(error.clone()), Err(error));
    }
}

#[test]
fn a_volume_that_is_not_found_says_what_its_pool_lacks() {
    let xml = world().source.xml.replace("file='/pool/small.qcow2'", "pool='my pool' volume='v1'");
    let domain = Domain::parse(&xml.replace("<disk type='file'", "<disk type='volume'")).unwrap();
    let disk = &domain.disks()[0];
    let told = |pools: &[Pool]| unseen_volume(disk, pools, Error::libvirt("libvirt on alpha: not found")).unwrap();
    let ours = pool("my pool", "/srv");
    let none = told(&[pool("default", "/pool")]);
    assert_eq!((none.code, none.message.as_str()), (Code::InsufficientResources, "its host has no pool \"my pool\""));
    let stopped = told(&[Pool { active: false, ..ours.clone() }]);
    assert_eq!(stopped.help, ["virsh pool-start 'my pool'"]);
    assert!(told(&[ours]).message.contains("does not find its volume \"v1\""));
    let refusal = unseen(told(&[])).refusal().unwrap();
    assert!(refusal.message.starts_with("disk vda cannot be read: its host has no pool"), "{refusal}");
    let lost = Error::connection("gone");
    assert_eq!(unseen_volume(disk, &[], lost.clone()), Err(lost));
}

#[test]
fn a_disk_of_a_kind_that_is_refused_is_told_once() {
    for kind in ["network", "nvme", "dir", "vhostuser"] {
        let disk = format!(
            "<disk type='{kind}' device='disk'><source name='a' dir='/a' path='/a'/><target dev='vdd'/></disk>"
        );
        let plan = world().with(|w| w.add_device(&disk));
        let failed = plan.checks.iter().filter(|check| check.outcome == Outcome::Fail).count();
        assert_eq!(failed, 1, "{kind}: {:?}", plan.checks);
        assert!(plan.describe().contains("1 disk(s) can be read"), "{}", plan.describe());
    }
}

#[test]
fn an_image_that_cannot_be_read_says_what_to_do_about_it() {
    type Change = fn(&mut World);
    let cases: [(Change, &str); 4] = [
        (|w| w.image().regular_file = false, "<disk type='block'>"),
        (|w| w.image().unsupported = vec!["LUKS encryption".to_owned()], "decrypt it first"),
        (|w| w.image().unsupported = vec!["a header that is marked as corrupt".to_owned()], "check -r all"),
        (|w| w.image().unsupported = vec!["several files for one image".to_owned()], "qemu-img convert"),
    ];
    for (change, words) in cases {
        let help = world().with(change).refusal().unwrap().help;
        assert!(help[0].contains(words) && help[0].contains("--exclude vda"), "{help:?}");
    }
}
