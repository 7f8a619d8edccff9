//! One sync after the other, with changes, faults and kills that chance chooses. After each the replica, read through its definition
//! and before any recovery, is the old point or the new one, and the next sync makes it the new one.
//!
//! `KVM_CLONE_SYNCS` says how many, `KVM_CLONE_SEED` repeats what chance chose: a failure names it.

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::common::{MIB, number};
use crate::oracle::PATIENCE;
use crate::oracle::child::Task;
use crate::oracle::strike::{At, struck_while, sync_moments};
use crate::standby::{Contents, NAME, Standby, discarding, images, write};
use kvm_clone_core::event::{Event, Phase};
use kvm_clone_core::plan::SyncRequest;
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{CloneResult, CloneSettings, Events};
use kvm_clone_lab::{Host, fault};
use tokio_util::sync::CancellationToken;

/// How many syncs, where nobody says.
const SYNCS: u64 = 8;
/// The sizes of the disks that [`Standby::new`] makes.
const DISKS: [(&str, u64); 2] = [("vda", 32 * MIB), ("vdb", 8 * MIB)];
const SECTOR: u64 = 512;

/// Numbers that look random: SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()].clone()
    }
}

/// What happens during a sync.
#[derive(Debug, Clone)]
enum Incident {
    Nothing,
    StepFails(At),
    ControllerDies(At),
    AgentDies {
        on: &'static str,
        phase: Phase,
        micros: u64,
    },
    CableIsCut {
        phase: Phase,
        micros: u64,
    },
    /// Somebody wrote to the replica before.
    ReplicaChanged,
    /// The target was booted before.
    TargetBooted,
}

impl Incident {
    fn any(chance: &mut Chance) -> Self {
        let moments: Vec<At> = sync_moments().collect();
        let phase = chance.of(&[Phase::Prepare, Phase::Copy, Phase::Copy, Phase::Finish, Phase::Commit, Phase::Clean]);
        let micros = chance.below(60_000);
        match chance.below(16) {
            0..=5 => Self::Nothing,
            6 | 7 => Self::StepFails(chance.of(&moments)),
            8 | 9 => Self::ControllerDies(chance.of(&moments)),
            10..=12 => Self::AgentDies { on: chance.of(&["alpha", "beta"]), phase, micros },
            13 => Self::CableIsCut { phase, micros },
            14 => Self::ReplicaChanged,
            _ => Self::TargetBooted,
        }
    }
}

/// Writes to the source as guests do, and as administrators do behind everybody's back.
fn change(standby: &Standby, chance: &mut Chance) {
    for (target, size) in DISKS {
        let commands: Vec<String> = (0..chance.below(6)).map(|_| qemu_io(size, chance)).collect();
        if !commands.is_empty() {
            standby.write(target, &commands.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
    let image = standby.alpha.path(&images(&standby.alpha, "web1")["vdb"].0);
    let backup = standby.alpha.path("/srv/backup.img");
    match chance.below(6) {
        // Right after the last sync, past every tool.
        0 => {
            let file = std::fs::File::options().write(true).open(&image).unwrap();
            file.write_all_at(&[7; 100], chance.below(8 * MIB - 100)).unwrap();
        }
        1 => {
            standby.alpha.shell(&format!("cp -p {} /srv/backup.img", inside(&standby.alpha, "vdb"))).map(drop).unwrap()
        }
        // With the times that it had.
        2 if backup.exists() => {
            standby.alpha.shell(&format!("cp -p /srv/backup.img {}", inside(&standby.alpha, "vdb"))).map(drop).unwrap();
        }
        _ => {}
    }
}

fn inside(host: &Host, target: &str) -> String {
    images(host, "web1")[target].0.clone()
}

/// A write of any kind, anywhere.
fn qemu_io(size: u64, chance: &mut Chance) -> String {
    let most = chance.of(&[8, 256, 4096]);
    let length = (1 + chance.below(most)) * SECTOR;
    let offset = chance.below((size - length) / SECTOR + 1) * SECTOR;
    match chance.below(8) {
        0 => format!("write -z {offset} {length}"),
        1 => format!("discard {offset} {length}"),
        _ => format!("write -P {} {offset} {length}", 1 + chance.below(255)),
    }
}

/// A sync in which something happens so many microseconds after the beginning of a phase; it is over when this returns.
async fn execute(
    standby: &Standby,
    when: Option<(Phase, u64)>,
    act: impl Fn() + Send + Sync + 'static,
) -> Result<CloneResult> {
    let act = Arc::new(act);
    let acting: Arc<Mutex<Option<JoinHandle<()>>>> = Arc::default();
    let begun = Arc::clone(&acting);
    let events: Events = Arc::new(move |event| {
        let Some((_, micros)) = when.filter(|(phase, _)| event == Event::Phase { phase: *phase }) else { return };
        let act = Arc::clone(&act);
        *begun.lock().unwrap() = Some(std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(micros));
            act();
        }));
    });
    let prepared = standby.prepare(&SyncRequest::default()).await?;
    let outcome = prepared.execute(&CloneSettings::default(), events, CancellationToken::new()).await;
    let acting = acting.lock().unwrap().take();
    acting.into_iter().for_each(|acting| acting.join().unwrap());
    outcome
}

