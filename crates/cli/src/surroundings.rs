//! What the environment says, read once at the start so that nothing deeper asks it.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;

/// What is around the process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// The environment, but for what is not UTF-8.
    pub(crate) variables: BTreeMap<String, String>,
    /// Whether we are root.
    pub(crate) root: bool,
    /// Whether whoever started us wants a closed terminal to be ignored (`nohup`).
    pub(crate) hangup_ignored: bool,
    /// Whether a person can answer.
    pub(crate) stdin_terminal: bool,
    /// Whether data goes to a terminal.
    pub(crate) stdout_terminal: bool,
    /// Whether messages go to a terminal.
    pub(crate) stderr_terminal: bool,
}

impl Surroundings {
    /// Looks around.
    pub(crate) fn read() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            variables: std::env::vars_os().filter_map(text).collect(),
            root: rustix::process::geteuid().is_root(),
            hangup_ignored: std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status)),
            stdin_terminal: std::io::stdin().is_terminal(),
            stdout_terminal: std::io::stdout().is_terminal(),
            stderr_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// A variable that is set to something.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether colour and moving bars are welcome where there is a terminal.
    pub(crate) fn plain(&self) -> bool {
        self.variable("NO_COLOR").is_some()
    }

    /// Whether the terminal cannot move its cursor.
    pub(crate) fn dumb(&self) -> bool {
        self.variable("TERM").is_none_or(|term| term == "dumb")
    }

    /// The user's home directory.
    pub(crate) fn home(&self) -> Option<PathBuf> {
        self.variable("HOME").map(PathBuf::from)
    }

    /// A directory of the XDG base directory specification, which says that relative ones are to be ignored.
    fn xdg(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        let named = self.variable(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        named.or_else(|| Some(self.home()?.join(below_home)))
    }

    /// The user's configuration file.
    pub(crate) fn user_config(&self) -> Option<PathBuf> {
        Some(self.xdg("XDG_CONFIG_HOME", ".config")?.join("kvm-clone/config.toml"))
    }

    /// Where the journal is, unless a setting says otherwise.
    pub(crate) fn journal(&self) -> Option<PathBuf> {
        if self.root {
            return Some("/var/lib/kvm-clone/journal.db".into());
        }
        Some(self.xdg("XDG_STATE_HOME", ".local/state")?.join("kvm-clone/journal.db"))
    }

    /// A path that may begin with `~/`.
    pub(crate) fn expand(&self, path: &str) -> PathBuf {
        match (path.strip_prefix("~/"), self.home()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => path.into(),
        }
    }
}

/// Whether `/proc/PID/status` says that SIGHUP, whose number is 1, is ignored.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_noticed() {
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hangup("Name:\tx\nSigIgn:\t0000000000001000\n"));
    }

    fn with(variables: &[(&str, &str)]) -> Surroundings {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Surroundings { variables, ..Surroundings::default() }
    }

    #[test]
    fn xdg_directories_win_over_home_unless_relative() {
        let config = |variables: &[(&str, &str)]| with(variables).user_config();
        assert_eq!(config(&[("HOME", "/h")]), Some("/h/.config/kvm-clone/config.toml".into()));
        assert_eq!(config(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/c")]), Some("/c/kvm-clone/config.toml".into()));
        assert_eq!(
            config(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "c")]),
            Some("/h/.config/kvm-clone/config.toml".into())
        );
        assert_eq!(config(&[]), None);
    }

    #[test]
    fn root_keeps_its_journal_with_the_system() {
        let mut root = with(&[("HOME", "/root")]);
        assert_eq!(root.journal(), Some("/root/.local/state/kvm-clone/journal.db".into()));
        root.root = true;
        assert_eq!(root.journal(), Some("/var/lib/kvm-clone/journal.db".into()));
    }
}
