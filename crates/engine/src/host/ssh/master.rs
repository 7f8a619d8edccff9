//! Starting OpenSSH as the master of a connection: it logs in, goes into the background, and takes sessions over its socket.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kvm_clone_core::Error;
use kvm_clone_core::host::SshAddr;
use tokio::process::Command;

use super::SshOptions;
use super::refusal::{Refusal, silent};
use super::undelayed::Undelayed;

/// How long a master outlives its last session when nobody ends it: after a kill of ours it ends by itself.
const IDLE: &str = "ControlPersist=60";
/// How often the two ends make sure of each other, in seconds.
const ALIVE: &str = "ServerAliveInterval=10";
/// Logs in to a host; returns the master's socket, which is below `dir`, and its connection.
pub(super) async fn launch(
    host: &SshAddr,
    options: &SshOptions,
    config: &Path,
    dir: &Path,
) -> Result<(PathBuf, Undelayed), Refusal> {
    let own = tempfile::Builder::new().prefix("master.").tempdir_in(dir);
    // It goes with the directory that it lies in.
    let own = own.map_err(|error| Error::internal(format!("making a directory for SSH: {error}")))?.keep();
    let (socket, log) = (own.join("socket"), own.join("log"));
    let mut child = command(host, options, config, &socket, &log)
        .spawn()
        .map_err(|error| Error::connection(format!("starting ssh: {error}")).help("Install the OpenSSH client"))?;
    // ConnectTimeout covers everything up to the key exchange; a server that stops answering later is caught here.
    let patience = options.connect_timeout * 2 + Duration::from_secs(5);
    // The login succeeded when the master has gone into the background.
    let mut connection = Undelayed::of(child.id());
    match tokio::time::timeout(patience, connection.during(child.wait())).await {
        Ok(Ok(status)) if status.success() => Ok((socket, connection)),
        Ok(Ok(_)) => {
            let log = tokio::fs::read(&log).await.unwrap_or_default();
            Err(Refusal::of(&String::from_utf8_lossy(&log), &host.name))
        }
        Ok(Err(error)) => Err(Error::internal(format!("waiting for ssh: {error}")).into()),
        Err(_) => Err(silent(&host.name).into()),
    }
}

fn command(host: &SshAddr, options: &SshOptions, config: &Path, socket: &Path, log: &Path) -> Command {
    let mut command = Command::new("ssh");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.arg("-F").arg(config).arg("-E").arg(log).arg("-S").arg(socket).args(["-M", "-f", "-N"]);
    // OpenSSH counts in whole seconds, and takes none for no limit.
    let timeout = options.connect_timeout.as_secs().max(1);
    let unknown = if options.accept_new_hosts { "accept-new" } else { "yes" };
    let settings = [
        IDLE,
        ALIVE,
        "BatchMode=yes",
        &format!("ConnectTimeout={timeout}"),
        &format!("StrictHostKeyChecking={unknown}"),
    ];
    command.args(settings.into_iter().flat_map(|setting| ["-o", setting]));
    if let Some(port) = host.port.or(options.port) {
        command.arg("-p").arg(port.to_string());
    }
    if let Some(user) = host.user.as_ref().or(options.user.as_ref()) {
        command.arg("-l").arg(user);
    }
    if let Some(key) = &options.key {
        command.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(key);
    }
    command.arg("--").arg(&host.name);
    command
}
