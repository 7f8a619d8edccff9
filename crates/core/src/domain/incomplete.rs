//! Out of service: a definition whose images are being written in place cannot start, and says why.
//!
//! Each disk that is written names a file that is not there; the lineage says which operation writes, and where the images
//! are. So a mixture of two points can neither be booted nor be taken for a machine, whoever dies, and the host alone tells how
//! it is completed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::edit::escape;
use super::lineage::NAMESPACE;
use super::tree::Element;
use super::{DiskDevice, DiskElement, Domain, Lineage, NewDisk, repoint, unreadable};
use crate::error::Result;
use crate::inventory::ImageFormat;
use crate::name::DiskTarget;

/// What a replica is while its images are written in place: neither its last point nor the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incomplete {
    /// The operation that writes, or wrote when it was interrupted.
    pub operation: Uuid,
    /// The images that it writes, by disk.
    pub images: BTreeMap<DiskTarget, WrittenImage>,
}

/// An image that is written in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenImage {
    /// Its path.
    pub path: String,
    /// Its format.
    pub format: ImageFormat,
    /// Whether it is a block device.
    pub device: bool,
}

/// What stands behind the path of an image that is written in place: no file has such a name.
const HIDDEN: &str = ".kvm-clone-in-place-";

impl Incomplete {
    /// The path that a disk has meanwhile.
    fn hidden(&self, image: &WrittenImage) -> NewDisk {
        let path = format!("{}{HIDDEN}{}", image.path, self.operation);
        NewDisk { device: image.device, ..NewDisk::new(path, image.format.clone()) }
    }
}

impl From<&WrittenImage> for NewDisk {
    fn from(image: &WrittenImage) -> Self {
        Self { device: image.device, ..Self::new(&image.path, image.format.clone()) }
    }
}

/// A replica's definition, out of service: each of the images has a name that leads nowhere, and the lineage says so.
///
/// # Errors
/// [`Code::Libvirt`](crate::Code::Libvirt) where the machine has no lineage or not these disks;
/// [`Code::Internal`](crate::Code::Internal) where the result is not what was asked for.
pub fn withdraw(replica: &Domain, mut incomplete: Incomplete) -> Result<String> {
    incomplete.images.extend(left_hidden(replica, &incomplete));
    let images = incomplete.images.iter().map(|(disk, image)| (disk.clone(), incomplete.hidden(image))).collect();
    let lineage = replica.lineage().ok_or_else(|| unreadable("it has no lineage"))?;
    repoint(replica, &images, &Lineage { incomplete: Some(incomplete), ..lineage })
}

/// What an earlier sync has written that this one does not write: it stays out of service.
fn left_hidden(replica: &Domain, incomplete: &Incomplete) -> Vec<(DiskTarget, WrittenImage)> {
    let earlier = replica.lineage().and_then(|lineage| lineage.incomplete).map_or_else(BTreeMap::new, |own| own.images);
    // With the true images: whoever has given a disk another one since means that one.
    let is_left = |(disk, image): &(DiskTarget, WrittenImage)| {
        let is_there = |one: &&DiskElement| one.target == *disk && one.source.as_ref() == Some(&image.path);
        !incomplete.images.contains_key(disk) && replica.data_disks().any(|one| is_there(&one))
    };
    earlier.into_iter().filter(is_left).collect()
}

/// The definition with its images under their own names: as it is, where it is in service.
///
/// # Errors
/// As [`withdraw`].
pub fn with_true_images(domain: &Domain) -> Result<Domain> {
    let Some(lineage) = domain.lineage() else { return Ok(domain.clone()) };
    let Some(incomplete) = &lineage.incomplete else { return Ok(domain.clone()) };
    // Whoever has given a disk another image since means that one.
    let is_hidden = |disk: &DiskTarget, image: &WrittenImage| {
        let hidden = incomplete.hidden(image).path;
        domain.disks().iter().any(|one| one.target == *disk && one.source.as_ref() == Some(&hidden))
    };
    let images = incomplete.images.iter().filter(|(disk, image)| is_hidden(disk, image));
    let images = images.map(|(disk, image)| (disk.clone(), NewDisk::from(image))).collect();
    Domain::parse(&repoint(domain, &images, &lineage)?)
}

