//! Somebody writes to the source past everybody who looks at sizes and times: the next sync finds it, and the replica becomes its source.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use crate::common::MIB;
use crate::standby::{NAME, Standby};
use crate::tricks::{Mapping, PLACE, assert_found, assert_sealed, back_up, byte, changed, hidden, image, write_byte};
use kvm_clone_core::event::{Event, Phase};
use kvm_clone_core::plan::SyncRequest;
use kvm_clone_engine::{CloneSettings, Events, Way};
use kvm_clone_lab::{DiskSpec, Fill, Host, MachineSpec};
use tokio_util::sync::CancellationToken;

/// The image that the first disk stands on.
const BELOW: &str = "/var/lib/libvirt/images/below.qcow2";

/// A machine whose first disk stands on another image, and whose second one is a raw file.
async fn standby(test: &str) -> Option<Standby> {
    let disk = DiskSpec::qcow2("vda", 8 * MIB).fill(Fill::Random { seed: 1, bytes: MIB });
    let raw = DiskSpec::raw("vdb", 8 * MIB).fill(Fill::Random { seed: 2, bytes: 2 * MIB });
    let standby = Standby::unreplicated(test, MachineSpec::named("web1").disk(disk).disk(raw))?;
    let top = image(&standby.alpha, "web1", "vda");
    let stack = format!("mv {top} {BELOW}; qemu-img create -q -f qcow2 -b {BELOW} -F qcow2 {top}");
    standby.alpha.shell(&stack).unwrap();
    standby.write("vda", &["write -P 3 2M 64k"]);
    standby.clone().await;
    Some(standby)
}

fn through_mapping(host: &Host, path: &str, value: u8, flush: bool) {
    let mut mapping = Mapping::of(host, path);
    mapping.set(value);
    if flush {
        mapping.flush();
    }
}

fn through_loop_device(host: &Host, path: &str) {
    let device = host.loop_device("trick", path).unwrap();
    let write =
        format!("head -c 4096 /dev/zero | tr '\\0' '\\11' | dd of={} bs=4096 seek=1280 conv=fsync", device.path());
    host.shell(&write).unwrap();
    device.end().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_past_every_tool_is_found() {
    let Some(standby) = standby("what_is_written_past_every_tool_is_found").await else { return };
    let alpha = &standby.alpha;
    let (raw, top) = (image(alpha, "web1", "vdb"), image(alpha, "web1", "vda"));
    let of_the_top = changed(alpha, &top);
    let write_below = || drop(alpha.exec(&["qemu-io", "-f", "qcow2", "-c", "write -P 4 0 64k", BELOW]).unwrap());
    let tricks: [(&str, &str, &dyn Fn()); 5] = [
        ("a write", &raw, &|| write_byte(alpha, &raw, 1)),
        ("a write through a mapping", &raw, &|| through_mapping(alpha, &raw, 2, false)),
        ("a write through a mapping that is flushed", &raw, &|| through_mapping(alpha, &raw, 3, true)),
        ("a write through a loop device", &raw, &|| through_loop_device(alpha, &raw)),
        ("a write to the image below", BELOW, &write_below),
    ];
    for (about, path, change) in tricks {
        assert_sealed(&standby, about).await;
        hidden(alpha, path, change);
        assert_found(&standby, about).await;
    }
    assert_eq!(changed(alpha, &top), of_the_top, "the image on top is what it was at its clone");
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_put_back_with_its_times_is_found() {
    let Some(standby) = standby("a_backup_that_is_put_back_with_its_times_is_found").await else { return };
    let alpha = &standby.alpha;
    let raw = image(alpha, "web1", "vdb");
    let backup = back_up(alpha, &raw);
    hidden(alpha, &raw, || write_byte(alpha, &raw, 7));
    assert_found(&standby, "a write").await;
    for (about, put_back) in [
        ("a backup that is copied over the image", "cp -p $backup $image"),
        (
            "an image that is written anew",
            "printf z | dd of=$image bs=1 seek=100 conv=notrunc; touch -r $backup $image",
        ),
        ("a backup that takes the image's place", "mv $image $image.old; mv $backup $image"),
        ("the image that comes back", "mv $image $backup; mv $image.old $image"),
    ] {
        assert_sealed(&standby, about).await;
        let script = format!("image={raw}; backup={backup}; {put_back}");
        hidden(alpha, &raw, || drop(alpha.shell(&script).unwrap()));
        assert_found(&standby, about).await;
    }
    standby.assert_synced();
}

/// Who has the image open or mapped leaves no trace at all: the page is writable, and its times were changed when it became so.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_written_to_unseen_is_read_each_time() {
    let Some(standby) = standby("what_may_be_written_to_unseen_is_read_each_time").await else { return };
    let alpha = &standby.alpha;
    let raw = image(alpha, "web1", "vdb");
    let mut mapping = Mapping::of(alpha, &raw);
    for value in 1..=4 {
        hidden(alpha, &raw, || mapping.set(value));
        assert_found(&standby, "a mapping that stays").await;
    }
    drop(mapping);
    let device = alpha.loop_device("trick", &raw).unwrap();
    for value in 5..=6 {
        let write = format!("printf '\\{value}' | dd of={} bs=1 seek={PLACE} conv=fsync", device.path());
        hidden(alpha, &raw, || drop(alpha.shell(&write).unwrap()));
        assert_found(&standby, "a loop device that stays").await;
    }
    device.end().unwrap();
    // Nobody can write to it any more: from the next seal on it is not read.
    standby.sync().await.unwrap();
    assert_sealed(&standby, "the end").await;
    standby.assert_synced();
}

/// Sealing waits until what it sees is older than a tick of the clock. These writes come right before it, meanwhile, and right after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_around_the_moment_of_the_seal_is_found() {
    let Some(standby) = standby("a_write_around_the_moment_of_the_seal_is_found").await else { return };
    let alpha = &standby.alpha;
    let (raw, copy) = (image(alpha, "web1", "vdb"), image(&standby.beta, NAME, "vdb"));
    // So many microseconds after the cleaning began, of which sealing is a part; or after everything.
    let delays = [0, 1, 2, 4, 6, 8, 10, 12, 15, 20, 25, 30, 40].map(|millis| Some(millis * 1000));
    for (value, delay) in (1..).zip(delays.into_iter().chain([None; 2])) {
        let before = byte(alpha, &raw);
        sync_and_write(&standby, &raw, value, delay).await;
        assert_eq!(byte(&standby.beta, &copy), before, "{delay:?}: what was there before the sync");
        assert_eq!(byte(alpha, &raw), value);
    }
    assert_found(&standby, "the last write").await;
    standby.assert_synced();
}

