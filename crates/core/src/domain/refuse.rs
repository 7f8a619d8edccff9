//! What this version cannot carry: every rule, asked in turn, so that a user hears all of it at once.

use std::collections::BTreeSet;

use super::tree::Element;
use super::which::which;
use super::{Domain, Identity, TpmState, arguments, chardev, devices, disks, firmware, hostbound, network, nvram, tpm};
use crate::error::Error;

/// Whether source and target are one host, where two machines could meet in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// The copy runs beside its source.
    SameHost,
    /// The copy runs on another host.
    OtherHost,
}

/// What must be known of the target to say what can be carried there.
#[derive(Debug, Clone, Copy)]
pub struct CarryContext<'a> {
    /// Which of [`Domain::host_paths`] the target has.
    pub paths_present: &'a BTreeSet<String>,
    /// Where the target is.
    pub whereabouts: Whereabouts,
    /// Whether the copy stands in for its source.
    pub identity: Identity,
    /// What the copy's TPM is to hold.
    pub tpm: TpmState,
}

type Rule = fn(&Domain) -> Vec<Error>;

const RULES: [Rule; 10] = [
    hypervisor,
    disks::refusals,
    nvram::refusals,
    tpm::refusals,
    devices::refuse_host_bound,
    devices::refuse_host_backed,
    devices::refuse_sealed,
    network::refusals,
    chardev::refusals,
    arguments::refusals,
];

/// Everything that this version cannot carry; nothing of it is ever dropped silently.
#[must_use]
pub fn refusals(domain: &Domain, context: &CarryContext<'_>) -> Vec<Error> {
    let errors = RULES.iter().flat_map(|rule| rule(domain));
    let unsaid = tpm::refuse_unsaid(domain, context.identity, context.tpm);
    errors.chain(firmware::refuse_missing(domain, context)).chain(unsaid).collect()
}

/// What is carried although it was made for the source's host, or stands on files of the target's.
#[must_use]
pub fn warnings(domain: &Domain, context: &CarryContext<'_>) -> Vec<String> {
    hostbound::warnings(domain).into_iter().chain(firmware::warning(domain, context)).collect()
}

/// An error about something that this version cannot carry.
pub(super) fn cannot(message: impl Into<String>, help: impl Into<String>) -> Error {
    Error::unsupported(message).help(help)
}

/// An error about a device that this version cannot carry, which names it.
pub(super) fn cannot_carry(device: &Element, message: impl Into<String>, help: &str) -> Error {
    let message = message.into();
    match which(device) {
        Some(which) => cannot(format!("{message}: {which}"), help).with("which", which),
        None => cannot(message, help),
    }
    .with("device", &device.name)
}

/// formatdomain, "General metadata": the domain type says which hypervisor runs it.
fn hypervisor(domain: &Domain) -> Vec<Error> {
    let virt_type = domain.platform().virt_type;
    let is_ours = matches!(virt_type.as_str(), "kvm" | "qemu");
    let refuse = || cannot(format!("the machine is of type {virt_type:?}, not kvm or qemu"), "Only KVM is supported");
    (!is_ours).then(refuse).into_iter().collect()
}
