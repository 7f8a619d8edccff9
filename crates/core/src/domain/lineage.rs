//! Where a machine was copied from, kept in its own definition: formatdomain, "General metadata" (`metadata`).
//!
//! libvirt keeps one element for each foreign namespace there and carries it through every change.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::edit::{Edits, escape};
use super::identity::Identity;
use super::kept::{self, KeptPoint};
use super::tree::Element;
use super::{Domain, Incomplete, Reduction, TpmState, incomplete};
use crate::blocks::BlockSize;
use crate::inventory::{HostId, ImageFormat};
use crate::name::{DiskTarget, ResourceName, SourceName};

/// The namespace of our element; the number is the version of what stands in it.
pub(super) const NAMESPACE: &str = "https://kvm-clone.dev/lineage/1";

/// What ties a copy to its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The random id of the source's host.
    pub host: HostId,
    /// The name under which the user reached that host.
    pub host_name: String,
    /// The source's UUID.
    pub uuid: Uuid,
    /// The source's name at that time.
    pub name: SourceName,
    /// The operation that made the copy or brought it to its point.
    pub operation: Uuid,
    /// The moment whose content the copy holds (RFC 3339).
    pub point: String,
    /// The choices of the user, applied again at each sync.
    pub policy: LineagePolicy,
    /// Older points that are kept, the newest first.
    pub points: Vec<KeptPoint>,
    /// Set while the copy is out of service, its images being written in place: then it holds no point at all.
    #[serde(default)]
    pub incomplete: Option<Incomplete>,
}

/// The choices of the user at clone time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineagePolicy {
    /// Whether the copy is a machine of its own.
    pub identity: Identity,
    /// Whether the MAC addresses are the source's.
    pub macs: Identity,
    /// What became of the source's networks: its name, and that at the target (`none`: unplugged).
    pub networks: Vec<(String, String)>,
    /// The pool for its images; none where none was asked for.
    pub pool: Option<ResourceName>,
    /// The format of its images; none where it is the source's.
    pub disk_format: Option<ImageFormat>,
    /// The length of the blocks that its disks are compared by.
    pub block_size: BlockSize,
    /// Whether media that the target lacks are copied.
    pub copy_media: bool,
    /// Whether a machine type that the target lacks becomes a close one.
    pub any_machine: bool,
    /// What becomes of an emulated TPM.
    pub tpm: TpmState,
    /// What is left out.
    pub reduction: Reduction,
}

impl Lineage {
    /// Says that another image holds what this one of a disk held of a kept point: it was merged into that one.
    pub fn move_point(&mut self, disk: &DiskTarget, from: &str, (path, format): (&str, &ImageFormat)) {
        let images = self.points.iter_mut().filter_map(|kept| kept.images.get_mut(disk));
        for image in images.filter(|image| image.path == from) {
            (image.path, image.format) = (path.to_owned(), format.clone());
        }
    }
}

/// Reads the lineage; anything that is not wholly ours counts as none.
pub(super) fn read(domain: &Domain) -> Option<Lineage> {
    let ours = ours(domain).find(|element| element.name == "lineage")?;
    let parts = |name| ours.children.iter().filter(move |child| child.namespace == NAMESPACE && child.name == name);
    let part = |name| parts(name).next();
    let source = part("source")?;
    Some(Lineage {
        host: HostId(source.attr("host")?.to_owned()),
        host_name: source.attr("host-name")?.to_owned(),
        uuid: source.attr("uuid")?.parse().ok()?,
        name: source.attr("name")?.parse().ok()?,
        operation: ours.attr("operation")?.parse().ok()?,
        point: ours.attr("point")?.to_owned(),
        policy: part("policy").map(read_policy).unwrap_or_default(),
        points: parts("point").filter_map(kept::read).collect(),
        incomplete: incomplete::read(ours),
    })
}

