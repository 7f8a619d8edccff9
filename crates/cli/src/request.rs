//! From what the user wrote to what the engine takes.

use std::path::PathBuf;
use std::time::Duration;

use kvm_clone_core::checksum::Algorithm;
use kvm_clone_core::domain::{Identity, Reduction};
use kvm_clone_core::host::HostAddr;
use kvm_clone_core::name::SourceName;
use kvm_clone_core::plan::{Candidates, CloneRequest, Existing, NetworkTarget, Presence, Safety, SyncRequest, Update};
use kvm_clone_core::retry::RetryPolicy;
use kvm_clone_core::wire::lane::Verify;
use kvm_clone_core::{Code, Error, Result};
use kvm_clone_engine::{ClientOptions, CloneSettings, HostSpec, Privilege, RoutePolicy, SshOptions};

use crate::args::{CloneArgs, SyncArgs, VerifyArgs};
use crate::settings::{HostEntry, HostKeyPolicy, Route, Seconds, Settings, Switch, VerifyMode};
use crate::surroundings::Surroundings;

/// A host as the user named it, and how it is reached.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// As the user named it.
    pub(crate) name: String,
    /// How it is reached.
    pub(crate) spec: HostSpec,
    entry: HostEntry,
}

/// Looks a host up in the inventory; what is not there is for `ssh` to know.
pub(crate) fn host(settings: &Settings, given: &HostAddr) -> Host {
    let entry = match given {
        HostAddr::Ssh(ssh) => settings.hosts.get(&ssh.name).cloned().unwrap_or_default(),
        HostAddr::Local => HostEntry::default(),
    };
    let mut addr = entry.address.clone().unwrap_or_else(|| given.clone());
    if let (HostAddr::Ssh(addr), HostAddr::Ssh(given)) = (&mut addr, given) {
        // What the user wrote now wins over what the inventory says, and its keys over its address.
        addr.user = given.user.clone().or_else(|| entry.user.clone()).or_else(|| addr.user.take());
        addr.port = given.port.or(entry.port).or(addr.port);
    }
    let privilege = if entry.sudo.unwrap_or(true) { Privilege::Root } else { Privilege::User };
    Host { name: given.to_string(), spec: HostSpec { addr, privilege }, entry }
}

/// Each host once, in the order in which they were named.
pub(crate) fn hosts(settings: &Settings, given: &[HostAddr]) -> Vec<Host> {
    let mut all: Vec<Host> = Vec::new();
    for addr in given {
        let host = host(settings, addr);
        if all.iter().all(|other| other.name != host.name) {
            all.push(host);
        }
    }
    all
}

/// What the new machine is to be.
pub(crate) fn clone_request(args: &CloneArgs, settings: &Settings, dest: &Host) -> Result<CloneRequest> {
    let kept = |keep: bool| if keep { Identity::Kept } else { Identity::New };
    let pool = match &args.storage.pool {
        Some(pool) => Some(pool.clone()),
        None => dest.entry.pool.as_deref().map(str::parse).transpose()?,
    };
    let request = CloneRequest {
        new_name: args.made.new_name.clone(),
        identity: kept(args.made.replica),
        uuid: kept(args.made.preserve_uuid),
        macs: kept(args.made.preserve_mac),
        existing: if args.storage.force { Existing::Replace } else { Existing::Refuse },
        networks: networks(args)?,
        usual_networks: usual_networks(dest)?,
        pool,
        disk_format: args.storage.disk_format,
        block_size: settings.transfer.block_size.value.0.unwrap_or_default(),
        copy_media: args.storage.copy_media,
        keep_snapshots: args.storage.keep_snapshots,
        reduction: Reduction {
            disks: args.left_out.exclude.iter().cloned().collect(),
            host_devices: args.left_out.drop_hostdev,
            shared_directories: args.left_out.drop_fs,
            tuning: args.left_out.drop_tuning,
        },
        any_machine: args.made.machine.is_some(),
        tpm: args.made.tpm.unwrap_or_default(),
        presence: presence(args.live, args.offline),
        discard_managed_save: args.left_out.discard_managed_save,
        space_margin_percent: settings.safety.space_margin_percent.value.narrow()?,
        safety: Safety::default(),
    };
    request.check()?;
    Ok(request)
}

const fn presence(live: bool, offline: bool) -> Presence {
    match (live, offline) {
        (true, _) => Presence::Live,
        (_, true) => Presence::Offline,
        _ => Presence::Any,
    }
}

/// The machine that is compared with, if one was named: by default of the same name.
pub(crate) fn against(args: &VerifyArgs, settings: &Settings) -> Result<Option<(Host, SourceName)>> {
    let Some([addr, name @ ..]) = args.against.as_deref() else { return Ok(None) };
    let named = |error: Error| error.with("argument", "--against");
    let addr: HostAddr = addr.parse().map_err(named)?;
    let name = name.first().map_or_else(|| Ok(args.machine.clone()), |name| name.parse()).map_err(named)?;
    Ok(Some((host(settings, &addr), name)))
}

