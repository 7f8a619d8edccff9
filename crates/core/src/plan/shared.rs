//! Whether source and target reach one storage: then the image is there already, and a second one beside it is hardly
//! what somebody wants who moves machines between hosts.

use super::Facts;
use super::check::Checks;
use crate::error::Error;
use crate::inventory::{FileId, ImageFacts, SeenFile};
use crate::quote::quoted;

pub(super) fn check(facts: &Facts<'_>, checks: &mut Checks) {
    if facts.is_same_host() {
        return;
    }
    let mut failures = Vec::new();
    for (target, chain) in &facts.source.images {
        let shared = chain.iter().find_map(|image| Some((image, seen_at(facts, image)?)));
        failures.extend(shared.map(|(image, path)| refusal(facts, image, path).with("disk", target)));
    }
    checks.all("storage", failures, "no disk lies on storage that both hosts share");
}

/// Every path under which the target may see an image of the source: its own, and its name in each pool.
pub(super) fn candidates(facts: &Facts<'_>) -> Vec<String> {
    let images = facts.source.images.values().flatten();
    images.flat_map(|image| paths(facts, image)).collect()
}

fn paths(facts: &Facts<'_>, image: &ImageFacts) -> Vec<String> {
    let name = image.path.rsplit('/').next().unwrap_or_default();
    let pools = facts.target.pools.iter().filter(|pool| pool.holds_files()).filter_map(|pool| pool.path.as_deref());
    let in_pools = pools.map(|dir| format!("{}/{name}", dir.trim_end_matches('/')));
    std::iter::once(image.path.clone()).chain(in_pools).collect()
}

fn seen_at(facts: &Facts<'_>, image: &ImageFacts) -> Option<String> {
    paths(facts, image).into_iter().find(|path| facts.target.files.get(path).is_some_and(|seen| is_one(image, seen)))
}

fn is_one(image: &ImageFacts, seen: &SeenFile) -> bool {
    is_one_storage((image.file, image.device_id.as_ref()), (seen.file, seen.device_id.as_ref()))
}

/// Whether two hosts mean one file or device by these.
pub(super) fn is_one_storage(here: (FileId, Option<&String>), there: (FileId, Option<&String>)) -> bool {
    match (here.1, there.1) {
        (None, None) => here.0.is_shared_with(&there.0),
        (here, there) => here == there,
    }
}

fn refusal(facts: &Facts<'_>, image: &ImageFacts, path: String) -> Error {
    let (source, target) = (&facts.source.host_name, &facts.target.host_name);
    let message =
        format!("{target} reaches the image {} of {source} itself, as {path}: both share this storage", image.path);
    Error::unsupported(message)
        .with("path", &image.path)
        .with("host", target)
        .help("To move the machine, define it there, or use virsh migrate: its disks need no copy")
        .help(format!(
            "To have a second one, clone it on its own host: kvm-clone clone {source} {source} {}",
            quoted(&facts.source.name)
        ))
}
