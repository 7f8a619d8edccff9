//! Trusted platform modules: formatdomain, "TPM device". libvirt keeps the state of an emulated one by the machine's UUID.

use super::Domain;
use super::identity::Identity;
use super::refuse::cannot;
use crate::error::Error;

/// Modules whose state is not the machine's own, and state that would have to come along.
pub(super) fn refusals(domain: &Domain) -> Vec<Error> {
    let refuse = |tpm: &super::tree::Element| match tpm.attr_at(&["backend"], "type") {
        Some("emulator") | None => None,
        Some("passthrough") => Some(
            cannot("the machine uses the TPM of its host", "Leave it out with --drop-hostdev").with("device", "tpm"),
        ),
        Some(other) => Some(
            cannot(format!("the machine's TPM is {other:?}, outside of libvirt"), "Copy the machine by hand")
                .with("device", "tpm"),
        ),
    };
    domain.devices_named("tpm").filter_map(refuse).collect()
}

/// A replica is to stand in for its source, which it cannot without the source's secrets: that must be somebody's word.
pub(super) fn refuse_new_state(domain: &Domain, identity: Identity, is_new_fine: bool) -> Option<Error> {
    let wants_old = domain.devices_named("tpm").next().is_some() && identity == Identity::Kept && !is_new_fine;
    wants_old.then(|| {
        cannot(
            "the state of the machine's TPM is not copied yet, and a replica wants it",
            "Say --tpm new for an empty one",
        )
        .with("device", "tpm")
    })
}

/// What an empty module means.
pub(super) fn notes(domain: &Domain) -> Vec<String> {
    let has_one = domain.devices_named("tpm").next().is_some();
    let note = "the copy gets a new, empty TPM: keys that the source sealed with its own (BitLocker, LUKS with TPM, \
                SSH and VPN keys) do not open there; have recovery keys at hand";
    has_one.then(|| note.to_owned()).into_iter().collect()
}
