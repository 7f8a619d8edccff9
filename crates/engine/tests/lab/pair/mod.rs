//! Two hosts, and a machine `web1` of the first that a test makes and clones.

use kvm_clone_core::Result;
use kvm_clone_core::plan::CloneRequest;
use kvm_clone_engine::{CloneResult, CloneSettings};
use kvm_clone_lab::{DiskSpec, Fill, Host, HostSpec, Lab, MachineSpec, available};

use crate::common::{MIB, client, clone_with};

pub struct Pair {
    pub lab: Lab,
    pub alpha: Host,
    pub beta: Host,
}

impl Pair {
    /// Two plain hosts; none where there can be no lab.
    pub fn new(test: &str) -> Option<Self> {
        Self::of(test, ["alpha", "beta"].map(HostSpec::named))
    }

    pub fn of(test: &str, hosts: [HostSpec; 2]) -> Option<Self> {
        if !available(test) {
            return None;
        }
        let lab = Lab::new().unwrap();
        let mut hosts = lab.hosts(hosts.to_vec()).unwrap();
        let (beta, alpha) = (hosts.pop().unwrap(), hosts.pop().unwrap());
        beta.provide_guest().unwrap();
        Some(Self { lab, alpha, beta })
    }

    pub async fn clone(&self, request: CloneRequest) -> Result<CloneResult> {
        let client = client(&self.lab).await;
        clone_with(&client, "alpha", "beta", "web1", request, &CloneSettings::default()).await
    }

    /// Defines a machine of the source's host.
    pub fn define(&self, xml: &str) {
        std::fs::write(self.alpha.path("/root/machine.xml"), xml).unwrap();
        self.alpha.exec(&["virsh", "-q", "define", "/root/machine.xml"]).unwrap();
    }

    /// The copy's definition.
    pub fn copy(&self) -> String {
        self.beta.exec(&["virsh", "-q", "dumpxml", "--inactive", "web1_clone"]).unwrap()
    }
}

pub fn web() -> MachineSpec {
    MachineSpec::named("web1").disk(DiskSpec::qcow2("vda", 32 * MIB).fill(Fill::Random { seed: 1, bytes: 12 * MIB }))
}
