//! The CPUs that an emulator can show its guests.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::domain::tree::Element;
use crate::domain::unreadable;
use crate::error::Result;

/// formatdomaincaps, "CPU configuration": of one emulator, architecture, machine type and accelerator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus {
    /// The modes that are supported; none where libvirt says nothing about CPUs.
    pub modes: BTreeSet<String>,
    /// Models of custom CPUs, and whether the host can run them; nothing where libvirt does not know.
    pub models: BTreeMap<String, Option<bool>>,
    /// Features that the host lacks although others of its model have them.
    pub lacking: BTreeSet<String>,
}

impl Cpus {
    /// Reads the CPU part of `domcapabilities`.
    ///
    /// # Errors
    /// [`Code::Libvirt`](crate::Code::Libvirt) where the capabilities cannot be read.
    pub fn from_xml(domain_capabilities: &str) -> Result<Self> {
        let root = Element::parse(domain_capabilities)?;
        if !root.is("domainCapabilities") {
            return Err(unreadable(format!("it describes a <{}>, not <domainCapabilities>", root.name)));
        }
        let supported = |mode: &&Element| mode.attr("supported") == Some("yes");
        let modes: Vec<&Element> =
            root.child("cpu").into_iter().flat_map(|cpu| cpu.all("mode")).filter(supported).collect();
        let of = |name| modes.iter().filter(move |mode| mode.attr("name") == Some(name));
        let models = of("custom").flat_map(|mode| mode.all("model")).map(|model| {
            let usable = match model.attr("usable") {
                Some("yes") => Some(true),
                Some("no") => Some(false),
                _ => None,
            };
            (model.trimmed().to_owned(), usable)
        });
        let features = of("host-model").flat_map(|mode| mode.all("feature"));
        let lacking = features.filter(|feature| feature.attr("policy") == Some("disable"));
        Ok(Self {
            models: models.collect(),
            lacking: lacking.filter_map(|feature| feature.attr("name")).map(str::to_owned).collect(),
            modes: modes.iter().filter_map(|mode| mode.attr("name")).map(str::to_owned).collect(),
        })
    }

    /// The models that the host can run, as far as is known.
    pub fn usable(&self) -> impl Iterator<Item = &str> {
        self.models.iter().filter(|(_, usable)| **usable != Some(false)).map(|(model, _)| model.as_str())
    }
}
