//! The configuration: begun, shown, overridden, refused.
#![allow(clippy::unwrap_used)]

mod common;

use common::{TestEnvironment, json};

#[test]
fn init_writes_a_file_that_changes_nothing_and_is_not_overwritten() {
    let environment = TestEnvironment::new();
    let before = environment.run(&["config", "show"]).stdout;
    assert_eq!(environment.run(&["config", "init"]).status, 0);
    let file = std::fs::read_to_string(environment.config()).unwrap();
    insta::assert_snapshot!("init", file);
    assert_eq!(environment.run(&["config", "show"]).stdout, before);

    environment.write_config("[ssh]\nport = 23\n");
    let again = environment.run(&["config", "init"]);
    assert_eq!(again.status, 78);
    assert!(again.stderr.contains("is there already"), "{}", again.stderr);
    assert_eq!(std::fs::read_to_string(environment.config()).unwrap(), "[ssh]\nport = 23\n");
}

#[test]
fn every_setting_of_a_new_file_can_be_uncommented() {
    let environment = TestEnvironment::new();
    environment.run(&["config", "init"]);
    let file = std::fs::read_to_string(environment.config()).unwrap();
    let uncommented: Vec<&str> =
        file.lines().map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line)).collect();
    environment.write_config(&uncommented.join("\n"));
    let ended = environment.run(&["config", "show"]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("[hosts.NAME]"), "{}", ended.stdout);
}

#[test]
fn show_says_where_each_setting_came_from() {
    let environment = TestEnvironment::new();
    environment.write_config(
        "[transfer]\nparallel = 2\nstall_timeout = 60\n\n[hosts.alpha]\naddress = \"ops@192.0.2.1\"\nsudo = false\n\
         networks = { lan = \"br0\" }\n",
    );
    let show = |arguments: &[&str]| {
        environment.ended(&environment.command(arguments).env("KVM_CLONE_TRANSFER_PARALLEL", "8").output().unwrap())
    };
    let text = show(&["config", "show", "--log-level", "info"]);
    insta::assert_snapshot!("show", text.stdout);
    let document = json(&show(&["config", "show", "-o", "json"]).stdout);
    assert_eq!(document["transfer"]["parallel"]["value"], 8);
    assert_eq!(document["transfer"]["parallel"]["origin"], "environment KVM_CLONE_TRANSFER_PARALLEL");
    assert_eq!(document["transfer"]["stall_timeout"]["origin"], "[DIR]/config/kvm-clone/config.toml:3");
    assert_eq!(document["ssh"]["port"]["value"], serde_json::Value::Null);
    assert_eq!(document["hosts"]["alpha"]["address"], "ops@192.0.2.1");
    assert!(show(&["config", "show", "-o", "yaml"]).stdout.contains("\n  parallel:\n"));
}

#[test]
fn what_show_prints_is_a_configuration_file() {
    let environment = TestEnvironment::new();
    environment
        .write_config("[ssh]\nuser = \"ops\"\n[hosts.\"a.b\"]\nport = 23\nnetworks = { \"my lan\" = \"br0\" }\n");
    let shown = environment.command(&["config", "show"]).output().unwrap().stdout;
    std::fs::write(environment.path("again.toml"), &shown).unwrap();
    let again = environment.run(&["config", "show", "-c", "again.toml", "-o", "json"]);
    let first = environment.run(&["config", "show", "-o", "json"]);
    assert_eq!(again.status, 0, "{}", again.stderr);
    assert_eq!(json(&again.stdout)["hosts"], json(&first.stdout)["hosts"]);
}

#[test]
fn path_is_that_of_the_file_which_is_read() {
    let environment = TestEnvironment::new();
    assert_eq!(environment.run(&["config", "path"]).stdout, "[DIR]/config/kvm-clone/config.toml\n");
    assert_eq!(environment.run(&["config", "path", "-c", "x.toml"]).stdout, "x.toml\n");
    // It is needed most when the file is broken.
    environment.write_config("[ssh\n");
    assert_eq!(environment.run(&["config", "path"]).status, 0);
}