/// How a replica is to be brought to a newer point.
pub(crate) fn sync_request(args: &SyncArgs, settings: &Settings) -> Result<SyncRequest> {
    let candidates = match (args.update.full, args.update.delta_only) {
        (true, _) => Candidates::All,
        (_, true) => Candidates::OnlyDiffering,
        _ => Candidates::Differing,
    };
    Ok(SyncRequest {
        replica: args.target_name.clone(),
        update: Update {
            candidates,
            disks_only: args.update.disks_only,
            in_place: args.update.in_place,
            remove_lost: args.update.remove_lost_disks,
        },
        block_size: settings.transfer.block_size.value.0,
        presence: presence(args.live, args.offline),
        discard_managed_save: args.update.discard_managed_save,
        space_margin_percent: settings.safety.space_margin_percent.value.narrow()?,
        safety: Safety {
            keep: settings.safety.safety_snapshot.value == Switch::On,
            retention: settings.safety.snapshot_retention.value,
        },
    })
}

/// Where the options say that networks go.
fn networks(args: &CloneArgs) -> Result<Vec<(String, NetworkTarget)>> {
    let all: Vec<_> = args.made.networks.iter().map(|change| (change.old.clone(), change.new.clone())).collect();
    for (index, (old, _)) in all.iter().enumerate() {
        if all.iter().take(index).any(|(other, _)| other == old) {
            return Err(Error::validation(format!("--network says twice where {old} goes"))
                .with("network", old)
                .help("Leave one of them out"));
        }
    }
    Ok(all)
}

/// Where the inventory says that networks go.
fn usual_networks(dest: &Host) -> Result<Vec<(String, NetworkTarget)>> {
    let target = |(old, new): (&String, &String)| Ok((old.clone(), crate::args::network_target(new)?));
    dest.entry.networks.iter().map(target).collect()
}

fn span(seconds: Seconds) -> Duration {
    Duration::from_secs(seconds.get())
}

/// How a copy is carried out, within so many seconds.
pub(crate) fn copy_settings(
    checksum: Option<Algorithm>,
    settings: &Settings,
    limit: Option<Seconds>,
) -> Result<CloneSettings> {
    Ok(CloneSettings {
        parallel: settings.transfer.parallel.value.narrow()?,
        route: match settings.transfer.route.value {
            Route::Auto => RoutePolicy::Auto,
            Route::Relay => RoutePolicy::Relay,
            Route::Direct => RoutePolicy::Direct,
        },
        verify: match settings.transfer.verify.value {
            VerifyMode::On => Verify::On,
            VerifyMode::Off => Verify::Off,
            VerifyMode::Media => Verify::Media,
        },
        timeout: limit.map(span),
        checksum,
        scratch_limit: settings.safety.scratch_limit.value.0.map(|size| size.0),
        ..CloneSettings::default()
    })
}

/// What is tried again.
pub(crate) fn retry_policy(settings: &Settings) -> Result<RetryPolicy> {
    Ok(RetryPolicy {
        attempts: settings.retry.attempts.value.narrow()?,
        base_delay: span(settings.retry.base_delay.value),
        max_delay: span(settings.retry.max_delay.value),
    })
}

/// Where the journal is.
pub(crate) fn journal(settings: &Settings, surroundings: &Surroundings) -> Result<PathBuf> {
    match &settings.state.url.value.0 {
        Some(url) => Ok(url.0.clone()),
        None => surroundings.journal().ok_or_else(|| {
            Error::new(Code::Configuration, "there is no place for the journal: HOME is not set")
                .help("Set HOME, or state.url to sqlite:/PATH")
        }),
    }
}

/// How hosts are reached.
pub(crate) fn client_options(
    settings: &Settings,
    surroundings: &Surroundings,
    agent: PathBuf,
) -> Result<ClientOptions> {
    let ssh = SshOptions {
        key: settings.ssh.key_path.value.0.as_ref().map(|path| surroundings.expand(&path.0)),
        port: settings.ssh.port.value.0.map(|port| port.narrow()).transpose()?,
        user: settings.ssh.user.value.0.clone().map(|user| user.0),
        connect_timeout: span(settings.ssh.connect_timeout.value),
        accept_new_hosts: settings.ssh.host_key_policy.value == HostKeyPolicy::AcceptNew,
        configs: surroundings
            .home()
            .map(|home| home.join(".ssh/config"))
            .into_iter()
            .chain(["/etc/ssh/ssh_config".into()])
            .collect(),
    };
    Ok(ClientOptions {
        ssh,
        silence: span(settings.timeouts.silence.value),
        stall_timeout: span(settings.transfer.stall_timeout.value),
        libvirt_timeout: span(settings.libvirt.timeout.value),
        ..ClientOptions::new(agent, journal(settings, surroundings)?)
    })
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
