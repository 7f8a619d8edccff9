//! Faults at a moment of a step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use kvm_clone_core::Result;
use kvm_clone_core::journal::Step;
use kvm_clone_engine::{Boundary, CloneResult, CloneSettings, Moment, Prepared, Recovery, Then};
use kvm_clone_lab::{Host, Lab, fault};
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, Scene};
use crate::common::{silent, spec};

pub type At = (Step, Moment);

/// Between the journal's write and the act, and between the act and the journal's next write.
const MOMENTS: [Moment; 2] = [Moment::Intended, Moment::Acted];

pub fn moments() -> impl Iterator<Item = At> {
    sync_moments().filter(|(step, _)| !step.is_of_sync())
}

/// The same of a sync, which has more steps.
pub fn sync_moments() -> impl Iterator<Item = At> {
    in_place_moments().filter(|(step, _)| !step.is_in_place())
}

/// The same of a sync in place, which has all of them.
pub fn in_place_moments() -> impl Iterator<Item = At> {
    Step::ALL.into_iter().flat_map(|step| MOMENTS.map(|moment| (step, moment)))
}

/// The steps of a clone.
pub fn steps() -> impl Iterator<Item = Step> {
    Step::ALL.into_iter().filter(|step| !step.is_of_sync())
}

/// These, and the boundary before each step, where nothing of it is journaled yet.
pub fn moments_and_boundaries() -> impl Iterator<Item = At> {
    steps().map(|step| (step, Moment::Begun)).chain(moments())
}

/// A fault, set off once, at one moment.
struct Strike<F> {
    at: At,
    struck: Arc<AtomicBool>,
    fault: F,
}

impl<F> std::fmt::Debug for Strike<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a fault at {:?}", self.at)
    }
}

impl<F: Fn() -> Result<Then> + Send + Sync> Boundary for Strike<F> {
    fn pass(&self, step: Step, moment: Moment) -> BoxFuture<'_, Result<Then>> {
        let strikes = (step, moment) == self.at && !self.struck.swap(true, Ordering::SeqCst);
        // Faults are made by programs that are waited for.
        Box::pin(async move { if strikes { tokio::task::block_in_place(&self.fault) } else { Ok(Then::Go) } })
    }
}

/// The fault: all agents of a host die.
pub fn agents_die(host: &Host) -> impl Fn() -> Result<Then> + Send + Sync + use<> {
    let host = host.clone();
    move || {
        fault::kill(&host, "kvm-clone-agent").unwrap();
        Ok(Then::Go)
    }
}

/// The fault: a host is cut off, until its agents have noticed.
pub fn is_cut_off(lab: &Arc<Lab>, host: &Host) -> impl Fn() -> Result<Then> + Send + Sync + use<> {
    let (lab, host) = (Arc::clone(lab), host.clone());
    move || {
        lab.cut(&host).unwrap();
        let (lab, host) = (Arc::clone(&lab), host.clone());
        std::thread::spawn(move || {
            fault::wait_gone(&host, "kvm-clone-agent", PATIENCE).unwrap();
            lab.heal(&host).unwrap();
        });
        Ok(Then::Go)
    }
}

/// The fault: a host loses its power.
pub fn loses_power(host: &Host) -> impl Fn() -> Result<Then> + Send + Sync + use<> {
    let host = host.clone();
    move || {
        host.crash().unwrap();
        Ok(Then::Go)
    }
}

/// Clones with a fault at this moment.
pub async fn struck(
    scene: &Scene,
    at: At,
    fault: impl Fn() -> Result<Then> + Send + Sync + 'static,
) -> Result<CloneResult> {
    let client = scene.client().await;
    let (alpha, beta, name) = (spec("alpha"), spec("beta"), "web1".parse()?);
    let prepared = client.prepare(&alpha, &beta, &name, scene.request.clone(), Recovery::Act, silent()).await?;
    struck_while(prepared, at, fault).await
}

/// Carries a plan out with a fault at this moment.
pub async fn struck_while(
    prepared: Prepared,
    at: At,
    fault: impl Fn() -> Result<Then> + Send + Sync + 'static,
) -> Result<CloneResult> {
    let struck = Arc::new(AtomicBool::new(false));
    let strike = Strike { at, struck: Arc::clone(&struck), fault };
    let settings = CloneSettings { boundary: Arc::new(strike), ..CloneSettings::default() };
    let outcome = prepared.execute(&settings, silent(), CancellationToken::new()).await;
    assert!(struck.load(Ordering::SeqCst), "{at:?} never came");
    outcome
}
