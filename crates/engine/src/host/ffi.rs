//! Calls of libvirt that the `virt` crate does not have. All `unsafe` of this crate is here.
#![allow(unsafe_code)]

use virt::domain::Domain;

/// How many checkpoints a machine has; none where the daemon is too old to know of them (before 5.6.0).
pub(super) fn checkpoints(domain: &Domain) -> u32 {
    // SAFETY: the domain's pointer is valid for as long as `domain` lives; with a null array libvirt only counts
    // (libvirt-domain-checkpoint, virDomainListAllCheckpoints).
    let count = unsafe { virt_sys::virDomainListAllCheckpoints(domain.as_ptr(), std::ptr::null_mut(), 0) };
    u32::try_from(count).unwrap_or(0)
}
