//! Somebody writes to the replica past everybody who looks at sizes and times, or meddles with what is known of it: it is refused or read,
//! and never taken for what it is not.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::common::{MIB, number};
use crate::oracle::strike::struck_while;
use crate::standby::{Contents, NAME, Standby, discarding};
use crate::tricks::{Mapping, PLACE, assert_sealed, back_up, hidden, image, write_byte};
use kvm_clone_core::Error;
use kvm_clone_core::blocks::Header;
use kvm_clone_core::journal::Step;
use kvm_clone_core::plan::SyncRequest;
use kvm_clone_engine::{Moment, Then, Way};
use kvm_clone_lab::{DiskSpec, Fill, Host, MachineSpec, define_machine};
use uuid::Uuid;

const MANIFESTS: &str = "/var/lib/kvm-clone/manifests";
const SEALS: &str = "/var/lib/kvm-clone/seals";

fn machine(name: &str, seed: u64) -> MachineSpec {
    let fill = |seed| Fill::Random { seed, bytes: MIB };
    MachineSpec::named(name)
        .disk(DiskSpec::qcow2("vda", 8 * MIB).fill(fill(seed)))
        .disk(DiskSpec::raw("vdb", 8 * MIB).fill(fill(seed + 1)))
}

/// The sync is refused, and the replica is as it was.
async fn refused(standby: &Standby, about: &str) -> Error {
    let before = standby.replica_contents();
    let error = standby.sync().await.unwrap_err();
    assert_eq!(number(&error), 1014, "{about}: {error:?}");
    assert!(error.help.iter().any(|help| help.contains("--discard-target-changes")), "{about}: {error:?}");
    assert_eq!(standby.replica_contents(), before, "{about}");
    error
}

/// Somebody's write to the second disk is found, named, and overwritten only by word.
async fn divergence_is_found(standby: &Standby, about: &str) {
    assert_ne!(standby.replica_contents(), standby.source_contents(), "{about}: there is nothing to be found");
    let error = refused(standby, about).await;
    assert_eq!(error.context.get("disk").map(String::as_str), Some("vdb"), "{about}: {error:?}");
    standby.sync_with(&SyncRequest::default(), &discarding()).await.unwrap();
    assert_eq!(standby.replica_contents(), standby.source_contents(), "{about}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_a_replica_past_every_tool_is_found() {
    let Some(standby) = Standby::of("what_is_written_to_a_replica_past_every_tool", machine("web1", 1)).await else {
        return;
    };
    let beta = &standby.beta;
    let raw = image(beta, NAME, "vdb");
    let backup = back_up(beta, &raw);
    let put_back = |how: &str| drop(beta.shell(&format!("image={raw}; backup={backup}; {how}")).unwrap());
    let spoil = "printf z | dd of=$backup bs=1 seek=77 conv=notrunc; touch -r $image $backup";
    let tricks: [(&str, &dyn Fn()); 4] = [
        ("a write through a mapping", &|| Mapping::of(beta, &raw).set(2)),
        ("a write through a mapping that is flushed", &|| {
            let mut mapping = Mapping::of(beta, &raw);
            mapping.set(3);
            mapping.flush();
        }),
        ("a backup that is copied over the image", &|| put_back(&format!("{spoil}; cp -p $backup $image"))),
        ("a backup that takes the image's place", &|| put_back(&format!("{spoil}; mv $backup $image"))),
    ];
    for (about, change) in tricks {
        assert_sealed(&standby, about).await;
        hidden(beta, &raw, change);
        divergence_is_found(&standby, about).await;
    }
    // A backup of just this is no change, whatever it looks like.
    assert_sealed(&standby, "a backup").await;
    back_up(beta, &raw);
    put_back("mv $backup $image");
    let result = standby.sync().await.unwrap();
    assert_eq!((result.way, result.bytes_written, result.bytes_read), (Way::Compare, 0, result.bytes_read_dest));
    standby.assert_synced();
}

/// What is known of the replica's images was looked at before, and is noted at the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_to_a_replica_at_the_end_of_its_sync_is_found() {
    let Some(standby) = Standby::of("a_write_to_a_replica_at_the_end", machine("web1", 1)).await else { return };
    let raw = image(&standby.beta, NAME, "vdb");
    for (value, at, writes) in [
        (1, (Step::Define, Moment::Acted), true),
        (2, (Step::Flatten, Moment::Acted), false),
        (3, (Step::Clean, Moment::Intended), true),
    ] {
        if writes {
            standby.write("vdb", &[&format!("write -P {value} 1M 64k")]);
        }
        let (beta, path) = (standby.beta.clone(), raw.clone());
        let write = move || {
            hidden(&beta, &path, || write_byte(&beta, &path, value));
            Ok(Then::Go)
        };
        let prepared = standby.prepare(&SyncRequest::default()).await.unwrap();
        struck_while(prepared, at, write).await.unwrap();
        divergence_is_found(&standby, &format!("{at:?}")).await;
    }
    standby.assert_synced();
}

