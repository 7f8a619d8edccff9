//! What is in CD-ROM and floppy drives comes along by word.

use crate::common::*;
use crate::oracle::{Gate, IMAGES, Run, assert_boots, disk_path};
use crate::pair::{Pair, web};
use kvm_clone_core::event::Event;
use kvm_clone_core::plan::{CloneRequest, Existing};
use kvm_clone_engine::{CloneSettings, Recovery};
use kvm_clone_lab::define_machine;
use tokio_util::sync::CancellationToken;

const DRIVES: &str = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/srv/debian.iso'/>\
                      <target dev='sdb' bus='sata'/><readonly/></disk>\
                      <disk type='file' device='floppy'><driver name='qemu' type='raw'/><source file='/srv/fd.img'/>\
                      <target dev='fda' bus='fdc'/></disk>";

/// What no two places have by chance; a length that is no whole blocks.
fn contents(seed: u32, len: usize) -> Vec<u8> {
    (0..).flat_map(|n: u32| n.wrapping_mul(2_654_435_761).wrapping_add(seed).to_le_bytes()).take(len).collect()
}

fn with_media(test: &str) -> Option<Pair> {
    let pair = Pair::new(test)?;
    std::fs::create_dir_all(pair.alpha.path("/srv")).unwrap();
    std::fs::write(pair.alpha.path("/srv/debian.iso"), contents(1, 9_000_960)).unwrap();
    std::fs::write(pair.alpha.path("/srv/fd.img"), contents(2, 1_474_560)).unwrap();
    define_machine(&pair.alpha, web().devices_xml(DRIVES)).unwrap();
    Some(pair)
}

fn asked() -> CloneRequest {
    CloneRequest { copy_media: true, ..CloneRequest::default() }
}

fn media(pair: &Pair) -> Vec<String> {
    let there = pair.beta.shell(&format!("ls -A {IMAGES} | grep -E 'sdb|fda' || true")).unwrap();
    there.lines().map(str::to_owned).collect()
}

fn assert_same_media(pair: &Pair) {
    for (drive, source) in [("sdb", "/srv/debian.iso"), ("fda", "/srv/fd.img")] {
        let copy = disk_path(&pair.copy(), drive);
        let read = |path: std::path::PathBuf| std::fs::read(path).unwrap();
        assert!(read(pair.beta.path(&copy)) == read(pair.alpha.path(source)), "{drive}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn media_come_along_by_word() {
    let Some(pair) = with_media("media_come_along_by_word") else { return };
    let (client, seen) = (client(&pair.lab).await, Seen::default());
    let (alpha, beta, name) = (spec("alpha"), spec("beta"), "web1".parse().unwrap());
    let prepared = client.prepare(&alpha, &beta, &name, asked(), Recovery::Act, silent()).await.unwrap();
    let result = prepared.execute(&CloneSettings::default(), seen.sink(), CancellationToken::new()).await.unwrap();
    let moves = |event: &Event| matches!(event, Event::Progress { disk, .. } if disk.as_str() == "sdb");
    assert!(seen.0.lock().unwrap().iter().any(moves), "its progress is told");
    assert!(result.blocks_synchronized <= result.blocks_total);
    assert!(result.checksums.contains_key(&"sdb".parse().unwrap()));
    assert_same_media(&pair);
    assert_eq!(media(&pair), ["web1_clone-fda.img", "web1_clone-sdb.iso"]);
    assert!(pair.copy().contains("<readonly/>"));
    let volumes = pair.beta.exec(&["virsh", "-q", "vol-list", "default"]).unwrap();
    assert!(volumes.contains("web1_clone-sdb.iso"), "the pool knows it: {volumes}");
    assert_boots(&pair.beta.machine("web1_clone").unwrap());
    assert_nothing_left(&pair.beta);

    // Once more over the first one: its media go with it.
    let first = disk_path(&pair.copy(), "sdb");
    pair.clone(CloneRequest { existing: Existing::Replace, ..asked() }).await.unwrap();
    assert_same_media(&pair);
    assert_ne!(disk_path(&pair.copy(), "sdb"), first);
    assert_eq!(media(&pair).len(), 2, "{:?}", media(&pair));

    // Without the word they are ejected.
    let request = CloneRequest { new_name: Some("plain".parse().unwrap()), ..CloneRequest::default() };
    let result = pair.clone(request).await.unwrap();
    assert!(result.warnings.iter().any(|warning| warning.contains("debian.iso is ejected")), "{:?}", result.warnings);
}

#[tokio::test(flavor = "multi_thread")]
async fn media_of_a_machine_that_runs_come_along_unless_they_change() {
    let Some(pair) = with_media("media_of_a_machine_that_runs") else { return };
    pair.alpha.machine("web1").unwrap().start().unwrap();
    let gate = Gate::after(4 * MIB);
    let run = Run::start(client(&pair.lab).await, asked(), gate.settings());
    gate.reached().await;
    pair.alpha.shell("printf x | dd of=/srv/fd.img bs=1 seek=9 conv=notrunc 2>/dev/null").unwrap();
    gate.open();
    let error = run.fails().await;
    assert_eq!(number(&error), 1014, "{error:?}");
    assert!(error.message.contains("/srv/fd.img"), "{error:?}");
    assert!(media(&pair).is_empty(), "{:?}", media(&pair));
    assert_nothing_left(&pair.beta);

    pair.clone(asked()).await.unwrap();
    assert_same_media(&pair);
}
