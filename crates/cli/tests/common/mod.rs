//! A place of its own for every test: no file, variable or terminal of the user's is seen.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use tempfile::TempDir;

/// A home, a configuration and a journal that nobody else has, and a copy of the program with a would-be agent.
pub(crate) struct TestEnvironment {
    dir: TempDir,
}

/// How a command ended.
pub(crate) struct Ended {
    /// Its exit status.
    pub(crate) status: i32,
    /// What it wrote as data.
    pub(crate) stdout: String,
    /// What it wrote beside.
    pub(crate) stderr: String,
}

impl TestEnvironment {
    /// An empty place.
    pub(crate) fn new() -> Self {
        // Beside the program, so that it can be linked instead of copied.
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let environment = Self { dir };
        let program = environment.path("bin/kvm-clone");
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        std::fs::create_dir_all(environment.path("home")).unwrap();
        let ours = env!("CARGO_BIN_EXE_kvm-clone");
        if std::fs::hard_link(ours, &program).is_err() {
            std::fs::copy(ours, &program).unwrap();
        }
        std::fs::write(environment.path("bin/kvm-clone-agent"), "nothing here reaches a host that could start it")
            .unwrap();
        environment
    }

    /// A path inside.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the user's configuration is.
    pub(crate) fn config(&self) -> PathBuf {
        self.path("config/kvm-clone/config.toml")
    }

    /// Writes the user's configuration.
    pub(crate) fn write_config(&self, text: &str) {
        std::fs::create_dir_all(self.config().parent().unwrap()).unwrap();
        std::fs::write(self.config(), text).unwrap();
    }

    /// The command, ready to be run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/kvm-clone"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_STATE_HOME", self.path("state"))
            // Also for root, whose journal is elsewhere.
            .env("KVM_CLONE_STATE_URL", format!("sqlite:{}", self.path("state/journal.db").display()))
            .env("NO_COLOR", "1")
            .current_dir(self.dir.path());
        if arguments.first() == Some(&"clone") {
            // Waiting is for the test about it.
            command.env("KVM_CLONE_RETRY_ATTEMPTS", "1");
        }
        command
    }

    /// Runs it.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.ended(&self.command(arguments).output().unwrap())
    }

    /// What a run wrote, with this place's paths and all that differs from run to run made the same.
    pub(crate) fn ended(&self, output: &Output) -> Ended {
        Ended {
            status: output.status.code().unwrap(),
            stdout: self.normal(&output.stdout),
            stderr: self.normal(&output.stderr),
        }
    }

    fn normal(&self, bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap().replace(&self.dir.path().display().to_string(), "[DIR]")
    }
}

/// The one JSON document that a command wrote.
pub(crate) fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Whether a file is there.
pub(crate) fn exists(path: &Path) -> bool {
    path.exists()
}
