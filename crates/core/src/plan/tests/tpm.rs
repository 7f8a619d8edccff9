//! What becomes of the state of an emulated TPM.

use super::*;

type Change = fn(&mut World);

const SECRET: &str = "6dd3e4a5-1d76-44ce-961f-f119f5aad935";

/// The machine `small` with a TPM that has a state, which is asked for.
fn with_state(version: &str, files: &[&str]) -> World {
    let mut world = world();
    world.add_device(&format!("<tpm model='tpm-tis'><backend type='emulator' version='{version}'/></tpm>"));
    for file in files {
        let path = format!("/a/swtpm/{}/{file}", world.source.uuid);
        let mut state = image(&path, 0);
        (state.format, state.file.length) = (ImageFormat::Raw, 6013);
        world.source.files.insert(path, vec![state]);
    }
    world.request.tpm = TpmState::Copied;
    world
}

fn stateful() -> World {
    with_state("2.0", &["tpm2/tpm2-00.permall"])
}

#[test]
fn the_state_of_a_tpm_goes_where_the_new_uuid_says() {
    let plan = stateful().plan();
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
    let dir = format!("/b/swtpm/{}", world().fresh.uuid);
    assert_eq!(plan.files.len(), 1);
    assert_eq!((plan.files[0].path.clone(), plan.files[0].size), (format!("{dir}/tpm2/tpm2-00.permall"), 6013));
    let made: Vec<_> = plan.directories.iter().map(|made| (made.path.clone(), made.private)).collect();
    assert_eq!(
        made,
        [("/b/swtpm".to_owned(), false), (dir.clone(), false), (format!("{dir}/tpm2"), true)],
        "the outermost first"
    );
    assert!(plan.describe().contains(&format!("to   {dir}/tpm2/tpm2-00.permall")), "{}", plan.describe());
    assert!(!plan.warnings.iter().any(|warning| warning.contains("empty TPM")), "{:?}", plan.warnings);

    let other = stateful().with(|w| w.target.paths_present = BTreeSet::from(["/b/swtpm".to_owned()]));
    assert_eq!(other.directories.len(), 2, "what is there is not made");
    let old = with_state("1.2", &["tpm1.2/tpm-00.permall", "tpm1.2/tpm-00.savestate"]).plan();
    let paths: Vec<_> = old.files.iter().map(|file| file.path.clone()).collect();
    assert_eq!(paths, [format!("{dir}/tpm1.2/tpm-00.permall"), format!("{dir}/tpm1.2/tpm-00.savestate")]);
}

#[test]
fn a_replica_keeps_the_place_of_its_tpm() {
    let plan = stateful().with(|w| w.request.identity = Identity::Kept);
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
    assert!(plan.files[0].path.starts_with(&format!("/b/swtpm/{}/", world().source.uuid)));
    assert!(!plan.warnings.iter().any(|warning| warning.contains("TPM")), "{:?}", plan.warnings);
}

#[test]
fn a_tpm_without_a_state_or_a_machine_without_a_tpm_needs_no_copy() {
    let mut plain = world();
    plain.request.tpm = TpmState::Copied;
    for plan in [with_state("2.0", &[]).plan(), plain.plan()] {
        assert_eq!((code(&plan), plan.files.len(), plan.directories.len()), (0, 0, 0), "{:?}", plan.checks);
    }
}

fn taken(w: &mut World) {
    let dir = format!("/b/swtpm/{}", w.fresh.uuid);
    w.target.paths_present.insert(dir);
}

fn encrypted(w: &mut World) {
    let secret = format!("version='2.0'><encryption secret='{SECRET}'/></backend>");
    w.source.xml = w.source.xml.replace("version='2.0'/>", &secret);
}

#[test]
fn states_that_cannot_be_copied_are_refused() {
    let cases: [(&str, Change, u16); 8] = [
        (
            "a machine that runs",
            |w| {
                let live = super::live::running().source;
                (w.source.state, w.source.live) = (live.state, live.live);
            },
            1013,
        ),
        ("a state that is there", taken, 1004),
        (
            "a state of the machine that is replaced",
            |w| {
                w.target.machines = vec![existing("small_clone", 1, "/images/old.img")];
                w.request.existing = Existing::Replace;
                taken(w);
            },
            1004,
        ),
        ("no plain file", |w| w.source.files.values_mut().for_each(|file| file[0].regular_file = false), 1013),
        ("a secret that is not there", encrypted, 1013),
        (
            "a secret that is not there, for an empty TPM",
            |w| {
                encrypted(w);
                w.request.tpm = TpmState::New;
            },
            1013,
        ),
        (
            "a secret that is there",
            |w| {
                encrypted(w);
                w.target.secrets.insert(SECRET.parse().unwrap());
            },
            0,
        ),
        ("a replica, unsaid", |w| (w.request.identity, w.request.tpm) = (Identity::Kept, TpmState::Unsaid), 1013),
    ];
    for (what, change, expected) in cases {
        let plan = stateful().with(change);
        assert_eq!(code(&plan), expected, "{what}: {:?}", plan.refusal());
        assert!(plan.refusal().is_none_or(|error| !error.help.is_empty()), "{what} has no way out");
    }
}