fn read_policy(element: &Element) -> LineagePolicy {
    let choice = |name| if element.attr(name) == Some("kept") { Identity::Kept } else { Identity::New };
    let network = |child: &Element| Some((child.attr("from")?.to_owned(), child.attr("to")?.to_owned()));
    let said = |name, word| element.attr(name) == Some(word);
    let format = |name: &str| if name == "raw" { ImageFormat::Raw } else { ImageFormat::Qcow2 };
    let excluded = |child: &Element| child.attr("disk").filter(|_| child.name == "excluded")?.parse().ok();
    LineagePolicy {
        identity: choice("identity"),
        macs: choice("macs"),
        networks: element.children.iter().filter_map(network).collect(),
        pool: element.attr("pool").and_then(|pool| pool.parse().ok()),
        disk_format: element.attr("disk-format").map(format),
        block_size: element.attr("block-size").and_then(|size| size.parse().ok()).unwrap_or_default(),
        copy_media: said("media", "copied"),
        any_machine: said("machine", "auto"),
        tpm: match element.attr("tpm") {
            Some("copied") => TpmState::Copied,
            Some("new") => TpmState::New,
            _ => TpmState::Unsaid,
        },
        reduction: Reduction {
            disks: element.children.iter().filter_map(excluded).collect(),
            host_devices: said("host-devices", "dropped"),
            shared_directories: said("shared-directories", "dropped"),
            tuning: said("tuning", "dropped"),
        },
    }
}

/// Every element of ours below `<metadata>`.
fn ours(domain: &Domain) -> impl Iterator<Item = &Element> {
    let metadata = domain.root.all("metadata");
    metadata.flat_map(|metadata| &metadata.children).filter(|child| child.namespace == NAMESPACE)
}

/// Writes the lineage in the place of any that was there.
pub(super) fn edit(domain: &Domain, lineage: &Lineage, edits: &mut Edits<'_>) {
    ours(domain).for_each(|old| edits.remove(old));
    let xml = render(lineage);
    match domain.root.child("metadata") {
        Some(metadata) => edits.append(metadata, &xml),
        None => {
            let lines: String = xml.lines().map(|line| format!("  {line}\n")).collect();
            if let Some(uuid) = domain.root.child("uuid") {
                edits.insert_after(uuid, &format!("<metadata>\n{lines}</metadata>"));
            }
        }
    }
}

fn render(lineage: &Lineage) -> String {
    format!(
        "<kvm-clone:lineage xmlns:kvm-clone='{NAMESPACE}' operation='{}' point='{}'>\n  \
         <kvm-clone:source host='{}' host-name='{}' uuid='{}' name='{}'/>\n  {}{}\n\
         </kvm-clone:lineage>",
        lineage.operation,
        escape(&lineage.point),
        escape(&lineage.host.0),
        escape(&lineage.host_name),
        lineage.uuid,
        escape(lineage.name.as_str()),
        render_policy(&lineage.policy),
        lineage.points.iter().map(kept::render).collect::<String>()
            + &lineage.incomplete.as_ref().map(incomplete::render).unwrap_or_default(),
    )
}

/// What was not chosen is not written, so that most policies are short.
fn render_policy(policy: &LineagePolicy) -> String {
    let word = |choice| if choice == Identity::Kept { "kept" } else { "new" };
    let dropped = |is: bool| is.then(|| "dropped".to_owned());
    let tpm = match policy.tpm {
        TpmState::Copied => Some("copied"),
        TpmState::New => Some("new"),
        TpmState::Unsaid => None,
    };
    let chosen = [
        ("pool", policy.pool.as_ref().map(ToString::to_string)),
        ("disk-format", policy.disk_format.as_ref().map(ToString::to_string)),
        ("block-size", (policy.block_size != BlockSize::default()).then(|| policy.block_size.to_string())),
        ("media", policy.copy_media.then(|| "copied".to_owned())),
        ("machine", policy.any_machine.then(|| "auto".to_owned())),
        ("tpm", tpm.map(str::to_owned)),
        ("host-devices", dropped(policy.reduction.host_devices)),
        ("shared-directories", dropped(policy.reduction.shared_directories)),
        ("tuning", dropped(policy.reduction.tuning)),
    ];
    let chosen = chosen.into_iter().filter_map(|(name, value)| Some(format!(" {name}='{}'", escape(&value?))));
    let network = |(from, to): &(String, String)| {
        format!("\n    <kvm-clone:network from='{}' to='{}'/>", escape(from), escape(to))
    };
    let excluded = policy.reduction.disks.iter().map(|disk| format!("\n    <kvm-clone:excluded disk='{disk}'/>"));
    let inside: String = policy.networks.iter().map(network).chain(excluded).collect();
    let end = if inside.is_empty() { "/>" } else { &format!(">{inside}\n  </kvm-clone:policy>") };
    let (identity, macs) = (word(policy.identity), word(policy.macs));
    format!("<kvm-clone:policy identity='{identity}' macs='{macs}'{}{end}", chosen.collect::<String>())
}
