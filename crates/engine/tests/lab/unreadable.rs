//! A sector cannot be read, at the source or at the target: the error names the disk and the place, and nothing has changed.

use crate::common::{MIB, assert_nothing_left, number};
use crate::standby::{NAME, Standby, discarding};
use crate::tricks::image;
use kvm_clone_core::Error;
use kvm_clone_core::plan::{CloneRequest, SyncRequest};
use kvm_clone_engine::CloneSettings;
use kvm_clone_lab::{DiskSpec, Fill, Host, LoopDevice, MachineSpec, ServedFile};

/// Where the raw disks, which are full of data, cannot be read; not where a request begins.
const BAD: u64 = 5 * MIB + 7 * 4096;

fn machine() -> MachineSpec {
    let fill = |seed| Fill::Random { seed, bytes: 8 * MIB };
    MachineSpec::named("web1")
        .disk(DiskSpec::qcow2("vda", 16 * MIB).fill(fill(1)))
        .disk(DiskSpec::raw("vdb", 8 * MIB).fill(fill(2)))
}

/// It names the disk, the file and a place: that of the request that the bad sector is in.
fn assert_named(error: &Error, disk: &str, path: &str) {
    assert_eq!(number(error), 1006, "{error:?}");
    let said = |key: &str| error.context.get(key).map(String::as_str);
    assert_eq!((said("disk"), said("path")), (Some(disk), Some(path)), "{error:?}");
    let offset: u64 = said("offset").unwrap().parse().unwrap();
    assert!((BAD - MIB..=BAD).contains(&offset) || disk == "vda", "{error:?}");
    assert!(format!("{error:?}").contains("the storage failed"), "{error:?}");
}

/// A clone fails, and nothing of it is left.
async fn clone_fails(standby: &Standby, disk: &str, path: &str) {
    let request = CloneRequest { new_name: Some("another".parse().unwrap()), ..CloneRequest::default() };
    let client = standby.client().await;
    let cloned = crate::common::clone_with(&client, "alpha", "beta", "web1", request, &CloneSettings::default()).await;
    drop(client);
    assert_named(&cloned.unwrap_err(), disk, path);
    assert_eq!(crate::common::machines(&standby.beta), [NAME]);
    assert_clean(standby).await;
}

/// A sync fails, and the replica is as it was.
async fn sync_fails(standby: &Standby, settings: &CloneSettings, disk: &str, path: &str) {
    let error = standby.sync_with(&SyncRequest::default(), settings).await.unwrap_err();
    assert_named(&error, disk, path);
    assert_clean(standby).await;
}

async fn assert_clean(standby: &Standby) {
    standby.recover("what failed was undone").await;
    for host in [&standby.alpha, &standby.beta] {
        assert_nothing_left(host);
        assert_eq!(crate::oracle::held_locks(host), "");
    }
    let files = standby.beta.shell("ls -A /var/lib/libvirt/images").unwrap();
    assert!(!files.contains("overlay") && !files.contains("another"), "{files}");
}

fn spoil(host: &Host, path: &str, offset: u64) -> ServedFile {
    host.serve_unreadable(path, offset).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_an_unreadable_sector_is_named_and_nothing_is_changed() {
    let Some(standby) = Standby::of("a_source_with_an_unreadable_sector", machine()).await else { return };
    let alpha = &standby.alpha;
    let old = standby.replica_contents();
    standby.write("vda", &["write -P 7 1M 64k"]);
    for (disk, offset) in [("vdb", BAD), ("vda", 4 * MIB)] {
        let path = image(alpha, "web1", disk);
        let served = spoil(alpha, &path, offset);
        clone_fails(&standby, disk, &path).await;
        sync_fails(&standby, &CloneSettings::default(), disk, &path).await;
        served.end().unwrap();
    }
    assert_eq!(standby.replica_contents(), old);
    standby.sync().await.unwrap();
    standby.assert_synced();
}

/// A block device is read past the page cache, in another way than files are.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_device_with_an_unreadable_sector_is_named() {
    let Some(standby) = Standby::of("a_block_device_with_an_unreadable_sector", machine()).await else { return };
    let alpha = &standby.alpha;
    let old = standby.replica_contents();
    let path = image(alpha, "web1", "vdb");
    let served = spoil(alpha, &path, BAD);
    let device: LoopDevice = alpha.loop_device("worn", &path).unwrap();
    let xml = standby.source.xml().unwrap();
    let on_device = xml
        .replace(&format!("<source file='{path}'/>"), &format!("<source dev='{}'/>", device.path()))
        .split("<disk ")
        .map(|part| {
            if part.contains("<source dev=") {
                part.replacen("type='file'", "type='block'", 1)
            } else {
                part.to_owned()
            }
        })
        .collect::<Vec<_>>()
        .join("<disk ");
    std::fs::write(alpha.path("/root/on-device.xml"), on_device).unwrap();
    alpha.exec(&["virsh", "-q", "define", "/root/on-device.xml"]).unwrap();
    clone_fails(&standby, "vdb", device.path()).await;
    sync_fails(&standby, &CloneSettings::default(), "vdb", device.path()).await;
    assert_eq!(standby.replica_contents(), old);
    device.end().unwrap();
    served.end().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_an_unreadable_sector_is_named_and_not_changed() {
    let Some(standby) = Standby::of("a_replica_with_an_unreadable_sector", machine()).await else { return };
    let beta = &standby.beta;
    let old = standby.replica_contents();
    standby.write("vda", &["write -P 7 1M 64k"]);
    standby.write("vdb", &["write -P 8 1M 64k"]);
    let path = image(beta, NAME, "vdb");
    let served = spoil(beta, &path, BAD);
    // With its digests, which are compared with what it holds; and where there are none any more.
    sync_fails(&standby, &CloneSettings::default(), "vdb", &path).await;
    beta.shell("mkdir /srv/kept; mv /var/lib/kvm-clone/manifests/*-vdb /srv/kept").unwrap();
    sync_fails(&standby, &discarding(), "vdb", &path).await;
    served.end().unwrap();
    assert_eq!(standby.replica_contents(), old);
    beta.shell("mv /srv/kept/* /var/lib/kvm-clone/manifests").unwrap();
    standby.sync().await.unwrap();
    standby.assert_synced();
}
