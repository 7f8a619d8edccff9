//! Calls of libvirt that the `virt` crate does not have. All `unsafe` of this crate is here.
#![allow(unsafe_code)]

use std::ffi::CString;

use virt::domain::Domain;
use virt::error::Error;

/// How many checkpoints a machine has; none where the daemon is too old to know of them (before 5.6.0).
pub(super) fn checkpoints(domain: &Domain) -> u32 {
    // SAFETY: the domain's pointer is valid for as long as `domain` lives; with a null array libvirt only counts
    // (libvirt-domain-checkpoint, virDomainListAllCheckpoints).
    let count = unsafe { virt_sys::virDomainListAllCheckpoints(domain.as_ptr(), std::ptr::null_mut(), 0) };
    u32::try_from(count).unwrap_or(0)
}

/// Begins a backup job: libvirt-domain, `virDomainBackupBegin`. No checkpoint is made.
pub(super) fn begin_backup(domain: &Domain, xml: &str) -> Result<(), Error> {
    let xml = CString::new(xml).map_err(|_| Error::last_error())?;
    // SAFETY: the domain's pointer is valid for as long as `domain` lives, the text for as long as `xml`; libvirt takes
    // a null pointer for "no checkpoint".
    let outcome = unsafe { virt_sys::virDomainBackupBegin(domain.as_ptr(), xml.as_ptr(), std::ptr::null(), 0) };
    if outcome < 0 { Err(Error::last_error()) } else { Ok(()) }
}
