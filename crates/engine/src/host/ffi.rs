//! Calls of libvirt that the `virt` crate does not have, or has wrong. All `unsafe` of this crate is here.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};

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

/// What libvirt says of the job that runs on a machine.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// `virDomainJobOperation`, where libvirt names it.
    pub(super) operation: Option<u32>,
    pub(super) milliseconds: Option<u64>,
}

/// The job that runs on a machine; none where there is none: libvirt-domain, `virDomainGetJobStats`. `virt` 0.5 makes a vector
/// of the null pointer that it gets of a machine without a job, and frees the array by Rust's allocator.
pub(super) fn job(domain: &Domain) -> Result<Option<Job>, Error> {
    let (mut kind, mut parameters, mut count) = (0, std::ptr::null_mut(), 0);
    // SAFETY: the domain's pointer is valid for as long as `domain` lives; libvirt writes to the three locals, and allocates
    // the array itself.
    let outcome = unsafe { virt_sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut parameters, &mut count, 0) };
    if outcome < 0 {
        return Err(Error::last_error());
    }
    let operation = |name: &CStr| {
        let mut value = 0;
        // SAFETY: the array is libvirt's own and has `count` elements; it may be null where that is 0.
        let found = unsafe { virt_sys::virTypedParamsGetInt(parameters, count, name.as_ptr(), &mut value) };
        u32::try_from(value).ok().filter(|_| found == 1)
    };
    let milliseconds = |name: &CStr| {
        let mut value = 0;
        // SAFETY: as above.
        let found = unsafe { virt_sys::virTypedParamsGetULLong(parameters, count, name.as_ptr(), &mut value) };
        (found == 1).then_some(value)
    };
    let job = Job {
        operation: operation(virt_sys::VIR_DOMAIN_JOB_OPERATION),
        milliseconds: milliseconds(virt_sys::VIR_DOMAIN_JOB_TIME_ELAPSED),
    };
    // SAFETY: the array is libvirt's, and nobody looks at it any more.
    unsafe { virt_sys::virTypedParamsFree(parameters, count) };
    Ok((u32::try_from(kind) != Ok(virt_sys::VIR_DOMAIN_JOB_NONE)).then_some(job))
}
