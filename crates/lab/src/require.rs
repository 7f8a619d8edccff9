//! Whether this process can raise a lab at all.

use std::io::Write as _;

/// True where a lab can be raised. Otherwise says in one line why a test is skipped; under `KVM_CLONE_REQUIRE_LAB=1`, as
/// in CI, the test fails instead, so a skipped lab cannot pass for a green one.
///
/// # Panics
/// Where a lab is required and cannot be raised.
#[must_use]
pub fn available(test: &str) -> bool {
    let Some(reason) = obstacle() else { return true };
    let required = std::env::var_os("KVM_CLONE_REQUIRE_LAB").is_some_and(|value| value == "1");
    assert!(!required, "{test} needs a lab, and there can be none here: {reason}");
    // Past the test harness, which would swallow what a passing test prints.
    let _ = writeln!(std::io::stderr(), "{test} skipped: {reason}");
    false
}

fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("a lab needs root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&path).any(|directory| directory.join(name).exists());
    let programs = ["libvirtd", "sshd", "qemu-system-x86_64", "ip", "nsenter", "unshare"];
    let missing = programs.into_iter().find(|name| !found(name))?;
    Some(format!("{missing} is not installed (scripts/install-packages)"))
}