/// The disks of a machine out of service that somebody has given another image since: nobody knows what those hold.
#[must_use]
pub fn given_since(domain: &Domain) -> Vec<DiskTarget> {
    let Some(incomplete) = domain.lineage().and_then(|lineage| lineage.incomplete) else { return Vec::new() };
    let is_given = |disk: &&DiskElement| {
        incomplete.images.get(&disk.target).is_some_and(|image| disk.source != Some(incomplete.hidden(image).path))
    };
    domain.data_disks().filter(is_given).map(|disk| disk.target.clone()).collect()
}

/// Whether a definition stands as this operation took it out of service.
#[must_use]
pub fn is_withdrawn_by(domain: &Domain, operation: Uuid) -> bool {
    domain.lineage().and_then(|lineage| lineage.incomplete).is_some_and(|incomplete| incomplete.operation == operation)
}

/// Whether libvirt starts the machine also without this disk (formatdomain, "Hard drives, floppy disks, CDROMs":
/// `startupPolicy`): then a path that leads nowhere does not keep it from starting.
#[must_use]
pub fn starts_without(domain: &Domain, target: &DiskTarget) -> bool {
    let found = domain.disk_elements().find(|(disk, _)| disk.target == *target);
    let source = found.and_then(|(disk, element)| (disk.device == DiskDevice::Disk).then(|| element.child("source")));
    source.flatten().is_some_and(|source| source.attr("startupPolicy").is_some_and(|policy| policy != "mandatory"))
}

pub(super) fn read(lineage: &Element) -> Option<Incomplete> {
    let is_ours = |child: &&Element| child.namespace == NAMESPACE && child.name == "incomplete";
    let element = lineage.children.iter().find(is_ours)?;
    let image = |child: &Element| {
        let image = WrittenImage {
            path: child.attr("path")?.to_owned(),
            format: ImageFormat::named(child.attr("format")),
            device: child.attr("kind") == Some("device"),
        };
        Some((child.attr("disk")?.parse().ok()?, image))
    };
    let images = element.children.iter().filter_map(image).collect();
    Some(Incomplete { operation: element.attr("operation")?.parse().ok()?, images })
}

