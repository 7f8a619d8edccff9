//! What cannot be done is refused with its own code, before a byte moves; a disk that fills up on the way is undone.

use crate::common::{MIB, clone_with, number};
use crate::oracle::{IMAGES, Scene};
use kvm_clone_core::plan::{CloneRequest, Presence};
use kvm_clone_engine::CloneSettings;
use kvm_clone_lab::FsKind;

async fn refused(scene: &Scene, name: &str, request: CloneRequest) -> u16 {
    let client = scene.client().await;
    let error = clone_with(&client, "alpha", "beta", name, request, &CloneSettings::default()).await.unwrap_err();
    assert!(!error.help.is_empty(), "{error:?}");
    number(&error)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_has_its_code_and_touches_nothing() {
    let Some(mut scene) = Scene::new("each_refusal_has_its_code_and_touches_nothing") else { return };
    let plain = CloneRequest::default;
    assert_eq!(refused(&scene, "nobody", plain()).await, 1003);

    let pool = |name: &str| CloneRequest { pool: Some(name.parse().unwrap()), ..CloneRequest::default() };
    assert_eq!(refused(&scene, "web1", pool("nowhere")).await, 1005);
    scene.beta.shell("virsh -q pool-define-as idle dir --target /srv/idle && mkdir -p /srv/idle").unwrap();
    assert_eq!(refused(&scene, "web1", pool("idle")).await, 1005);
    scene.beta.exec(&["virsh", "-q", "pool-destroy", "default"]).unwrap();
    assert_eq!(refused(&scene, "web1", plain()).await, 1005);
    scene.beta.exec(&["virsh", "-q", "pool-start", "default"]).unwrap();

    scene.source.start().unwrap();
    let offline = CloneRequest { presence: Presence::Offline, ..plain() };
    assert_eq!(refused(&scene, "web1", offline).await, 1013);
    scene.source.destroy().unwrap();
    scene.remember();

    scene.clone().await.unwrap();
    scene.remember();
    assert_eq!(refused(&scene, "web1", plain()).await, 1004);
    scene.assert_source_unharmed();
    assert_eq!(crate::oracle::State::of(&scene.beta), scene.beta_before);
    scene.assert_nothing_of_ours(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_little_space_is_seen_before_a_byte_moves() {
    let Some(scene) = Scene::new("too_little_space_is_seen_before_a_byte_moves") else { return };
    scene.beta.small_filesystem(IMAGES, FsKind::Ext4, 16 * MIB).unwrap();
    assert_eq!(refused(&scene, "web1", CloneRequest::default()).await, 1005);
    let markers = scene.beta.shell("ls -A /var/lib/kvm-clone/operations").unwrap();
    assert_eq!(markers, "");
    scene.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_during_the_copy_is_undone() {
    let Some(scene) = Scene::new("a_disk_that_fills_up_during_the_copy_is_undone") else { return };
    scene.beta.small_filesystem(IMAGES, FsKind::Ext4, 96 * MIB).unwrap();
    let (run, gate) = scene.start_and_hold().await;
    // The name keeps the filler out of what the oracle compares.
    scene.beta.shell(&format!("cat /dev/zero >{IMAGES}/.kvm-clone-filler 2>/dev/null || true")).unwrap();
    gate.open();
    let error = run.fails().await;
    assert_eq!(number(&error), 1005, "{error:?}");
    assert!(!error.help.is_empty() && error.context.contains_key("path"), "{error:?}");
    scene.beta.shell(&format!("rm {IMAGES}/.kvm-clone-filler")).unwrap();
    scene.assert_clean_and_clone_again().await;
}
