//! Verification, on real hosts: what is as it should be is found to be so, and what is not is named.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{MIB, Seen, number, silent, spec};
use crate::oracle::held_locks;
use crate::standby::{NAME, Standby, images, verification, write};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kvm_clone_core::blocks::compare::Range;
use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::event::{Event, Phase};
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::SyncRequest;
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{
    Against, Boundary, Client, CloneSettings, Method, Moment, Then, VerifiedDisk, VerifyRequest, VerifyResult,
};
use kvm_clone_lab::{DiskSpec, Fill, Host, MachineSpec};

const BLOCK: u64 = 64 << 10;

fn against_source() -> VerifyRequest {
    VerifyRequest { against: Some((spec("alpha"), "web1".parse().unwrap())), ..verification() }
}

async fn verify(standby: &Standby, request: &VerifyRequest) -> Result<VerifyResult> {
    standby.client().await.verify(request, silent()).await
}

fn disk<'a>(result: &'a VerifyResult, target: &str) -> &'a VerifiedDisk {
    result.disks.iter().find(|disk| disk.target.to_string() == target).unwrap()
}

fn ranges(disk: &VerifiedDisk) -> Vec<(u64, u64)> {
    disk.differences.iter().map(|Range { offset, length }| (*offset, *length)).collect()
}

/// Somebody else who holds a machine's lock.
struct Held(Host, Child);

