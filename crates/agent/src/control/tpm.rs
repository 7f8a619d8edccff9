//! Where this host's libvirt keeps the states of emulated TPMs, and whose they must be: `qemu_conf.c` of libvirt,
//! `virQEMUDriverConfigNew`.

use std::fs;

use super::files::user_config;

/// Users that libvirt has been built with, the usual one first.
const USUAL: [&str; 2] = ["tss", "swtpm"];

/// The directory that holds a directory for each machine.
pub(super) fn dir() -> String {
    if rustix::process::geteuid().is_root() {
        "/var/lib/libvirt/swtpm".to_owned()
    } else {
        user_config().join("libvirt/qemu/swtpm").display().to_string()
    }
}

/// User and group that the emulator runs as; none where that is the user that we are.
pub(super) fn owner() -> Option<(u32, u32)> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let is_root = rustix::process::geteuid().is_root();
    is_root.then(|| {
        let settings = read("/etc/libvirt/qemu.conf");
        (id(&settings, "swtpm_user", &read("/etc/passwd")), id(&settings, "swtpm_group", &read("/etc/group")))
    })
}

/// The number of who is set; else of who is usual and there; else root, which is what libvirt falls back to as well.
fn id(settings: &str, key: &str, known: &str) -> u32 {
    let number = |name: &str| {
        let listed = known.lines().map(|line| line.split(':')).find_map(|mut fields| {
            let is_it = fields.next() == Some(name);
            fields.nth(1).filter(|_| is_it)?.parse().ok()
        });
        listed.or_else(|| name.strip_prefix('+').unwrap_or(name).parse().ok())
    };
    let names = set(settings, key).into_iter().chain(USUAL);
    names.filter_map(number).next().unwrap_or(0)
}

/// The value that a file of settings gives to a key; the one that it tells as the default in a comment, where it gives none.
fn set<'a>(settings: &'a str, key: &str) -> Option<&'a str> {
    let value = |line: &'a str| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches('"'))
    };
    let given = settings.lines().filter_map(value).next_back();
    given.or_else(|| settings.lines().filter_map(|line| value(line.trim_start().strip_prefix('#')?)).next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\ntss:x:103:108::/:/bin/false\nswtpm:x:110:112::/:/bin/false\n";

    #[test]
    fn the_emulators_user_is_who_is_set_or_usual() {
        for (settings, expected) in [
            ("swtpm_user = \"swtpm\"\n", 110),
            ("#swtpm_user = \"swtpm\"\nswtpm_user = \"tss\"\n", 103),
            ("#swtpm_user = \"swtpm\"\n", 110),
            ("swtpm_user=\"+77\"\n", 77),
            ("swtpm_user = \"0\"\n", 0),
            ("swtpm_user_x = \"swtpm\"\n", 103),
            ("#swtpm_user = \"nobody-here\"\n", 103),
            ("", 103),
        ] {
            assert_eq!(id(settings, "swtpm_user", PASSWD), expected, "{settings}");
        }
        assert_eq!(id("", "swtpm_user", "root:x:0:0::/root:/bin/sh\n"), 0);
    }
}