#[test]
fn a_wrong_file_is_refused_with_1001_and_its_line() {
    let environment = TestEnvironment::new();
    let mut shown = Vec::new();
    for text in ["[ssh]\nprot = 22\n", "[sssh]\n", "[transfer]\n\nparallel = 64\n", "[ssh\n", "[hosts.local]\n"] {
        environment.write_config(text);
        let ended = environment.run(&["list"]);
        assert_eq!(ended.status, 78, "{text}");
        shown.push(format!("{text}---\n{}", ended.stderr));
    }
    insta::assert_snapshot!("wrong", shown.join("\n"));
}

#[test]
fn a_wrong_variable_is_refused_with_1001_and_its_name() {
    let environment = TestEnvironment::new();
    let ended = environment
        .ended(&environment.command(&["list", "-o", "json"]).env("KVM_CLONE_SSH_PORT", "ssh").output().unwrap());
    assert_eq!(ended.status, 78);
    let error = &json(&ended.stdout)["error"];
    assert_eq!((&error["code"], &error["context"]["variable"]), (&1001.into(), &"KVM_CLONE_SSH_PORT".into()));
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let ended = TestEnvironment::new().run(&["list", "-c", "nowhere.toml"]);
    assert_eq!(ended.status, 78);
    assert!(ended.stderr.contains("there is no configuration file nowhere.toml"), "{}", ended.stderr);
}

#[test]
fn set_and_unset_change_one_line_of_the_file() {
    let environment = TestEnvironment::new();
    // There is no file yet.
    assert_eq!(environment.run(&["config", "set", "transfer.parallel", "8"]).status, 0);
    assert_eq!(std::fs::read_to_string(environment.config()).unwrap(), "[transfer]\nparallel = 8\n");
    let text = "# ours\n[transfer]\nparallel = 2 # the old switch\n";
    environment.write_config(text);
    assert_eq!(environment.run(&["config", "set", "transfer.parallel", "3"]).status, 0);
    assert_eq!(environment.run(&["config", "set", "hosts.backup.address", "ops@192.0.2.1:2222"]).status, 0);
    let shown = json(&environment.run(&["config", "show", "-o", "json"]).stdout);
    assert_eq!(shown["transfer"]["parallel"]["value"], 3);
    assert_eq!(shown["hosts"]["backup"]["address"], "ops@192.0.2.1:2222");
    for (value, status) in [("7,14d", 0), ("all", 0), ("14", 0), ("100", 78), ("14y", 78), ("7,8", 78)] {
        let set = environment.run(&["config", "set", "safety.snapshot_retention", value]);
        assert_eq!(set.status, status, "{value}: {}", set.stderr);
    }
    let unset = environment.run(&["config", "unset", "hosts.backup.address"]);
    assert_eq!(unset.status, 0);
    let file = std::fs::read_to_string(environment.config()).unwrap();
    assert!(file.starts_with("# ours\n[transfer]\nparallel = 3 # the old switch\n"), "{file}");
    assert!(!file.contains("192.0.2.1"), "{file}");
}

#[test]
fn set_refuses_what_is_no_setting_and_leaves_the_file() {
    let environment = TestEnvironment::new();
    let text = "[transfer]\nparallel = 2\n";
    environment.write_config(text);
    let mut shown = Vec::new();
    let tried = [
        ["transfer.lanes", "8"],
        ["transfer.parallel", "64"],
        ["transfer.block_size", "3K"],
        ["transfer.block_size", "5000"],
        ["transfer.block_size", "2K"],
        ["transfer.block_size", "2M"],
        ["parallel", "8"],
        ["hosts.a.prot", "22"],
        ["hosts.a.port", "many"],
    ];
    for [key, value] in tried {
        let ended = environment.run(&["config", "set", key, value]);
        assert!([64, 78].contains(&ended.status), "{key}: {}", ended.status);
        shown.push(format!("{key} = {value}\n{}", ended.stderr));
    }
    assert_eq!(environment.run(&["config", "unset", "transfer.lanes"]).status, 78);
    assert_eq!(std::fs::read_to_string(environment.config()).unwrap(), text);
    insta::assert_snapshot!("set_refused", shown.join("\n"));
}
