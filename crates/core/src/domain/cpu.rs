//! What CPU a definition asks for.

use super::Domain;
use super::tree::Element;

/// The CPU that a guest is to see: formatdomain, "CPU model and topology".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// `custom`, `host-model`, `host-passthrough`, `maximum`.
    pub mode: String,
    /// The model of a custom CPU.
    pub model: Option<String>,
    /// The features that the host must have.
    pub required: Vec<String>,
    /// Whether the machine does not start where the host lacks part of it. With `check='none'` it starts all the same,
    /// and its guest sees less.
    pub is_checked: bool,
}

impl Domain {
    /// The CPU that the definition asks for; none where it leaves that to the hypervisor.
    #[must_use]
    pub fn cpu(&self) -> Option<Cpu> {
        let element = self.root.child("cpu")?;
        let required =
            element.all("feature").filter(|feature| feature.attr("policy").unwrap_or("require") == "require");
        let cpu = Cpu {
            mode: element.attr("mode").unwrap_or("custom").to_owned(),
            model: element.text_at(&["model"]).map(str::to_owned),
            required: required.filter_map(|feature| feature.attr("name")).map(str::to_owned).collect(),
            is_checked: element.attr("check") != Some("none"),
        };
        (cpu.mode != "custom" || cpu.model.is_some()).then_some(cpu)
    }
}

/// What of it depends on the host, in words.
pub(super) fn warning(domain: &Domain) -> Option<String> {
    let mode = domain.root.child("cpu").and_then(|cpu: &Element| cpu.attr("mode"))?;
    matches!(mode, "host-passthrough" | "host-model" | "maximum").then(|| {
        "the guest sees the CPU of whatever host it runs on; some systems notice the change, and Windows may ask to be \
         activated again"
            .to_owned()
    })
}