/// It as an element of the lineage.
pub(super) fn render(incomplete: &Incomplete) -> String {
    let image = |(disk, image): (&DiskTarget, &WrittenImage)| {
        let kind = if image.device { "device" } else { "file" };
        let (path, format) = (escape(&image.path), escape(&image.format.to_string()));
        format!("\n    <kvm-clone:image disk='{disk}' path='{path}' format='{format}' kind='{kind}'/>")
    };
    let images: String = incomplete.images.iter().map(image).collect();
    format!("\n  <kvm-clone:incomplete operation='{}'>{images}\n  </kvm-clone:incomplete>", incomplete.operation)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{WEB, clone_of};
    use super::super::transform;
    use super::*;

    fn image(path: &str, device: bool) -> WrittenImage {
        WrittenImage { path: path.to_owned(), format: ImageFormat::Raw, device }
    }

    /// A copy of `web` on a file and a device, out of service.
    fn withdrawn() -> (Domain, Domain) {
        let web = Domain::parse(WEB).unwrap();
        let mut wanted = clone_of(&web);
        let images = BTreeMap::from([
            ("vda".parse().unwrap(), image("/new/a 'quoted' & odd.img", false)),
            ("vdb".parse().unwrap(), image("/dev/vg/b", true)),
        ]);
        wanted.disks.extend(images.iter().map(|(disk, image): (&DiskTarget, _)| (disk.clone(), NewDisk::from(image))));
        let replica = Domain::parse(&transform(&web, &wanted).unwrap().0).unwrap();
        let incomplete = Incomplete { operation: Uuid::from_u128(5), images };
        (replica.clone(), Domain::parse(&withdraw(&replica, incomplete).unwrap()).unwrap())
    }

    #[test]
    fn out_of_service_no_written_disk_names_its_image_and_the_lineage_does() {
        let (replica, out) = withdrawn();
        assert!(is_withdrawn_by(&out, Uuid::from_u128(5)));
        assert!(!is_withdrawn_by(&out, Uuid::from_u128(9)) && !is_withdrawn_by(&replica, Uuid::from_u128(5)));
        let sources = |domain: &Domain| {
            domain.disks().iter().map(|disk| disk.source.clone().unwrap_or_default()).collect::<Vec<_>>()
        };
        for (before, now) in sources(&replica).iter().zip(sources(&out)).take(2) {
            assert_eq!(now, format!("{before}.kvm-clone-in-place-{}", Uuid::from_u128(5)));
        }
        assert_eq!(sources(&replica)[2..], sources(&out)[2..], "what is not written stays");
        assert!(
            out.xml().contains("type='block'") && out.xml().contains("<source dev='/dev/vg/b.kvm-clone-in-place-"),
            "{}",
            out.xml()
        );
        let lineage = |domain: &Domain| super::super::Lineage { incomplete: None, ..domain.lineage().unwrap() };
        assert_eq!(lineage(&out), lineage(&replica));
    }

    #[test]
    fn the_true_images_are_found_again_and_those_that_were_given_since_stay() {
        let (replica, out) = withdrawn();
        let sources = |domain: &Domain| {
            domain.disks().iter().map(|disk| (disk.source.clone(), disk.kind.clone())).collect::<Vec<_>>()
        };
        let found = with_true_images(&out).unwrap();
        assert_eq!(sources(&found), sources(&replica));
        assert!(is_withdrawn_by(&found, Uuid::from_u128(5)), "which it is still");
        assert_eq!(with_true_images(&replica).unwrap().xml(), replica.xml());
        let hidden = out.disks()[1].source.clone().unwrap();
        let given = Domain::parse(&out.xml().replace(&hidden, "/dev/other")).unwrap();
        assert_eq!(with_true_images(&given).unwrap().disks()[1].source.as_deref(), Some("/dev/other"));
    }

    #[test]
    fn a_disk_that_was_given_another_image_is_known_and_that_one_stays() {
        let (replica, out) = withdrawn();
        assert!(given_since(&replica).is_empty() && given_since(&out).is_empty());
        let hidden = out.disks()[1].source.clone().unwrap();
        let given = Domain::parse(&out.xml().replace(&hidden, "/dev/other")).unwrap();
        assert_eq!(given_since(&given), ["vdb".parse().unwrap()]);
    }

    #[test]
    fn what_an_earlier_sync_wrote_stays_out_of_service_while_the_next_one_writes_another_disk() {
        let (_, out) = withdrawn();
        let only = BTreeMap::from([("vda".parse().unwrap(), image("/new/a 'quoted' & odd.img", false))]);
        let next = Incomplete { operation: Uuid::from_u128(6), images: only };
        let again = Domain::parse(&withdraw(&with_true_images(&out).unwrap(), next.clone()).unwrap()).unwrap();
        let incomplete = again.lineage().unwrap().incomplete.unwrap();
        assert_eq!(incomplete.images.len(), 2, "{incomplete:?}");
        let source = again.disks()[1].source.clone().unwrap();
        assert_eq!(source, format!("/dev/vg/b{HIDDEN}{}", Uuid::from_u128(6)));
        // But not one that was given to the machine since.
        let hidden = out.disks()[1].source.clone().unwrap();
        let given = Domain::parse(&out.xml().replace(&hidden, "/dev/other")).unwrap();
        let again = Domain::parse(&withdraw(&with_true_images(&given).unwrap(), next).unwrap()).unwrap();
        assert_eq!(again.disks()[1].source.as_deref(), Some("/dev/other"));
        assert_eq!(again.lineage().unwrap().incomplete.unwrap().images.len(), 1);
    }

    #[test]
    fn a_disk_that_may_be_missing_at_the_start_is_known() {
        let with = |policy: &str| {
            let xml = WEB.replacen(
                "<source file='/srv/a/disk.qcow2'",
                &format!("<source file='/srv/a/disk.qcow2'{policy}"),
                1,
            );
            starts_without(&Domain::parse(&xml).unwrap(), &"vda".parse().unwrap())
        };
        assert!(with(" startupPolicy='optional'") && !with("") && !with(" startupPolicy='mandatory'"));
    }
}
