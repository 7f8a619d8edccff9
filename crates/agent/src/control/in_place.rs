//! Images of a replica that are written themselves: taken before, sized and finished here, written by lane agents.
//!
//! While a file is taken it is locked as qemu locks what a guest writes to: no guest starts on it, under whatever definition. A
//! device is opened exclusively; qemu's locks on devices do not reach across the private `/dev` of libvirt's guests.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_clone_core::inventory::ImageFormat as Format;
use kvm_clone_core::size::whole_sectors;
use kvm_clone_core::wire::control::NewImage;
use kvm_clone_core::wire::facts::FinishedImage;
use kvm_clone_core::{Code, Error, Result};
use rustix::fs::OFlags;

use super::progress::Progress;
use super::session::Session;
use super::sight::seen;
use super::{durable, image, marker, qemu_lock};
use crate::device;
use crate::lane::open_reader;
use crate::manifest::ManifestFile;
use crate::place::io_error;

/// The images that this session has taken, by path, each open and locked.
#[derive(Default)]
pub(super) struct Taken(Mutex<HashMap<String, Arc<File>>>);

impl Taken {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, path: &str) -> Result<Arc<File>> {
        self.all().get(path).cloned().ok_or_else(|| Error::internal(format!("{path} was not taken")))
    }
}

/// Opens and locks an image, and makes its manifest. One that is taken already stays so.
///
/// What an earlier writer could not make durable is still in the page cache, marked as clean, and would be taken for what the storage
/// holds: so the image is made durable and dropped from the cache first. Devices are read past the cache.
pub(super) fn take(session: &Session, new: &NewImage, progress: &Progress) -> Result<()> {
    require_named(session, new)?;
    let path = Path::new(&new.image.path);
    if !session.taken.all().contains_key(&new.image.path) {
        let file = open(path)?;
        if !qemu_lock::take(&file).map_err(|error| io_error("locking", path, &error))? {
            return Err(in_use(path));
        }
        if file.metadata().is_ok_and(|facts| facts.is_file()) {
            durable::waiting(path, progress, || device::read_anew(path, &|bytes| progress.add(bytes)))?;
        }
        session.taken.all().insert(new.image.path.clone(), Arc::new(file));
    }
    ManifestFile::create(Path::new(&new.manifest), &new.key, new.operation, (new.block, new.virtual_size))
}

fn open(path: &Path) -> Result<File> {
    let is_device = path.symlink_metadata().is_ok_and(|facts| facts.file_type().is_block_device());
    // open(2): with O_EXCL a block device is refused that is mounted, or part of a volume group.
    let alone = if is_device { OFlags::EXCL } else { OFlags::empty() };
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | alone).bits().cast_signed();
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| not_opened(path, &error))?;
    let kind = file.metadata().map_err(|error| io_error("looking at", path, &error))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    Err(Error::unsupported(format!("{} is neither a file nor a device", path.display())).with("path", path.display()))
}

/// Refuses what the operation's marker does not name, and what our writer must not write.
fn require_named(session: &Session, new: &NewImage) -> Result<()> {
    let marker = marker::get(&session.place, new.operation)?;
    let is_named = marker.in_place.contains(&new.image.path) && marker.manifests.contains(&new.manifest);
    if is_named && new.image.format == Format::Raw {
        return Ok(());
    }
    Err(Error::internal(format!("the marker does not name {} as a raw image to be written", new.image.path)))
}

fn not_opened(path: &Path, error: &std::io::Error) -> Error {
    if error.kind() != std::io::ErrorKind::ResourceBusy {
        return io_error("opening", path, error);
    }
    Error::new(
        Code::Locked,
        format!("{} is in use on its host: mounted, or part of a volume group or an array", path.display()),
    )
    .with("path", path.display())
    .help("lsblk shows by what")
}

fn in_use(path: &Path) -> Error {
    Error::new(Code::Locked, format!("{} is in use by a program of qemu's", path.display()))
        .with("path", path.display())
        .help("Another machine, or qemu-img or qemu-nbd, has it open: fuser or lsof shows which")
}

/// Gives an image the size of its disk. A device has it.
pub(super) fn resize(session: &Session, new: &NewImage) -> Result<()> {
    require_named(session, new)?;
    let path = Path::new(&new.image.path);
    let file = session.taken.get(&new.image.path)?;
    let failed = |error: std::io::Error| io_error("giving its size to", path, &error);
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() || facts.len() == new.virtual_size {
        return Ok(());
    }
    if facts.len() > whole_sectors(new.virtual_size) {
        return Err(Error::conflict(format!("{} is larger than its disk shall be", path.display())));
    }
    file.set_len(new.virtual_size).and_then(|()| file.sync_all()).map_err(failed)
}