/// Whoever asks for an empty TPM must not get the keys of another machine, least of all by replacing that.
#[test]
fn a_state_that_the_target_has_already_is_no_empty_tpm() {
    for tpm in [TpmState::New, TpmState::Unsaid] {
        let refused = stateful().with(|w| (w.request.tpm, ()) = (tpm, taken(w))).refusal().unwrap();
        assert_eq!(refused.code.number(), 1004, "{refused:?}");
        assert!(refused.message.contains("/b/swtpm/") && refused.help[0].contains("Move"), "{refused:?}");
        let plan = stateful().with(|w| {
            w.request.tpm = tpm;
            w.target.machines = vec![existing("small_clone", 1, "/images/old.img")];
            w.request.existing = Existing::Replace;
            taken(w);
        });
        let refused = plan.refusal().unwrap();
        assert_eq!(refused.code.number(), 1004, "{refused:?}");
        assert!(refused.message.contains("small_clone") && refused.help[0].contains("--tpm"), "{refused:?}");
        let empty = stateful().with(|w| w.request.tpm = tpm);
        assert_eq!(code(&empty), 0);
        assert!(empty.warnings.join("\n").contains("new, empty TPM"), "{:?}", empty.warnings);
    }
}

#[test]
fn what_is_asked_about_a_tpm() {
    let world = stateful();
    let paths = wanted_paths(&world.request, &world.source, &world.target, &world.fresh).unwrap();
    for path in ["/b/swtpm".to_owned(), format!("/b/swtpm/{}", world.fresh.uuid)] {
        assert!(paths.contains(&path), "{path}");
    }
    let domain = Domain::parse(&world.source.xml).unwrap();
    let state = |request: &CloneRequest| tpm_files(request, &domain, "/a", world.source.uuid);
    assert_eq!(state(&world.request)[0], format!("/a/{}/tpm2/tpm2-00.permall", world.source.uuid));
    assert!(state(&CloneRequest::default()).is_empty());
}

/// A replica with a state of its own, which the source's is to become.
fn replica(present: &[&str]) -> World {
    let mut world = super::sync::replicated_from(stateful(), |_| ());
    let uuid = world.target.replica.as_ref().unwrap().uuid;
    world.target.paths_present.extend(present.iter().map(|name| format!("/b/swtpm/{uuid}{name}")));
    world.target.paths_present.insert("/b/swtpm".to_owned());
    world
}

#[test]
fn in_a_sync_the_state_takes_the_place_of_the_replicas() {
    let world = replica(&["", "/tpm2", "/tpm2/tpm2-00.permall", "/tpm2/tpm2-00.savestate"]);
    let uuid = world.target.replica.as_ref().unwrap().uuid;
    let plan = world.plan();
    assert_eq!(code(&plan), 0, "{:?}", plan.refusal());
    assert_eq!(plan.files[0].path, format!("/b/swtpm/{uuid}/tpm2/tpm2-00.permall"));
    assert!(plan.files[0].renews && plan.directories.is_empty(), "{:?}", plan.directories);
    assert_eq!(plan.dropped_state, [format!("/b/swtpm/{uuid}/tpm2/tpm2-00.savestate")]);
    assert!(plan.describe().contains("right after the definition"), "{}", plan.describe());
    let paths = wanted_paths(&world.request, &world.source, &world.target, &world.fresh).unwrap();
    assert!(paths.contains(&plan.dropped_state[0]) && paths.contains(&format!("/b/swtpm/{uuid}/tpm2")));

    let made: Vec<_> = replica(&[]).plan().directories.into_iter().map(|made| made.path).collect();
    assert_eq!(made, [format!("/b/swtpm/{uuid}"), format!("/b/swtpm/{uuid}/tpm2")]);
}

#[test]
fn in_a_sync_a_replica_keeps_its_state_where_none_comes() {
    let present = ["", "/tpm2", "/tpm2/tpm2-00.permall"];
    let cases: [(&str, Change); 3] = [
        ("the source has none", |w| w.source.files.clear()),
        ("an empty one was asked for", |w| w.request.tpm = TpmState::New),
        ("only the disks come", |w| super::sync::update(w, |update| update.disks_only = true)),
    ];
    for (what, change) in cases {
        let plan = replica(&present).with(change);
        assert_eq!(code(&plan), 0, "{what}: {:?}", plan.refusal());
        assert!(plan.files.is_empty() && plan.dropped_state.is_empty() && plan.directories.is_empty(), "{what}");
    }
    let live = |w: &mut World| {
        let live = super::live::running().source;
        (w.source.state, w.source.live) = (live.state, live.live);
    };
    let refused = replica(&present).with(live).refusal().unwrap();
    assert_eq!(refused.code.number(), 1013, "{refused:?}");
    assert!(refused.help[0].contains("--disks-only"), "{refused:?}");
    let disks_only = replica(&present).with(|w| {
        live(w);
        super::sync::update(w, |update| update.disks_only = true);
    });
    assert_eq!(code(&disks_only), 0, "{:?}", disks_only.refusal());
}