/// What happens to the bytes of a file.
type Damage = fn(&mut Vec<u8>);

/// The one file of this name in a directory of a host.
fn kept(host: &Host, dir: &str, name: &str) -> PathBuf {
    let found = host.shell(&format!("ls {dir}/*-{name}")).unwrap();
    assert_eq!(found.lines().count(), 1, "{found}");
    host.path(found.trim())
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_and_seals_that_are_torn_are_not_believed() {
    let Some(standby) = Standby::of("digests_and_seals_that_are_torn", machine("web1", 1)).await else { return };
    let damages: [(&str, Damage); 4] = [
        ("cut short", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
        ("a flipped bit of the head", |bytes| bytes[60] ^= 1),
        ("a flipped bit near the middle", |bytes| *bytes.iter_mut().rev().find(|byte| **byte != 0).unwrap() ^= 4),
    ];
    standby.write("vda", &["write -P 7 1M 64k"]);
    for (about, damage) in damages {
        let path = kept(&standby.beta, MANIFESTS, "vdb");
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        damage(&mut bad);
        std::fs::write(&path, bad).unwrap();
        let error = refused(&standby, about).await;
        assert_eq!(error.context["disk"], "vdb", "{about}: {error:?}");
        std::fs::write(&path, good).unwrap();
    }
    standby.sync().await.unwrap();
    standby.assert_synced();
    let raw = image(&standby.alpha, "web1", "vdb");
    for (value, (about, damage)) in (1..).step_by(2).zip([damages[0], damages[3]]) {
        for (value, host) in (value..).zip([&standby.alpha, &standby.beta]) {
            assert_sealed(&standby, about).await;
            let path = kept(host, SEALS, "vdb.json");
            let mut seal = std::fs::read(&path).unwrap();
            damage(&mut seal);
            std::fs::write(&path, seal).unwrap();
            hidden(&standby.alpha, &raw, || write_byte(&standby.alpha, &raw, value));
            let result = standby.sync().await.unwrap();
            let is_target = host.name() == "beta";
            assert_eq!((result.way, result.bytes_read_dest > 0), (Way::Compare, is_target), "{about} {result:?}");
            assert_eq!(standby.replica_contents(), standby.source_contents(), "{about}");
            // Whose it was, nobody can tell any more: the source's host keeps it.
            let _ = std::fs::remove_file(&path);
        }
    }
    standby.assert_synced();
}

/// Digests of a disk, under the name that they have at a point of another machine or time, with its id in their head.
fn pretend(from: &[u8], to: &PathBuf) {
    let operation: Uuid = to.file_name().unwrap().to_str().unwrap()[..36].parse().unwrap();
    std::fs::write(to, from).unwrap();
    let header = Header { operation: operation.into_bytes(), ..Header::decode(from).unwrap() };
    std::fs::File::options().write(true).open(to).unwrap().write_all_at(&header.encode(), 0).unwrap();
}

/// A replica with two others' digests at hand: those of another machine's, and its own of an older point.
struct Digests {
    standby: Standby,
    others: Vec<Vec<u8>>,
    older: Vec<Vec<u8>>,
    old: Contents,
    own: Vec<(PathBuf, Vec<u8>)>,
}

impl Digests {
    async fn new(test: &str) -> Option<Self> {
        let standby = Standby::unreplicated(test, machine("web2", 5))?;
        let kept = || ["vda", "vdb"].map(|disk| kept(&standby.beta, MANIFESTS, disk));
        let client = standby.client().await;
        crate::common::clone(&client, "alpha", "beta", "web2").await.unwrap();
        drop(client);
        let others = kept().map(|path| std::fs::read(path).unwrap()).to_vec();
        standby.beta.shell(&format!("mkdir /srv/others; mv {MANIFESTS}/* {SEALS}/* /srv/others")).unwrap();
        define_machine(&standby.alpha, machine("web1", 1)).unwrap();
        standby.clone().await;
        let older = kept().map(|path| std::fs::read(path).unwrap()).to_vec();
        let old = standby.replica_contents();
        for disk in ["vda", "vdb"] {
            back_up(&standby.beta, &image(&standby.beta, NAME, disk));
            crate::standby::write(&standby.alpha, "web1", disk, &[&format!("write -P 7 {PLACE} 64k")]);
        }
        standby.sync().await.unwrap();
        let own = kept().map(|path| (path.clone(), std::fs::read(path).unwrap())).to_vec();
        Some(Self { standby, others, older, old, own })
    }

    fn put_back(&self) {
        self.own.iter().for_each(|(path, digests)| std::fs::write(path, digests).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_of_another_lineage_or_point_are_not_believed() {
    let test = "digests_of_another_lineage_or_point_are_not_believed";
    let Some(digests) = Digests::new(test).await else { return };
    let standby = &digests.standby;
    let each = |digests: &[Vec<u8>], put: fn(&[u8], &PathBuf), own: &[(PathBuf, Vec<u8>)]| {
        own.iter().zip(digests).for_each(|((path, _), digests)| put(digests, path));
    };
    let as_it_is = |from: &[u8], to: &PathBuf| std::fs::write(to, from).unwrap();
    for (about, from, put, to) in [
        ("another replica's", &digests.others, as_it_is as fn(&[u8], &PathBuf), &digests.own[..]),
        ("another replica's, under our point's id", &digests.others, pretend, &digests.own[..]),
        ("another replica's of one disk", &digests.others, pretend, &digests.own[..1]),
        ("an older point's", &digests.older, as_it_is, &digests.own[..]),
        ("an older point's, under the newer one's id", &digests.older, pretend, &digests.own[..]),
    ] {
        each(from, put, to);
        refused(standby, about).await;
        digests.put_back();
    }
    let result = standby.sync().await.unwrap();
    assert_eq!(result.way, Way::Untouched, "nothing else was touched");
    // Seals of somebody else's disks, in the place of ours.
    for disk in ["vda", "vdb"] {
        let theirs = kept(&standby.beta, "/srv/others", &format!("{disk}.json"));
        std::fs::copy(theirs, kept(&standby.beta, SEALS, &format!("{disk}.json"))).unwrap();
    }
    let result = standby.sync().await.unwrap();
    assert_eq!((result.way, result.bytes_written), (Way::Compare, 0), "{}", result.why);
    assert!(result.bytes_read_dest > 0, "{result:?}");
    // A whole old point that is put back, images with digests, is one to go on from.
    for (disk, older) in ["vda", "vdb"].into_iter().zip(&digests.older) {
        let path = image(&standby.beta, NAME, disk);
        standby.beta.exec(&["cp", "-p", &format!("{path}.backup"), &path]).unwrap();
        pretend(older, &kept(&standby.beta, MANIFESTS, disk));
    }
    assert_eq!(standby.replica_contents(), digests.old);
    assert_eq!(standby.sync().await.unwrap().way, Way::Compare);
    standby.assert_synced();
}