/// Makes an image durable with its digests, and lets go of it. One that was let go of already is only looked at again.
pub(super) fn finish(session: &Session, new: &NewImage, progress: &Progress) -> Result<FinishedImage> {
    require_named(session, new)?;
    let path = Path::new(&new.image.path);
    let file = session.taken.get(&new.image.path).or_else(|_| open(path).map(Arc::new))?;
    let failed = |error: std::io::Error| io_error("making durable", path, &error);
    let facts = file.metadata().map_err(failed)?;
    durable::waiting(path, progress, || {
        if facts.is_file() {
            device::write_out(path, &|bytes| progress.add(bytes))?;
        }
        file.sync_all().map_err(failed)
    })?;
    let facts = file.metadata().map_err(failed)?;
    let size = open_reader(&new.image)?.size();
    if size != new.virtual_size {
        return Err(Error::verification(format!("{} has {size} bytes now", path.display()))
            .with("path", path.display())
            .with("expected", new.virtual_size));
    }
    let (root, data_blocks) = image::complete_manifest(session, new, progress)?;
    session.taken.all().remove(&new.image.path);
    // No writer of ours any more.
    drop(file);
    let identity = seen(path).map_err(failed)?;
    let allocated = if facts.is_file() { facts.blocks() * 512 } else { size };
    Ok(FinishedImage { identity, allocated, root: root.0, data_blocks })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kvm_clone_core::blocks::{BlockSize, DigestKey};
    use kvm_clone_core::wire::lane::ImageSpec;
    use kvm_clone_core::wire::marker::Marker;
    use uuid::Uuid;

    use super::super::test_host::TestHost;
    use super::*;

    fn image(host: &TestHost, name: &str, size: u64) -> NewImage {
        NewImage {
            operation: Uuid::nil(),
            disk: 0,
            image: ImageSpec::new(host.path(name), Format::Raw),
            virtual_size: size,
            manifest: host.path("manifest"),
            key: DigestKey::new([0; 32]),
            block: BlockSize::default(),
            owner: None,
            mode: 0o600,
        }
    }

    fn host() -> TestHost {
        let host = TestHost::new();
        let (in_place, manifests) = (vec![host.path("image"), host.path("link")], vec![host.path("manifest")]);
        let marker = Marker { in_place, manifests, ..Marker::default() };
        marker::put(&host.session.place, &marker).unwrap();
        std::fs::write(host.path("image"), [7; 5000]).unwrap();
        host
    }

    #[test]
    fn an_image_is_taken_grown_finished_and_let_go_of() {
        let host = host();
        let new = image(&host, "image", 8192);
        for _ in 0..2 {
            take(&host.session, &new, &host.progress()).unwrap();
        }
        let open = || File::options().read(true).write(true).open(host.path("image")).unwrap();
        assert_eq!(open().metadata().unwrap().len(), 5000, "nothing is changed by that");
        assert!(!qemu_lock::take(&open()).unwrap());
        for _ in 0..2 {
            resize(&host.session, &new).unwrap();
        }
        let finished = finish(&host.session, &new, &host.progress()).unwrap();
        assert_eq!(finish(&host.session, &new, &host.progress()), Ok(finished));
        assert_eq!((finished.identity.size, finished.data_blocks), (8192, 0));
        assert!(qemu_lock::take(&open()).unwrap());
        let mut expected = vec![7; 5000];
        expected.resize(8192, 0);
        assert_eq!(std::fs::read(host.path("image")).unwrap(), expected);
    }

    #[test]
    fn only_what_the_marker_names_and_no_link_is_taken_and_nothing_is_cut_off() {
        let host = host();
        std::fs::write(host.path("other"), [9; 5000]).unwrap();
        std::os::unix::fs::symlink(host.path("other"), host.path("link")).unwrap();
        take(&host.session, &image(&host, "other", 5000), &host.progress()).unwrap_err();
        take(&host.session, &image(&host, "link", 5000), &host.progress()).unwrap_err();
        let new = image(&host, "image", 4000);
        resize(&host.session, &new).unwrap_err();
        take(&host.session, &new, &host.progress()).unwrap();
        assert_eq!(resize(&host.session, &new).unwrap_err().code.number(), 1014);
        // But for what an overlay had added to an odd disk.
        resize(&host.session, &image(&host, "image", 4999)).unwrap();
        assert_eq!(std::fs::metadata(host.path("image")).unwrap().len(), 4999);
    }
}
