//! The machine that a sync brings to a newer point.

use kvm_clone_core::domain::{Domain, Lineage, given_since, with_true_images};
use kvm_clone_core::inventory::{ExistingMachine, Replica, SourceMachine};
use kvm_clone_core::name::{SourceName, VmName};
use kvm_clone_core::plan::{Candidate, CloneRequest, Existing, find_replica};
use kvm_clone_core::{Error, Result};
use uuid::Uuid;

use super::{Site, disk_images};

/// A replica, found by its lineage.
pub(crate) struct Found {
    pub(crate) name: SourceName,
    pub(crate) uuid: Uuid,
    pub(crate) lineage: Lineage,
}

/// Looks for the source's replica among the machines of a host.
pub(crate) async fn find(site: &Site, source: &SourceMachine, wanted: Option<&VmName>) -> Result<Found> {
    let machines = site.libvirt.existing(String::new()).await?;
    let lineages: Vec<Option<Lineage>> =
        machines.iter().map(|listed| Domain::parse(&listed.xml).ok().and_then(|domain| domain.lineage())).collect();
    let candidates: Vec<Candidate<'_>> = machines
        .iter()
        .zip(&lineages)
        // A machine that was itself copied to its own host is no replica of itself.
        .filter(|(listed, _)| site.host.facts.id != source.host || listed.machine.uuid != source.uuid)
        .map(|(listed, lineage)| {
            let (name, uuid) = (&listed.machine.name, listed.machine.uuid);
            Candidate { name, uuid, lineage: lineage.as_ref() }
        })
        .collect();
    let found = find_replica(source, &site.host.name, &candidates, wanted)?;
    let lineage = found.lineage.cloned().ok_or_else(|| Error::internal("a replica has no lineage"))?;
    Ok(Found { name: found.name.clone(), uuid: found.uuid, lineage })
}

/// Looks at the replica that is to be brought to a newer point, at the images of its disks, also where it is out of service, and how old
/// its points are `now`. None where it is not there any more, or no replica.
pub(super) async fn look_at(
    site: &Site,
    request: &CloneRequest,
    machine: Option<&ExistingMachine>,
    now: &str,
) -> Result<Option<Replica>> {
    let (Existing::Update(_), Some(machine)) = (request.existing, machine) else { return Ok(None) };
    let Some(xml) = site.libvirt.definition(machine.uuid).await? else { return Ok(None) };
    let parsed = Domain::parse(&xml).and_then(|domain| Ok((given_since(&domain), with_true_images(&domain)?)));
    let (given, domain) = parsed.map_err(|error| error.with("vm", &machine.name))?;
    let Some(lineage) = domain.lineage() else { return Ok(None) };
    let images = disk_images(site, &domain).await?.into_iter().map(|(disk, seen)| (disk, seen.images)).collect();
    let points = [&lineage.point].into_iter().chain(lineage.points.iter().map(|kept| &kept.point));
    // Whichever clock is behind: one that runs far ahead must not make old what is young, and so have it dropped.
    let clock = jiff::Timestamp::from_second(site.host.facts.clock);
    let ours: Option<jiff::Timestamp> = now.parse().ok();
    let now = ours.map(|ours| clock.map_or(ours, |theirs| ours.min(theirs)));
    let ages = points.map(|point| age(point, now?)).collect();
    let xml = domain.xml().to_owned();
    Ok(Some(Replica { name: machine.name.clone(), uuid: machine.uuid, xml, lineage, given, images, ages }))
}

/// Seconds since a point; none where it is no time, or one to come.
pub(crate) fn age(point: &str, now: jiff::Timestamp) -> Option<u64> {
    let point: jiff::Timestamp = point.parse().ok()?;
    u64::try_from(now.duration_since(point).as_secs()).ok()
}