impl Held {
    fn take(host: &Host, uuid: &str) -> Self {
        let lock = format!("/run/kvm-clone/locks/uuid-{uuid}");
        host.shell(&format!("echo a test >{lock}")).unwrap();
        let mut command = host.command("flock");
        let mut child = command
            .args(["--no-fork", &lock, "sh", "-c", "echo held; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "held\n");
        Self(host.clone(), child)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        kvm_clone_lab::fault::kill(&self.0, "sleep 600").unwrap();
        self.1.wait().unwrap();
    }
}

/// What tells of files whether somebody wrote to them, or touched them.
fn times(host: &Host, machine: &str) -> String {
    let paths: Vec<String> = images(host, machine).into_values().map(|(path, _)| path).collect();
    host.shell(&format!("stat -c '%n %s %x %y %z' {}", paths.join(" "))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_replica_is_what_its_digests_say() {
    let Some(standby) = Standby::new("a_fresh_replica_is_what_its_digests_say").await else { return };
    let seen = Seen::default();
    let result = standby.client().await.verify(&verification(), seen.sink()).await.unwrap();
    assert!(result.success && result.difference().is_none(), "{result:?}");
    assert!(matches!(result.against, Against::Digests { .. }));
    assert_eq!((result.disks.len(), result.bytes_compared, result.bytes_differing), (2, 40 * MIB, 0));
    let events = seen.0.lock().unwrap().clone();
    assert!(events.contains(&Event::Phase { phase: Phase::Compare }), "{events:?}");
    for (target, size) in [("vda", 32 * MIB), ("vdb", 8 * MIB)] {
        let target = target.parse().unwrap();
        assert!(events.contains(&Event::Progress { disk: target, bytes_done: size, bytes_total: size }), "{events:?}");
    }
    // Once more after a sync, whose digests are others.
    standby.write("vda", &["write -P 7 1M 64k"]);
    standby.sync().await.unwrap();
    assert!(verify(&standby, &verification()).await.unwrap().success);
    assert!(verify(&standby, &against_source()).await.unwrap().success);
    // Files that were written to after they were read last: whoever reads them as usual changes the time of that (mount(8), `relatime`).
    for (host, machine) in [(&standby.alpha, "web1"), (&standby.beta, NAME)] {
        write(host, machine, "vda", &["write -P 8 2M 64k"]);
        write(host, machine, "vdb", &["write -P 8 2M 64k"]);
    }
    let before = (times(&standby.beta, NAME), times(&standby.alpha, "web1"));
    assert!(verify(&standby, &against_source()).await.unwrap().success);
    assert_eq!((times(&standby.beta, NAME), times(&standby.alpha, "web1")), before, "not even a time stamp is changed");
    for host in [&standby.alpha, &standby.beta] {
        crate::common::assert_nothing_left(host);
        assert_eq!(held_locks(host), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_named_with_its_disk_and_place() {
    let Some(standby) = Standby::new("a_flipped_byte_is_named").await else { return };
    write(&standby.beta, NAME, "vda", &["write -P 9 5243013 1"]);
    // Two neighbours that lie in two groups; one that becomes zero; the last byte.
    write(&standby.beta, NAME, "vdb", &["write -P 9 1048575 2", "write -z 131072 65536", "write -P 9 8388607 1"]);
    let result = verify(&standby, &verification()).await.unwrap();
    assert!(!result.success);
    assert_eq!(ranges(disk(&result, "vda")), [(80 * BLOCK, BLOCK)]);
    assert_eq!(ranges(disk(&result, "vdb")), [(2 * BLOCK, BLOCK), (15 * BLOCK, 2 * BLOCK), (127 * BLOCK, BLOCK)]);
    assert_eq!(result.bytes_differing, 5 * BLOCK);
    let error = result.difference().unwrap();
    assert_eq!((number(&error), error.code.exit_status()), (1012, 65));
    assert_eq!((&*error.context["disk"], error.context["offset"].clone()), ("vda", (80 * BLOCK).to_string()));
    // The other machine says the same, by digests and bit for bit.
    for full in [false, true] {
        let other = verify(&standby, &VerifyRequest { full, ..against_source() }).await.unwrap();
        assert_eq!(other.method, if full { Method::Bytes } else { Method::Digests });
        for target in ["vda", "vdb"] {
            assert_eq!(ranges(disk(&other, target)), ranges(disk(&result, target)), "{full} {target}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_are_compared_disk_by_disk() {
    let Some(standby) = Standby::new("two_machines_are_compared_disk_by_disk").await else { return };
    let sums = VerifyRequest { checksum: Some(Algorithm::Sha256), ..against_source() };
    for request in [sums.clone(), VerifyRequest { full: true, ..sums.clone() }] {
        let result = verify(&standby, &request).await.unwrap();
        assert!(result.success, "{result:?}");
        for disk in &result.disks {
            let (ours, theirs) = (disk.disk.as_ref().unwrap(), disk.against.as_ref().unwrap());
            assert!(ours.checksum.is_some() && ours.checksum == theirs.checksum, "{disk:?}");
        }
        let raw = standby.alpha.exec(&["sha256sum", &images(&standby.alpha, "web1")["vdb"].0]).unwrap();
        let summed = disk(&result, "vdb").disk.as_ref().unwrap().checksum.as_ref().unwrap().value.clone();
        assert!(raw.starts_with(&summed), "{raw} {summed}");
    }
    standby.alpha.exec(&["qemu-img", "resize", "-f", "raw", &images(&standby.alpha, "web1")["vdb"].0, "9M"]).unwrap();
    let create = ["qemu-img", "create", "-q", "-f", "qcow2", "/var/lib/libvirt/images/more.qcow2", "16M"];
    standby.alpha.exec(&create).unwrap();
    let attach =
        ["attach-disk", "web1", "/var/lib/libvirt/images/more.qcow2", "vdc", "--subdriver", "qcow2", "--config"];
    standby.alpha.exec(&[&["virsh", "-q"][..], &attach].concat()).unwrap();
    let result = verify(&standby, &sums).await.unwrap();
    assert!(!result.success && disk(&result, "vda").identical, "{result:?}");
    let grown = disk(&result, "vdb");
    assert_eq!(ranges(grown), [(8 * MIB, MIB)]);
    assert!(grown.notes.iter().any(|note| note.contains("9437184")), "{grown:?}");
    assert!(grown.notes.iter().any(|note| note.contains("checksums differ")), "{grown:?}");
    let more = disk(&result, "vdc");
    assert!(!more.identical && more.disk.is_none() && more.against.is_some(), "{more:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_or_is_in_use_is_not_verified() {
    let Some(standby) = Standby::new("what_runs_or_is_in_use_is_not_verified").await else { return };
    for (machine, asked) in
        [(standby.beta.machine(NAME).unwrap(), verification()), (standby.source.clone(), against_source())]
    {
        machine.start().unwrap();
        let error = verify(&standby, &asked).await.unwrap_err();
        assert_eq!(number(&error), 1014, "{error:?}");
        assert!(error.message.contains("is running"), "{error:?}");
        machine.destroy().unwrap();
        let held = Held::take(machine.host(), machine.uuid());
        let error = verify(&standby, &asked).await.unwrap_err();
        assert_eq!(number(&error), 1011, "{error:?}");
        assert!(error.context["holder"].contains("a test"), "{error:?}");
        drop(held);
    }
    // And what is verified is in use.
    let held = Arc::new(Mutex::new(Vec::new()));
    let (hosts, seen) = ([standby.alpha.clone(), standby.beta.clone()], Arc::clone(&held));
    let events = Arc::new(move |event| {
        if event == (Event::Phase { phase: Phase::Compare }) {
            seen.lock().unwrap().extend(hosts.iter().map(held_locks));
        }
    });
    standby.client().await.verify(&against_source(), events).await.unwrap();
    let held = held.lock().unwrap().clone();
    assert!(held[0].contains(standby.source.uuid()), "{held:?}");
    assert!(held[1].contains(standby.beta.machine(NAME).unwrap().uuid()), "{held:?}");
    assert!(
        verify(&standby, &VerifyRequest { against: Some((spec("beta"), NAME.parse().unwrap())), ..verification() })
            .await
            .is_err_and(|error| number(&error) == 1007)
    );
    assert_eq!(number(&verify(&standby, &VerifyRequest { full: true, ..verification() }).await.unwrap_err()), 1007);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_started_meanwhile_proves_nothing() {
    let Some(standby) = Standby::new("a_machine_that_is_started_meanwhile").await else { return };
    let replica = Arc::new(standby.beta.machine(NAME).unwrap());
    let starting = Arc::clone(&replica);
    // Nothing hinders it.
    let events = Arc::new(move |event| {
        if event == (Event::Phase { phase: Phase::Compare }) {
            starting.start().unwrap();
        }
    });
    let error = standby.client().await.verify(&verification(), events).await.unwrap_err();
    assert_eq!(number(&error), 1014, "{error:?}");
    assert!(error.message.contains("was started"), "{error:?}");
    replica.destroy().unwrap();
    let beta = standby.beta.clone();
    let events = Arc::new(move |event| {
        if event == (Event::Phase { phase: Phase::Finish }) {
            write(&beta, NAME, "vdb", &["write -P 9 0 1"]);
        }
    });
    let error = standby.client().await.verify(&verification(), events).await.unwrap_err();
    assert_eq!((number(&error), &*error.context["disk"]), (1014, "vdb"), "{error:?}");
}

fn assert_unsupported(error: &Error, words: &str) {
    assert_eq!(number(error), 1013, "{error:?}");
    assert!(error.message.contains(words), "{error:?}");
    assert!(error.help.iter().any(|help| help.contains("--against")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_whole_digests_it_says_so_and_what_can_be_done() {
    let Some(standby) = Standby::new("without_whole_digests").await else { return };
    let source = VerifyRequest { host: spec("alpha"), machine: "web1".parse().unwrap(), ..verification() };
    assert_unsupported(&verify(&standby, &source).await.unwrap_err(), "was not copied by kvm-clone");
    standby.beta.exec(&["qemu-img", "resize", "-q", &images(&standby.beta, NAME)["vda"].0, "64M"]).unwrap();
    let error = verify(&standby, &verification()).await.unwrap_err();
    assert_unsupported(
        &error,
        "disk vda of standby on beta cannot be verified: its digests are those of a disk of another size",
    );
    standby.beta.exec(&["qemu-img", "resize", "-q", "--shrink", &images(&standby.beta, NAME)["vda"].0, "32M"]).unwrap();
    assert!(verify(&standby, &verification()).await.unwrap().success);
    let manifest = |target: &str| format!("$(ls /var/lib/kvm-clone/manifests/*-{target})");
    standby.beta.shell(&format!("printf X | dd of={} bs=1 seek=5000 conv=notrunc", manifest("vdb"))).unwrap();
    let error = verify(&standby, &verification()).await.unwrap_err();
    assert_unsupported(&error, "its digests are not those of its root");
    assert_eq!(error.context["disk"], "vdb");
    standby.beta.shell(&format!("truncate -s 6000 {}", manifest("vdb"))).unwrap();
    assert_unsupported(&verify(&standby, &verification()).await.unwrap_err(), "another length");
    standby.beta.shell(&format!("rm {}", manifest("vdb"))).unwrap();
    assert_unsupported(&verify(&standby, &verification()).await.unwrap_err(), "not there any more");
    assert!(verify(&standby, &against_source()).await.unwrap().success);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_image_is_named() {
    let Some(standby) = Standby::new("a_broken_image_is_named").await else { return };
    // Its first table has an entry that names no place where a cluster can begin.
    let (path, _) = images(&standby.beta, NAME)["vda"].clone();
    let bend = format!(
        "l1=$((16#$(dd if={path} bs=1 skip=40 count=8 2>/dev/null | od -An -tx1 | tr -d ' \n'))); \
         printf '\\x80\\x00\\x00\\x00\\x00\\x05\\x02\\x00' | dd of={path} bs=1 seek=$l1 conv=notrunc 2>/dev/null"
    );
    standby.beta.exec(&["bash", "-c", &bend]).unwrap();
    for asked in [verification(), against_source(), VerifyRequest { full: true, ..against_source() }] {
        let error = verify(&standby, &asked).await.unwrap_err();
        assert!([1006, 1012].contains(&number(&error)), "{error:?}");
        assert_eq!((&*error.context["disk"], &*error.context["host"]), ("vda", "beta"), "{error:?}");
        assert_eq!(error.context["path"], path, "{error:?}");
    }
}

/// Of odd sizes, of several formats, through qemu where our own readers do not understand an image.
#[tokio::test(flavor = "multi_thread")]
async fn disks_of_all_kinds_are_verified() {
    let machine = MachineSpec::named("web1")
        .disk(DiskSpec::qcow2("vda", 8 * MIB).at("/srv/zstd.qcow2").existing())
        .disk(DiskSpec::raw("vdb", MIB + 7).at("/srv/odd.img").existing());
    let Some(standby) = Standby::unreplicated("disks_of_all_kinds_are_verified", machine) else { return };
    let odd = |byte: u8| std::fs::write(standby.alpha.path("/srv/odd.img"), vec![byte; (1 << 20) + 7]).unwrap();
    let make = "mkdir -p /srv; cd /srv; head -c 3000000 /dev/urandom >raw; truncate -s 8M raw; \
                qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd raw zstd.qcow2";
    standby.alpha.shell(make).unwrap();
    odd(1);
    standby.clone().await;
    for byte in [1, 2] {
        odd(byte);
        standby.sync().await.unwrap();
        for asked in [verification(), against_source(), VerifyRequest { full: true, ..against_source() }] {
            let result = verify(&standby, &asked).await.unwrap();
            assert!(result.success, "{result:?}");
        }
    }
    // The last byte of a block that is cut short.
    write(&standby.beta, NAME, "vdb", &["write -P 9 1048582 1"]);
    for asked in [verification(), against_source()] {
        assert_eq!(ranges(disk(&verify(&standby, &asked).await.unwrap(), "vdb")), [(MIB, 7)]);
    }
}

/// Bytes that went through a host's network device, in both directions.
fn wire(host: &Host) -> u64 {
    let table = host.exec(&["cat", "/proc/net/dev"]).unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
    let fields: Vec<u64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
    fields[0] + fields[8]
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_disks_cost_next_to_nothing_on_the_wire() {
    const GIB: u64 = 1 << 30;
    let machine = MachineSpec::named("web1").disk(DiskSpec::raw("vda", GIB).fill(Fill::Random { seed: 4, bytes: GIB }));
    let Some(standby) = Standby::unreplicated("equal_disks_cost_next_to_nothing", machine.clone()) else { return };
    let twin = kvm_clone_lab::define_machine(&standby.beta, machine).unwrap();
    assert_eq!(twin.name(), "web1");
    let asked = VerifyRequest { machine: "web1".parse().unwrap(), ..against_source() };
    let client = standby.client().await;
    // The first one brings the agents.
    warm(&client, &asked).await;
    let before = wire(&standby.alpha) + wire(&standby.beta);
    let result = client.verify(&asked, silent()).await.unwrap();
    let went = wire(&standby.alpha) + wire(&standby.beta) - before;
    assert!(result.success, "{result:?}");
    assert_eq!(result.bytes_compared, GIB);
    // All of it, with the connections and what libvirt tells: 0.03 %.
    println!("{went} bytes on the wire for {GIB} bytes on each side");
    assert!(went <= GIB * 3 / 10_000, "{went} bytes");
}

async fn warm(client: &Client, asked: &VerifyRequest) {
    client.list(&asked.host).await.unwrap();
    client.list(&asked.against.as_ref().unwrap().0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_is_given_up() {
    let machine =
        MachineSpec::named("web1").disk(DiskSpec::raw("vda", 16 * MIB).fill(Fill::Random { seed: 1, bytes: 16 * MIB }));
    let Some(standby) = Standby::of("a_disk_that_hangs_is_given_up", machine).await else { return };
    let served = Arc::new(standby.beta.serve_file(&images(&standby.beta, NAME)["vda"].0, 0).unwrap());
    let mut options = crate::common::options(&standby.lab);
    options.stall_timeout = Duration::from_secs(2);
    let client = Client::new(options).await.unwrap();
    let hanging = Arc::clone(&served);
    let events = Arc::new(move |event| {
        if event == (Event::Phase { phase: Phase::Compare }) {
            hanging.hang().unwrap();
        }
    });
    let error = client.verify(&verification(), events).await.unwrap_err();
    assert_eq!(number(&error), 1010, "{error:?}");
    assert_eq!(error.context["host"], "beta", "{error:?}");
    served.go_on().unwrap();
    drop(client);
    crate::common::assert_nothing_left(&standby.beta);
    assert_eq!(held_locks(&standby.beta), "");
    served.end().unwrap();
    assert!(verify(&standby, &verification()).await.unwrap().success);
}

/// A sync that ends with its commit: the overlays are not merged.
#[derive(Debug)]
struct Unmerged;

impl Boundary for Unmerged {
    fn pass(&self, step: Step, _: Moment) -> BoxFuture<'_, Result<Then>> {
        let outcome = if step == Step::Flatten { Err(Error::internal("the test ends it here")) } else { Ok(Then::Go) };
        async { outcome }.boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_overlays_wait_to_be_merged_is_verified_as_its_definition_says() {
    let Some(standby) = Standby::new("a_replica_whose_overlays_wait").await else { return };
    standby.write("vda", &["write -P 7 1M 64k"]);
    standby.write("vdb", &["write -P 7 3M 128k"]);
    let settings = CloneSettings { boundary: Arc::new(Unmerged), ..CloneSettings::default() };
    standby.sync_with(&SyncRequest::default(), &settings).await.unwrap();
    assert!(images(&standby.beta, NAME)["vda"].0.ends_with(".overlay"), "{:?}", images(&standby.beta, NAME));
    for asked in [verification(), against_source()] {
        let result = verify(&standby, &asked).await.unwrap();
        assert!(result.success, "{result:?}");
    }
    write(&standby.beta, NAME, "vdb", &["write -P 9 5M 1"]);
    assert_eq!(ranges(disk(&verify(&standby, &verification()).await.unwrap(), "vdb")), [(5 * MIB, BLOCK)]);
}
