//! Where settings come from, and what is refused.
#![allow(clippy::unwrap_used)]

use super::*;

fn from_file(text: &str) -> Result<Settings> {
    let mut settings = Settings::defaults()?;
    file::take(&mut settings, Path::new("/c.toml"), text)?;
    Ok(settings)
}

#[test]
fn every_default_is_a_good_value() {
    let settings = Settings::defaults().unwrap();
    assert_eq!(settings.rows().len(), SECTIONS.iter().map(|(_, keys)| keys.len()).sum::<usize>());
    assert_eq!(settings.transfer.parallel.value.get(), 4);
    assert_eq!(settings.ssh.port.value, Optional(None));
}

#[test]
fn a_file_is_read_with_the_lines_of_its_values() {
    let settings = from_file("[ssh]\n\nport = 2222\n[transfer]\nverify = false # fast\n").unwrap();
    assert_eq!(settings.ssh.port.value.0.unwrap().get(), 2222);
    assert_eq!(settings.ssh.port.origin, Origin::File { path: "/c.toml".into(), line: 3 });
    assert_eq!(settings.transfer.verify.value, VerifyMode::Off);
}

#[test]
fn the_environment_wins_over_the_file() {
    let mut settings = from_file("[transfer]\nparallel = 2\nstall_timeout = 9\n").unwrap();
    let variables = [("KVM_CLONE_TRANSFER_PARALLEL", "8"), ("KVM_CLONE_LAB", "x"), ("KVM_CLONE_OTHER_KEY", "x")];
    let variables = variables.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    settings.take_environment(&variables).unwrap();
    assert_eq!(settings.transfer.parallel.value.get(), 8);
    assert_eq!(settings.transfer.parallel.origin.to_string(), "environment KVM_CLONE_TRANSFER_PARALLEL");
    assert_eq!(settings.transfer.stall_timeout.value.get(), 9);
}

#[test]
fn a_wrong_variable_is_named() {
    for (name, text) in [("KVM_CLONE_SSH_PROT", "1"), ("KVM_CLONE_SSH_PORT", "0")] {
        let variables = [(name.to_owned(), text.to_owned())].into();
        let error = Settings::defaults().unwrap().take_environment(&variables).unwrap_err();
        assert_eq!((error.code, error.context["variable"].as_str()), (Code::Configuration, name));
    }
}

#[test]
fn the_inventory_is_read() {
    let settings = from_file(
        "[hosts.alpha]\naddress = \"10.0.0.1\"\nuser = \"ops\"\nport = 2200\nsudo = false\npool = \"fast\"\n\
         networks = { lan = \"br0\", dmz = \"none\" }\n[hosts.beta.networks]\nlan = \"default\"\n",
    )
    .unwrap();
    let alpha = &settings.hosts["alpha"];
    assert_eq!((alpha.port, alpha.sudo, alpha.user.as_deref()), (Some(2200), Some(false), Some("ops")));
    assert_eq!(alpha.networks["dmz"], "none");
    assert_eq!(settings.hosts["beta"].networks["lan"], "default");
}

#[test]
fn what_is_wrong_in_a_file_is_named_with_its_line() {
    let cases = [
        ("[ssh]\nprot = 22\n", "2", "ssh.prot"),
        ("\n[shs]\nport = 22\n", "2", "shs"),
        ("parallel = 4\n", "1", "there is no section [parallel]"),
        ("[ssh]\n\nport = 99999\n", "3", "ssh.port"),
        ("[ssh]\nport = [22]\n", "2", "ssh.port"),
        ("[transfer]\nverify = \"perhaps\"\n", "2", "transfer.verify"),
        ("[state]\nurl = \"postgres://x\"\n", "2", "state.url"),
        ("[hosts.alpha]\nadress = \"a\"\n", "2", "hosts.alpha.adress"),
        ("[hosts.alpha]\nuser = \"-x\"\n", "2", "hosts.alpha.user"),
        ("[hosts.alpha]\nsudo = \"yes\"\n", "2", "hosts.alpha.sudo"),
        ("[hosts.local]\n", "1", "hosts.local"),
        ("[hosts.\"a b\"]\n", "1", "hosts.a b"),
        ("[hosts]\nalpha = 1\n", "2", "hosts.alpha"),
        ("[ssh\n", "1", "not TOML"),
    ];
    for (text, line, words) in cases {
        let error = from_file(text).unwrap_err();
        assert_eq!(error.code, Code::Configuration, "{text}");
        assert_eq!(error.context["line"], line, "{text}: {error}");
        assert_eq!(error.context["file"], "/c.toml", "{text}");
        assert!(error.message.contains(words), "{text}: {error}");
    }
}
