#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::process::Command;

use kvm_clone_lab::{HostSpec, Lab, available};

fn ip(words: &[&str]) {
    assert!(Command::new("ip").args(words).status().unwrap().success(), "{words:?}");
}

#[test]
fn the_end_of_a_lab_spares_a_lab_whose_number_begins_alike() {
    if !available("the_end_of_a_lab_spares_a_lab_whose_number_begins_alike") {
        return;
    }
    let lab = Lab::new().unwrap();
    lab.host(HostSpec::named("alpha")).unwrap();
    let (own, other) = (format!("kclab{}br", lab.id()), format!("kclab{}999h0", lab.id()));
    let is_there = |name: &str| Path::new("/sys/class/net").join(name).exists();
    // What a lab of a longer number would have; there is none above 511.
    ip(&["link", "add", &other, "type", "bridge"]);
    assert!(is_there(&own));
    drop(lab);
    let spared = is_there(&other);
    ip(&["link", "del", &other]);
    assert!(!is_there(&own), "the lab itself is gone");
    assert!(spared, "the other one stays");
}
