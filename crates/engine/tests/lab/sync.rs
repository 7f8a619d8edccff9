//! Replicas are brought to their source's present point: by what differs, all of it or nothing.

use crate::common::{MIB, number};
use crate::oracle::{PATIENCE, assert_boots};
use crate::standby::{NAME, Standby, discarding, full, images, write};
use kvm_clone_core::plan::{Consistency, SyncRequest, Update};
use kvm_clone_engine::{CloneSettings, Way};
use kvm_clone_lab::{DiskSpec, Fill, MachineSpec};

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_sent_and_the_replica_becomes_its_source() {
    let Some(standby) = Standby::new("what_differs_is_sent").await else { return };
    let (uuid, before) = (standby.beta.machine(NAME).unwrap().uuid().to_owned(), images(&standby.beta, NAME));
    standby.write("vda", &["write -P 7 1M 64k", "write -P 8 20M 128k", "write -z 2M 1M", "discard 4M 64k"]);
    standby.write("vdb", &["write -P 9 7M 1M"]);
    let result = standby.sync().await.unwrap();
    standby.assert_synced();
    assert_eq!((result.way, result.consistency), (Way::Compare, Consistency::Stopped));
    assert!(result.bytes_written <= 2 * MIB, "{}", result.bytes_written);
    assert_eq!(standby.beta.machine(NAME).unwrap().uuid(), uuid);
    assert_eq!(images(&standby.beta, NAME), before, "the images have their names again");
    assert_boots(&standby.beta.machine(NAME).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_of_what_did_not_change_writes_nothing() {
    let Some(standby) = Standby::new("a_sync_of_what_did_not_change").await else { return };
    for _ in 0..2 {
        let result = standby.sync().await.unwrap();
        assert_eq!((result.way, result.bytes_read, result.bytes_written), (Way::Untouched, 0, 0), "{}", result.why);
        standby.assert_synced();
    }
    // Not everything is believed: what was touched is read, and so is all of it on request.
    standby.alpha.shell("touch /var/lib/libvirt/images/web1-*").unwrap();
    let result = standby.sync().await.unwrap();
    assert_eq!((result.way, result.bytes_written, result.bytes_read_dest), (Way::Compare, 0, 0), "{}", result.why);
    assert!(result.bytes_read > 0);
    let paranoid = CloneSettings { paranoid: true, ..CloneSettings::default() };
    let result = standby.sync_with(&SyncRequest::default(), &paranoid).await.unwrap();
    assert!(result.bytes_read > 0 && result.bytes_read_dest > 0 && result.bytes_written == 0, "{result:?}");
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_changed_is_refused_unless_that_is_discarded() {
    let Some(standby) = Standby::new("a_replica_that_was_changed").await else { return };
    standby.write("vda", &["write -P 7 1M 64k"]);
    write(&standby.beta, NAME, "vdb", &["write -P 3 5M 64k"]);
    let before = standby.replica_contents();
    let error = standby.sync().await.unwrap_err();
    assert_eq!(number(&error), 1014, "{error:?}");
    assert!(error.help.iter().any(|help| help.contains("--discard-target-changes")), "{error:?}");
    assert!(error.context.values().any(|value| value.contains("standby-vdb")), "{error:?}");
    assert_eq!(standby.replica_contents(), before);
    standby.sync_with(&SyncRequest::default(), &discarding()).await.unwrap();
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_runs_is_never_written_to() {
    let Some(standby) = Standby::new("a_replica_that_runs").await else { return };
    let replica = standby.beta.machine(NAME).unwrap();
    replica.start().unwrap();
    assert_eq!(number(&standby.sync().await.unwrap_err()), 1014);
    replica.destroy().unwrap();
    standby.sync_with(&SyncRequest::default(), &discarding()).await.unwrap();
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_touch_another_owner_and_a_link_are_no_divergence() {
    let Some(standby) = Standby::new("a_touch_another_owner").await else { return };
    standby.write("vda", &["write -P 7 1M 64k"]);
    let script = "cd /var/lib/libvirt/images; touch standby-vda.qcow2; chown 64055 standby-vdb.img; ln standby-vdb.img /var/lib/libvirt/images/link";
    standby.beta.shell(script).unwrap();
    standby.sync().await.unwrap();
    standby.beta.exec(&["rm", "/var/lib/libvirt/images/link"]).unwrap();
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_come_grow_and_go_with_their_source() {
    let Some(standby) = Standby::new("disks_come_grow_and_go").await else { return };
    let image = |target: &str| images(&standby.alpha, "web1")[target].0.clone();
    standby.alpha.exec(&["qemu-img", "resize", "-f", "qcow2", &image("vda"), "40M"]).unwrap();
    standby.alpha.exec(&["qemu-img", "resize", "-f", "raw", &image("vdb"), "12M"]).unwrap();
    standby.write("vda", &["write -P 5 39M 1M"]);
    standby.write("vdb", &["write -P 6 11M 1M"]);
    standby
        .alpha
        .exec(&["qemu-img", "create", "-q", "-f", "qcow2", "/var/lib/libvirt/images/more.qcow2", "16M"])
        .unwrap();
    let attach =
        ["attach-disk", "web1", "/var/lib/libvirt/images/more.qcow2", "vdc", "--subdriver", "qcow2", "--config"];
    standby.alpha.exec(&[&["virsh", "-q"][..], &attach].concat()).unwrap();
    standby.write("vdc", &["write -P 4 0 1M"]);
    let only = SyncRequest {
        update: Update { candidates: kvm_clone_core::plan::Candidates::OnlyDiffering, ..Update::default() },
        ..SyncRequest::default()
    };
    assert_eq!(number(&standby.sync_with(&only, &CloneSettings::default()).await.unwrap_err()), 1014);
    standby.sync().await.unwrap();
    standby.assert_synced();
    assert_eq!(images(&standby.beta, NAME).len(), 3);
    standby.alpha.exec(&["virsh", "-q", "detach-disk", "web1", "vdc", "--config"]).unwrap();
    let result = standby.sync().await.unwrap();
    assert!(result.warnings.iter().any(|warning| warning.contains("vdc is gone")), "{:?}", result.warnings);
    standby.assert_synced();
    assert_eq!(images(&standby.beta, NAME).len(), 2);
    standby.beta.exec(&["test", "-e", "/var/lib/libvirt/images/standby-vdc.qcow2"]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_of_a_lost_disk_goes_by_word_unless_it_was_changed() {
    let Some(standby) = Standby::new("the_image_of_a_lost_disk_goes").await else { return };
    let image = images(&standby.beta, NAME)["vdb"].0.clone();
    standby.alpha.exec(&["virsh", "-q", "detach-disk", "web1", "vdb", "--config"]).unwrap();
    let remove = SyncRequest { update: Update { remove_lost: true, ..Update::default() }, ..SyncRequest::default() };
    write(&standby.beta, NAME, "vdb", &["write -q -P 9 1M 4k"]);
    let refused = standby.sync_with(&remove, &CloneSettings::default()).await.unwrap_err();
    assert_eq!((number(&refused), refused.context["disk"].as_str()), (1014, "vdb"));
    standby.beta.exec(&["test", "-e", &image]).unwrap();
    assert_eq!(images(&standby.beta, NAME).len(), 2, "the replica is as it was");
    let result = standby.sync_with(&remove, &discarding()).await.unwrap();
    assert!(result.warnings.iter().any(|warning| warning.contains("is removed")), "{:?}", result.warnings);
    standby.assert_synced();
    assert_eq!(images(&standby.beta, NAME).len(), 1);
    standby.beta.exec(&["test", "!", "-e", &image]).unwrap();
    let kept = standby.beta.shell("ls /var/lib/kvm-clone/manifests /var/lib/kvm-clone/seals").unwrap();
    assert!(!kept.contains("vdb"), "{kept}");
}

/// A definition may name an image through a link; the image is the replica's all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_behind_a_linked_directory_keeps_its_images() {
    for remove_lost in [false, true] {
        let machine = MachineSpec::named("web1").disk(DiskSpec::qcow2("vda", 8 * MIB));
        let machine = machine.disk(DiskSpec::raw("vdb", 8 * MIB)).disk(DiskSpec::raw("vdc", 8 * MIB));
        let Some(standby) = Standby::unreplicated("a_replica_behind_a_linked_directory", machine) else { return };
        let link = "mkdir -p /srv /var/lib/libvirt/images; mv /var/lib/libvirt/images /srv/images; ln -s ../../../srv/images /var/lib/libvirt/images";
        standby.beta.shell(link).unwrap();
        standby.clone().await;
        assert_eq!(images(&standby.beta, NAME)["vdc"].0, "/var/lib/libvirt/images/standby-vdc.img");
        standby.alpha.exec(&["virsh", "-q", "detach-disk", "web1", "vdc", "--config"]).unwrap();
        let asked = SyncRequest { update: Update { remove_lost, ..Update::default() }, ..SyncRequest::default() };
        for pattern in 1..3 {
            standby.write("vda", &[&format!("write -q -P {pattern} 1M 4k")]);
            standby.sync_with(&asked, &CloneSettings::default()).await.unwrap();
            standby.assert_synced();
            assert_eq!(standby.beta.path("/srv/images/standby-vdc.img").exists(), !remove_lost);
        }
        standby.sync_with(&full(), &CloneSettings::default()).await.unwrap();
        standby.assert_synced();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_an_odd_size_keeps_it() {
    let machine = MachineSpec::named("web1")
        .disk(DiskSpec::qcow2("vda", 8 * MIB))
        .disk(DiskSpec::raw("vdb", MIB + 7).at("/srv/odd.img").existing());
    let Some(standby) = Standby::unreplicated("a_disk_of_an_odd_size", machine) else { return };
    let fill = |byte: u8| {
        std::fs::create_dir_all(standby.alpha.path("/srv")).unwrap();
        std::fs::write(standby.alpha.path("/srv/odd.img"), vec![byte; (1 << 20) + 7]).unwrap();
    };
    fill(1);
    standby.clone().await;
    fill(2);
    standby.sync().await.unwrap();
    standby.assert_synced();
    assert_eq!(standby.sync().await.unwrap().way, Way::Untouched);
    fill(3);
    let result = standby.sync().await.unwrap();
    assert_eq!(
        (result.way, result.bytes_read_dest),
        (Way::Compare, 0),
        "its digests are believed: {:?}",
        result.warnings
    );
    standby.assert_synced();
    let path = standby.beta.path(&images(&standby.beta, NAME)["vdb"].0);
    assert_eq!(std::fs::metadata(path).unwrap().len(), (1 << 20) + 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_definition_follows_and_what_makes_the_replica_itself_stays() {
    let Some(standby) = Standby::new("the_definition_follows").await else { return };
    standby.beta.exec(&["virsh", "-q", "autostart", NAME]).unwrap();
    let before = standby.beta.machine(NAME).unwrap().xml().unwrap();
    standby.alpha.exec(&["virsh", "-q", "setmaxmem", "web1", "192M", "--config"]).unwrap();
    standby.sync().await.unwrap();
    standby.assert_synced();
    let after = standby.beta.machine(NAME).unwrap().xml().unwrap();
    assert!(after.contains("<memory unit='KiB'>196608</memory>"), "{after}");
    let macs = |xml: &str| xml.lines().filter(|line| line.contains("<mac ")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(macs(&after), macs(&before));
    assert!(standby.beta.shell("ls /etc/libvirt/qemu/autostart").unwrap().contains(NAME));
    let disks_only = SyncRequest { update: Update { disks_only: true, ..Update::default() }, ..SyncRequest::default() };
    standby.alpha.exec(&["virsh", "-q", "setmaxmem", "web1", "224M", "--config"]).unwrap();
    standby.write("vda", &["write -P 7 1M 64k"]);
    standby.sync_with(&disks_only, &CloneSettings::default()).await.unwrap();
    standby.assert_synced();
    assert!(standby.beta.machine(NAME).unwrap().xml().unwrap().contains("<memory unit='KiB'>196608</memory>"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_can_be_copied_whole() {
    let Some(standby) = Standby::new("all_of_it_can_be_copied_whole").await else { return };
    let before = images(&standby.beta, NAME);
    standby.write("vda", &["write -P 7 1M 64k"]);
    let result = standby.sync_with(&full(), &CloneSettings::default()).await.unwrap();
    assert_eq!(result.way, Way::Full);
    standby.assert_synced();
    let after = images(&standby.beta, NAME);
    for (target, (path, _)) in before {
        assert_ne!(after[&target].0, path);
        standby.beta.exec(&["test", "!", "-e", &path]).unwrap();
    }
    standby.write("vdb", &["write -P 7 1M 64k"]);
    standby.sync().await.unwrap();
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_changed_is_not_replaced_unasked_either() {
    let Some(standby) = Standby::new("a_replica_that_was_changed_is_not_replaced").await else { return };
    // A touch ends the seal, and is no change.
    standby.beta.shell("touch /var/lib/libvirt/images/standby-*").unwrap();
    standby.sync_with(&full(), &CloneSettings::default()).await.unwrap();
    write(&standby.beta, NAME, "vda", &["write -P 3 5M 512"]);
    let before = standby.replica_contents();
    let error = standby.sync_with(&full(), &CloneSettings::default()).await.unwrap_err();
    assert_eq!((number(&error), &error.context["disk"][..]), (1014, "vda"), "{error:?}");
    assert!(error.help.iter().any(|help| help.contains("--discard-target-changes")), "{error:?}");
    assert_eq!(standby.replica_contents(), before);
    standby.sync_with(&full(), &discarding()).await.unwrap();
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_replica_is_not_synced() {
    let machine = MachineSpec::named("web1").disk(DiskSpec::qcow2("vda", 8 * MIB));
    let Some(standby) = Standby::unreplicated("what_is_no_replica", machine) else { return };
    let error = standby.sync().await.unwrap_err();
    assert_eq!(number(&error), 1003);
    assert!(error.help.iter().any(|help| help.contains("kvm-clone clone alpha beta web1")), "{error:?}");
    kvm_clone_lab::define_machine(&standby.beta, MachineSpec::named("web1").disk(DiskSpec::qcow2("vda", 8 * MIB)))
        .unwrap();
    assert_eq!(number(&standby.sync().await.unwrap_err()), 1007);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_runs_is_synced_as_of_one_moment() {
    let machine = MachineSpec::named("web1")
        .disk(DiskSpec::qcow2("vda", 12 * MIB))
        .disk(DiskSpec::raw("vdb", 8 * MIB))
        .disk(DiskSpec::qcow2("vdc", 16 * MIB).fill(Fill::Random { seed: 1, bytes: 6 * MIB }))
        .writing();
    let Some(standby) = Standby::unreplicated("a_source_that_runs_is_synced", machine) else { return };
    standby.source.start().unwrap();
    standby.source.wait_for_console("kvm-clone-guest: wrote 20", PATIENCE).unwrap();
    standby.clone().await;
    for _ in 0..2 {
        let result = standby.sync().await.unwrap();
        assert_eq!((result.way, result.consistency), (Way::Compare, Consistency::Crash));
        let xml = standby.beta.machine(NAME).unwrap().xml().unwrap();
        crate::oracle::records::assert_one_point(standby.lab.dir(), &standby.beta, &xml);
        crate::oracle::records::assert_left_alone(&standby.source, &standby.beta, &xml);
    }
    crate::oracle::records::assert_goes_on(&standby.source);
}
