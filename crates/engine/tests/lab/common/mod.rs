//! What the lab tests of the engine share: a lab, a client that reaches its hosts, and an oracle that compares disks.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvm_clone_core::event::Event;
use kvm_clone_core::plan::CloneRequest;
use kvm_clone_core::{Error, Result};
use kvm_clone_engine::{Client, ClientOptions, CloneResult, CloneSettings, Events, HostSpec, Recovery, SshOptions};
use kvm_clone_lab::{DiskSpec, Fill, Host, Lab, MachineSpec, define_machine};
use tokio_util::sync::CancellationToken;

pub const MIB: u64 = 1 << 20;

/// The agent that the workspace was built with: it lies beside the directory of the test programs.
pub fn agent() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let agent = test.parent().unwrap().parent().unwrap().join("kvm-clone-agent");
    assert!(agent.exists(), "build it first: cargo build -p kvm-clone-agent");
    agent
}

pub fn options(lab: &Lab) -> ClientOptions {
    let mut options = ClientOptions::new(agent(), lab.dir().join("journal.db"));
    options.ssh = SshOptions { configs: vec![lab.ssh_config()], ..SshOptions::default() };
    options
}

pub async fn client(lab: &Lab) -> Client {
    Client::new(options(lab)).await.unwrap()
}

pub fn spec(text: &str) -> HostSpec {
    HostSpec::from(text.parse::<kvm_clone_core::host::HostAddr>().unwrap())
}

/// A lab with alpha and beta; none where there can be none.
pub fn two_hosts(test: &str) -> Option<(Lab, [Host; 2])> {
    if !kvm_clone_lab::available(test) {
        return None;
    }
    let lab = Lab::new().unwrap();
    let names = ["alpha", "beta"].map(kvm_clone_lab::HostSpec::named);
    let hosts = lab.hosts(names.into()).unwrap();
    Some((lab, hosts.try_into().unwrap()))
}

/// A machine with a qcow2 and a raw disk of random data, holes and zeroes.
pub fn make_machine(host: &Host, name: &str, bytes: u64) -> kvm_clone_lab::Machine {
    let fill = |seed| Fill::Random { seed, bytes };
    let machine = MachineSpec::named(name)
        .disk(DiskSpec::qcow2("vda", 4 * bytes).fill(fill(1)))
        .disk(DiskSpec::raw("vdb", 3 * bytes).fill(fill(2)));
    define_machine(host, machine).unwrap()
}

/// Events that are kept for looking at.
#[derive(Clone, Default)]
pub struct Seen(pub Arc<Mutex<Vec<Event>>>);

impl Seen {
    pub fn sink(&self) -> Events {
        let seen = Arc::clone(&self.0);
        Arc::new(move |event| seen.lock().unwrap().push(event))
    }
}

pub fn silent() -> Events {
    Arc::new(|_| {})
}

pub async fn clone(client: &Client, from: &str, to: &str, name: &str) -> Result<CloneResult> {
    clone_with(client, from, to, name, CloneRequest::default(), &CloneSettings::default()).await
}

pub async fn clone_with(
    client: &Client,
    from: &str,
    to: &str,
    name: &str,
    request: CloneRequest,
    settings: &CloneSettings,
) -> Result<CloneResult> {
    let prepared = client.prepare(&spec(from), &spec(to), &name.parse()?, request, Recovery::Act, silent()).await?;
    prepared.execute(settings, silent(), CancellationToken::new()).await
}

/// Both images hold the same bytes, as qemu reads them.
pub fn assert_same_contents(a: &Path, a_format: &str, b: &Path, b_format: &str) {
    let compared =
        Command::new("qemu-img").args(["compare", "-f", a_format, "-F", b_format]).arg(a).arg(b).output().unwrap();
    let said = String::from_utf8_lossy(&compared.stdout).into_owned() + &String::from_utf8_lossy(&compared.stderr);
    assert!(compared.status.success(), "{} and {}: {said}", a.display(), b.display());
}

/// Bytes that a file takes on its file system.
pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Nothing of ours is left on a host but what may stay: agents, manifests, the empty directories.
pub fn assert_nothing_left(host: &Host) {
    kvm_clone_lab::fault::wait_gone(host, "kvm-clone-agent", Duration::from_secs(40)).unwrap();
    for (what, left) in [
        ("staging", staging(host).iter().map(|path| path.display().to_string()).collect()),
        ("markers", host.names_in("/var/lib/kvm-clone/operations").unwrap()),
        ("sessions", host.names_in("/run/kvm-clone/sessions").unwrap()),
    ] {
        assert!(left.is_empty(), "{what} are left on {}: {left:?}", host.name());
    }
}

/// Images of ours that are not finished, as the machine reaches them.
pub fn staging(host: &Host) -> Vec<PathBuf> {
    let dir = "/var/lib/libvirt/images";
    let names = host.names_in(dir).unwrap().into_iter().filter(|name| name.contains(".kvm-clone"));
    names.map(|name| host.path(&format!("{dir}/{name}"))).collect()
}

pub fn machines(host: &Host) -> Vec<String> {
    let names = host.exec(&["virsh", "list", "--all", "--name"]).unwrap();
    names.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The error of a code, as its number.
pub fn number(error: &Error) -> u16 {
    error.code.number()
}