/// One sync, and one hidden write to the source.
async fn sync_and_write(standby: &Standby, path: &str, value: u8, micros: Option<u64>) {
    let (host, path, (tell, told)) = (standby.alpha.clone(), path.to_owned(), mpsc::channel());
    let write = move || hidden(&host, &path, || write_byte(&host, &path, value));
    let writing = std::thread::spawn(move || {
        if let Ok(micros) = told.recv() {
            std::thread::sleep(Duration::from_micros(micros));
        }
        write();
    });
    let events: Events = Arc::new(move |event| {
        if let (Event::Phase { phase: Phase::Clean }, Some(micros)) = (event, micros) {
            tell.send(micros).unwrap();
        }
    });
    let prepared = standby.prepare(&SyncRequest::default()).await.unwrap();
    // The last handle of the events goes with the operation: then a write that waits for nothing more is done.
    prepared.execute(&CloneSettings::default(), events, CancellationToken::new()).await.unwrap();
    writing.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_of_either_host_ends_what_was_known() {
    let Some(standby) = standby("a_boot_of_either_host_ends_what_was_known").await else { return };
    let (alpha, beta) = (&standby.alpha, &standby.beta);
    let raw = image(alpha, "web1", "vdb");
    let boot = |host: &Host| host.shell("cat /proc/sys/kernel/random/boot_id").unwrap();
    for host in [alpha, beta] {
        assert_sealed(&standby, host.name()).await;
        let (looked, booted) = (changed(alpha, &raw), boot(host));
        host.reboot().unwrap();
        assert_ne!(boot(host), booted);
        assert_eq!(changed(alpha, &raw), looked, "nothing else has changed");
        let result = standby.sync().await.unwrap();
        assert_eq!((result.way, result.bytes_written), (Way::Compare, 0), "{}", result.why);
        assert!(result.bytes_read > 0 && (result.bytes_read_dest > 0) == (host.name() == "beta"), "{result:?}");
        standby.assert_synced();
    }
    hidden(alpha, &raw, || write_byte(alpha, &raw, 9));
    alpha.reboot().unwrap();
    assert_found(&standby, "a write before a boot").await;
    standby.assert_synced();
}
