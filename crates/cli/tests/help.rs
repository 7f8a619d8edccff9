//! What `--help` says, and what the shells and manual pages get.
#![allow(clippy::unwrap_used)]

mod common;

use common::TestEnvironment;

const COMMANDS: [&str; 12] = [
    "clone",
    "sync",
    "verify",
    "resume",
    "list",
    "doctor",
    "status",
    "cancel",
    "recover",
    "config",
    "completions",
    "man",
];

#[test]
fn help_of_every_command() {
    let environment = TestEnvironment::new();
    let top = environment.run(&["--help"]);
    assert_eq!(top.status, 0);
    insta::assert_snapshot!("kvm-clone", top.stdout);
    for command in COMMANDS {
        let help = environment.run(&[command, "--help"]);
        assert_eq!((help.status, help.stderr.as_str()), (0, ""), "{command}");
        assert!(help.stdout.contains("Examples:\n"), "{command} has no examples");
        insta::assert_snapshot!(command, help.stdout);
    }
}

#[test]
fn the_commands_of_config_have_examples() {
    let environment = TestEnvironment::new();
    for command in ["init", "show", "path"] {
        assert!(environment.run(&["config", command, "--help"]).stdout.contains("Examples:\n"), "{command}");
    }
}

#[test]
fn the_version_is_said() {
    let ended = TestEnvironment::new().run(&["--version"]);
    assert_eq!((ended.status, ended.stdout), (0, concat!("kvm-clone ", env!("CARGO_PKG_VERSION"), "\n").to_owned()));
}

#[test]
fn shells_get_completions() {
    let environment = TestEnvironment::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = environment.run(&["completions", shell]);
        assert_eq!(ended.status, 0, "{shell}");
        assert!(ended.stdout.contains("--preserve-mac") || ended.stdout.contains("preserve-mac"), "{shell}");
    }
}

#[test]
fn manual_pages_are_printed_and_written() {
    let environment = TestEnvironment::new();
    let page = environment.run(&["man"]);
    assert!(page.stdout.contains(".TH kvm-clone 1"), "{}", page.stdout);
    assert_eq!(environment.run(&["man", "--dir", "pages"]).status, 0);
    for command in COMMANDS {
        assert!(common::exists(&environment.path(&format!("pages/kvm-clone-{command}.1"))), "{command}");
    }
}