/// One sync with its incident; what came of it, where somebody can tell.
async fn sync(standby: &Standby, incident: &Incident) -> Option<Result<CloneResult>> {
    let asked = SyncRequest::default();
    match incident.clone() {
        Incident::StepFails(at) => {
            let fails = || Err(Error::internal("struck"));
            Some(struck_while(standby.prepare(&asked).await.unwrap(), at, fails).await)
        }
        Incident::ControllerDies((step, moment)) => {
            let mut controller = Task::in_lab(&standby.lab).sync().die_at(step, moment).start();
            controller.says("dies");
            controller.kill();
            None
        }
        Incident::AgentDies { on, phase, micros } => {
            let host = if on == "alpha" { standby.alpha.clone() } else { standby.beta.clone() };
            Some(execute(standby, Some((phase, micros)), move || drop(fault::kill(&host, "kvm-clone-agent"))).await)
        }
        Incident::CableIsCut { phase, micros } => {
            let (lab, beta) = (Arc::clone(&standby.lab), standby.beta.clone());
            let cut = move || {
                lab.cut(&beta).unwrap();
                fault::wait_gone(&beta, "kvm-clone-agent", PATIENCE).unwrap();
                lab.heal(&beta).unwrap();
            };
            Some(execute(standby, Some((phase, micros)), cut).await)
        }
        Incident::TargetBooted => {
            standby.beta.exec(&["sync"]).unwrap();
            standby.beta.crash().unwrap();
            Some(execute(standby, None, || {}).await)
        }
        Incident::Nothing | Incident::ReplicaChanged => Some(execute(standby, None, || {}).await),
    }
}

/// Old, new, and nothing else.
fn is_new(standby: &Standby, old: &Contents, new: &Contents, about: &str) -> bool {
    let now = standby.replica_contents();
    assert!(now == *old || now == *new, "{about}: {now:?} is neither {old:?} nor {new:?}");
    now == *new
}

async fn round(standby: &Standby, chance: &mut Chance, about: &str) {
    change(standby, chance);
    let incident = Incident::any(chance);
    let was_changed = matches!(incident, Incident::ReplicaChanged);
    if was_changed {
        let (target, size) = chance.of(&DISKS);
        write(&standby.beta, NAME, target, &[&format!("write -P {} {} 512", 1 + chance.below(255), size / 2)]);
    }
    let (old, new) = (standby.replica_contents(), standby.source_contents());
    let outcome = sync(standby, &incident).await;
    println!("{about}: {incident:?}: {:?}", outcome.as_ref().map(|outcome| outcome.as_ref().map(|done| &done.why)));
    standby.await_dead_man();
    standby.lab.heal(&standby.beta).unwrap();
    assert_eq!(standby.source_contents(), new, "{about}: the source was touched");
    let is_new = is_new(standby, &old, &new, about);
    match &outcome {
        Some(Ok(_)) => assert!(is_new, "{about}: it said that it succeeded"),
        Some(Err(error)) if was_changed => assert_eq!(number(error), 1014, "{about}: {error:?}"),
        Some(Err(error)) => {
            assert!(!matches!(incident, Incident::Nothing | Incident::TargetBooted), "{about}: {error:?}")
        }
        None => {}
    }
    if chance.below(2) == 0 {
        standby.recover(about).await;
        assert_eq!(standby.replica_contents() == new, is_new || old == new, "{about}: recover changed the outcome");
    }
    let settings = if was_changed { discarding() } else { CloneSettings::default() };
    let again = standby.sync_with(&SyncRequest::default(), &settings).await;
    again.unwrap_or_else(|error| panic!("{about}: the next sync: {error:?}"));
    standby.assert_synced();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_syncs_in_a_row_never_leave_a_mixture() {
    let Some(standby) = Standby::new("many_syncs_in_a_row").await else { return };
    let said = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let by_clock = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |now: Duration| now.as_secs());
    let seed = said("KVM_CLONE_SEED").unwrap_or_else(by_clock);
    let mut chance = Chance(seed);
    for number in 0..said("KVM_CLONE_SYNCS").unwrap_or(SYNCS) {
        round(&standby, &mut chance, &format!("seed {seed}, sync {number}")).await;
    }
}
