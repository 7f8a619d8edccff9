//! How long an answer is waited for while its agent tells of no progress, and in what words the wait is given up.

use std::time::Duration;

use super::control::Request;
use super::point::{COMING, GOING};
use crate::error::Error;

/// Lane agents get 5 s to end by themselves before they are killed; a shorter patience would give up before that.
const ENDING: Duration = Duration::from_secs(15);
/// How long, at most, the end of a backup job takes that libvirt has begun, once its readers have gone: two orders to end it and the
/// questions before them, each with its own deadline, and the clearing up.
const JOB_ENDING: Duration = Duration::from_secs(130);

impl Request {
    /// How long this request may go on without progress, where `stall` is what the user allows. What must wait for somebody else
    /// by its nature, and has deadlines of its own for that, is never given less than those.
    #[must_use]
    pub fn patience(&self, stall: Duration) -> Duration {
        match self {
            Self::EndLanes => stall.max(ENDING),
            Self::EndPoint { .. } | Self::ClearPoints => stall.max(COMING + GOING + JOB_ENDING),
            _ => stall,
        }
    }

    /// The error of a request that made no progress for this long on that host.
    #[must_use]
    pub fn stalled(&self, host: &str, waited: Duration) -> Error {
        let (doing, path) = self.work();
        let on = path.map_or(String::new(), |path| format!(" {path}"));
        let seconds = waited.as_secs();
        let error = Error::timeout(format!("{host}: {doing}{on} has stalled: no progress for {seconds} s"))
            .with("host", host)
            .with("stalled", doing)
            .help(format!("A disk of {host} hangs, or a program there: look at its kernel log"))
            .help("If it is only slow, --stall-timeout allows more time between two signs of progress")
            .transient();
        if let Some(path) = path { error.with("path", path) } else { error }
    }

    /// What the agent does, and the file that it does it with.
    fn work(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Facts => ("looking at the host", None),
            Self::OpenLibvirt => ("opening libvirt's socket", None),
            Self::Lock { .. } | Self::Unlock => ("locking", None),
            Self::Inspect(image) => ("looking at the image", Some(&image.path)),
            Self::CheckImage(image) => ("checking the image", Some(&image.path)),
            Self::Export { image, .. } => ("having qemu-nbd open the image", Some(&image.path)),
            Self::Checksum { image, .. } => ("summing up the disk", Some(&image.path)),
            Self::GroupDigests(query, _) | Self::BlockDigests(query, _) => ("digesting", Some(query.of.path())),
            Self::Read { image, .. } => ("reading", Some(&image.path)),
            Self::Segments { image, .. } => ("finding the data of", Some(&image.path)),
            Self::Paths(paths) => ("looking at files", paths.first().map(String::as_str)),
            Self::PutMarker(_) => ("writing the marker", None),
            Self::Markers => ("reading the markers", None),
            Self::RemoveMarker(_) => ("removing the marker", None),
            Self::MakeDirectory(new) => ("making the directory", Some(&new.path)),
            Self::CreateImage(new) => ("making the image", Some(&new.image.path)),
            Self::TakeUp(_) => ("taking up what was interrupted", None),
            Self::TakeUpImage(new) => ("taking up the image", Some(&new.image.path)),
            Self::FinishImage(new) => ("completing the image", Some(&new.image.path)),
            Self::SettleImage(new) => ("cleaning the image", Some(&new.image.path)),
            Self::TakeInPlace(new) => ("getting ready to write", Some(&new.image.path)),
            Self::ResizeInPlace(new) => ("giving its size to", Some(&new.image.path)),
            Self::FinishInPlace(new) => ("completing the image", Some(&new.image.path)),
            Self::HoldState(_) => ("keeping emulators of TPMs away", None),
            Self::HoldImages(images) => ("holding", images.first().map(|image| image.path.as_str())),
            Self::RenewFiles(_) => ("renewing the state of the TPM", None),
            Self::Flatten(order) => ("merging the overlay", Some(&order.overlay.path)),
            Self::TakeSeals(_) => ("sealing the images", None),
            Self::Seals(_) => ("looking at the seals", None),
            Self::Manifest(query) => ("reading the digests in", Some(&query.path)),
            Self::AdoptManifest { to, .. } => ("copying the digests to", Some(to)),
            Self::Rename { to, .. } => ("renaming the image to", Some(to)),
            Self::Remove { paths, .. } => ("removing files", paths.first().map(String::as_str)),
            Self::ArmPoint(_) => ("preparing the backup job", None),
            Self::PointState => ("looking at the backup job", None),
            Self::EndPoint { .. } => ("ending the backup job", None),
            Self::ClearPoints | Self::Points => ("looking for backup jobs of dead operations", None),
            Self::SyncDefinitions => ("making libvirt's definitions durable", None),
            Self::StartLane(_) | Self::OpenLanes => ("starting lane agents", None),
            Self::EndLanes => ("ending lane agents and helper programs", None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::ImageFormat;
    use crate::wire::lane::ImageSpec;

    #[test]
    fn what_stalled_is_said_with_its_host_and_file() {
        let check = Request::CheckImage(ImageSpec::new("/a/vda.qcow2", ImageFormat::Qcow2));
        let error = check.stalled("beta", Duration::from_secs(3));
        assert_eq!(error.code.number(), 1010);
        assert_eq!(error.message, "beta: checking the image /a/vda.qcow2 has stalled: no progress for 3 s");
        assert_eq!((&*error.context["host"], &*error.context["path"]), ("beta", "/a/vda.qcow2"));
        assert!(error.transient);
    }

    #[test]
    fn what_waits_for_others_by_its_nature_is_not_hurried() {
        let second = Duration::from_secs(1);
        assert_eq!(Request::Markers.patience(second), second);
        assert!(Request::EndLanes.patience(second) > Duration::from_secs(5));
        assert!(Request::EndPoint { settled: false }.patience(second) > COMING);
        assert_eq!(Request::EndLanes.patience(Duration::from_secs(600)), Duration::from_secs(600));
    }
}
