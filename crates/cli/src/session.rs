//! What every command that uses hosts needs.

use std::path::{Path, PathBuf};

use kvm_clone_core::{Code, Error, Result};
use kvm_clone_engine::{Client, Operations};

use crate::args::Global;
use crate::interrupt::{self, Interrupts};
use crate::logging;
use crate::render::{Output, Screen, Style};
use crate::request;
use crate::settings::Settings;
use crate::surroundings::Surroundings;

/// One run of the command.
pub(crate) struct Session {
    pub(crate) settings: Settings,
    pub(crate) surroundings: Surroundings,
    pub(crate) output: Output,
    pub(crate) screen: Screen,
    pub(crate) interrupts: Interrupts,
    /// How progress is shown.
    pub(crate) style: Style,
    /// Questions are answered with yes.
    pub(crate) yes: bool,
}

impl Session {
    /// Begins to log and to watch for signals.
    pub(crate) fn new(global: &Global, settings: Settings, surroundings: Surroundings, output: Output) -> Result<Self> {
        let screen = Screen::default();
        logging::begin(&settings, &screen, output.format);
        let style = Style::choose(output.format, global.quiet, &surroundings);
        let interrupts = interrupt::watch(screen.clone(), style, surroundings.hangup_ignored)?;
        Ok(Self { settings, surroundings, output, screen, interrupts, style, yes: global.yes })
    }

    /// What the journal knows of operations.
    pub(crate) async fn operations(&self) -> Result<Operations> {
        Operations::open(&request::journal(&self.settings, &self.surroundings)?).await
    }

    /// The engine; connects to nothing yet.
    pub(crate) async fn client(&self) -> Result<Client> {
        let agent = find_agent()?;
        Client::new(request::client_options(&self.settings, &self.surroundings, agent)?).await
    }
}

const PACKAGED: &str = "/usr/libexec/kvm-clone-agent";

/// The agent program: beside this one, in the `libexec` beside its directory, or where packages put it.
fn find_agent() -> Result<PathBuf> {
    let ours = std::env::current_exe().map_err(|error| Error::internal(format!("where this program is: {error}")))?;
    let candidates = agent_candidates(&ours);
    candidates.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let looked: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
        Error::new(Code::Configuration, "the agent program kvm-clone-agent is not installed")
            .with("looked_at", looked.join(", "))
            .help("Install kvm-clone-agent beside kvm-clone, or the package that holds both")
    })
}

fn agent_candidates(ours: &Path) -> Vec<PathBuf> {
    let dir = ours.parent().unwrap_or(Path::new("/"));
    let prefix = dir.parent().unwrap_or(Path::new("/"));
    vec![dir.join("kvm-clone-agent"), prefix.join("libexec/kvm-clone-agent"), PACKAGED.into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_looked_for_beside_us_first() {
        let found = agent_candidates(Path::new("/opt/kc/bin/kvm-clone"));
        let expected = ["/opt/kc/bin/kvm-clone-agent", "/opt/kc/libexec/kvm-clone-agent", PACKAGED];
        assert_eq!(found, expected.map(PathBuf::from));
    }
}
