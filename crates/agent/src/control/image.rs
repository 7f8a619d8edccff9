//! Staging images: made before the copy, completed after it.

use std::collections::HashMap;
use std::fs::{Metadata, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use kvm_clone_core::blocks::Root;
use kvm_clone_core::inventory::ImageFormat as Format;
use kvm_clone_core::size::whole_sectors;
use kvm_clone_core::wire::control::{DiskIndex, NewImage};
use kvm_clone_core::wire::facts::FinishedImage;
use kvm_clone_core::wire::lane::ImageSpec;
use kvm_clone_core::{Error, Result};
use rustix::fs::OFlags;

use super::marker::{self, sync_dir};
use super::progress::Progress;
use super::session::Session;
use super::sight::identity;
use super::{blockdev, durable};
use crate::device::{self, AtomicChunks, ChunkAllocator, ImageFormat, NamedImage, RawWriter, WriteDevice, new_qcow2};
use crate::lane::{known, open_reader};
use crate::manifest::ManifestFile;
use crate::place::io_error;
use crate::program::{self, Outcome, Watch};

/// The room left in growing images, by disk.
#[derive(Default)]
pub(super) struct Growing(Mutex<HashMap<DiskIndex, AtomicChunks>>);

impl Growing {
    pub(super) fn next_chunk(&self, disk: DiskIndex) -> Result<u64> {
        let growing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let chunks = growing.get(&disk).ok_or_else(|| Error::internal(format!("disk {disk} does not grow")))?;
        Ok(chunks.next_chunk()?)
    }

    fn add(&self, disk: DiskIndex, chunks: AtomicChunks) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(disk, chunks);
    }
}

/// The files that this session made, by path: device and inode.
#[derive(Default)]
pub(super) struct Made(Mutex<HashMap<String, (u64, u64)>>);

impl Made {
    fn note(&self, path: &str) -> Result<()> {
        let facts = std::fs::symlink_metadata(path).map_err(|error| io_error("looking at", Path::new(path), &error))?;
        let file = (facts.dev(), facts.ino());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), file);
        Ok(())
    }

    fn get(&self, path: &str) -> Option<(u64, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied()
    }
}

/// Makes an empty image and its manifest; neither may be there, and the operation's marker must name both.
pub(super) fn create(session: &Session, new: &NewImage) -> Result<()> {
    require_named(session, new)?;
    let path = Path::new(&new.image.path);
    match known(&new.image.format, &new.image.path)? {
        ImageFormat::Raw => drop(RawWriter::create(path, new.virtual_size)?),
        ImageFormat::Qcow2 => match below(new)? {
            None => new_qcow2::create(path, new.virtual_size)?,
            Some(below) => new_qcow2::create_overlay(path, shown_size(new), &below)?,
        },
    }
    register(session, new)
}

/// Refuses what the operation's marker does not name.
pub(super) fn require_named(session: &Session, new: &NewImage) -> Result<()> {
    let marker = marker::get(&session.place, new.operation)?;
    if marker.staging.contains(&new.image.path) && marker.manifests.contains(&new.manifest) {
        return Ok(());
    }
    Err(Error::internal(format!("the marker does not name {}", new.image.path)))
}

/// The image under an overlay.
pub(super) fn below(new: &NewImage) -> Result<Option<NamedImage>> {
    let below = new.image.backing.first();
    below.map(|(path, format)| Ok(NamedImage { path: path.into(), format: known(format, path)? })).transpose()
}

/// Takes an image that can be written on as this session's, and makes its manifest.
pub(super) fn register(session: &Session, new: &NewImage) -> Result<()> {
    if known(&new.image.format, &new.image.path)? == ImageFormat::Qcow2 {
        session.growing.add(new.disk, AtomicChunks::of(Path::new(&new.image.path))?);
    }
    session.made.note(&new.image.path)?;
    let geometry = (new.block, new.virtual_size);
    ManifestFile::create(Path::new(&new.manifest), &new.key, new.operation, geometry)
}

/// The size of the disk that the image shows. A raw disk may have any size, an overlay over it has whole sectors; what is
/// too much of the last one is zero.
pub(super) const fn shown_size(new: &NewImage) -> u64 {
    if new.image.backing.is_empty() { new.virtual_size } else { whole_sectors(new.virtual_size) }
}

/// Completes an image: structures, check by qemu itself, owner and mode, durability, and the manifest's root.
pub(super) fn finish(session: &Session, new: &NewImage, progress: &Progress) -> Result<FinishedImage> {
    let path = Path::new(&new.image.path);
    let is_qcow2 = known(&new.image.format, &new.image.path)? == ImageFormat::Qcow2;
    durable::waiting(path, progress, || {
        // Most of what must become durable goes here, where it can be counted; the calls that make sure of it find little left.
        device::write_out(path, &|bytes| progress.add(bytes))?;
        if is_qcow2 { new_qcow2::finish(path, &|tables| progress.add(tables)) } else { RawWriter::open(path)?.sync() }
    })?;
    if open_reader(&new.image)?.size() != shown_size(new) {
        return Err(Error::verification("the finished image has another size than its source")
            .with("path", path.display())
            .with("expected", shown_size(new)));
    }
    let root = std::thread::scope(|scope| {
        // qemu reads the image while we read its manifest.
        let manifest = scope.spawn(|| complete_manifest(session, new, progress));
        if is_qcow2 {
            check(session, &new.image.path, &[0], progress)?;
        }
        manifest.join().map_err(|_| Error::internal("the thread that completes a manifest panicked"))?
    })?;
    give(session, new, root, progress)
}

/// Hands an image over that is as it shall be.
pub(super) fn complete(session: &Session, new: &NewImage, progress: &Progress) -> Result<FinishedImage> {
    give(session, new, complete_manifest(session, new, progress)?, progress)
}

pub(super) fn complete_manifest(session: &Session, new: &NewImage, progress: &Progress) -> Result<(Root, u64)> {
    let manifest = Path::new(&new.manifest);
    durable::waiting(manifest, progress, || {
        let count = |bytes| progress.add(bytes);
        device::write_out(manifest, &count)?;
        let root = ManifestFile::open(manifest)?.complete(&count)?;
        let manifests = session.place.manifests();
        sync_dir(&manifests).map_err(|error| io_error("syncing", &manifests, &error))?;
        Ok(root)
    })
}

fn give(
    session: &Session,
    new: &NewImage,
    (root, data_blocks): (Root, u64),
    progress: &Progress,
) -> Result<FinishedImage> {
    let path = Path::new(&new.image.path);
    let facts = durable::waiting(path, progress, || hand_over(path, new, session.made.get(&new.image.path)))?;
    Ok(FinishedImage { identity: identity(&facts), allocated: facts.blocks() * 512, root: root.0, data_blocks })
}

/// Gives the image its owner and mode, and makes it durable with its name: all of it through one descriptor of the very
/// file that was made. By its path, root would give away whatever somebody put there.
fn hand_over(path: &Path, new: &NewImage, made: Option<(u64, u64)>) -> Result<Metadata> {
    let failed = |error: std::io::Error| io_error("handing over", path, &error);
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() || made != Some((facts.dev(), facts.ino())) {
        return Err(Error::conflict(format!("{} is not the file that was made there any more", path.display()))
            .with("path", path.display())
            .help("Somebody meddles with the directory; look at who may write to it"));
    }
    let give = || -> std::io::Result<Metadata> {
        file.set_permissions(Permissions::from_mode(new.mode))?;
        if let Some((user, group)) = new.owner {
            fchown(&file, Some(user), Some(group))?;
        }
        file.sync_all()?;
        sync_dir(path.parent().unwrap_or(Path::new("/")))?;
        file.metadata()
    };
    give().map_err(failed)
}

/// Has `qemu-img` work on an image of ours, for as long as it gets on.
pub(super) fn qemu_img(session: &Session, arguments: &[&str], progress: &Progress) -> Result<Outcome> {
    let users = session.users_for_program()?;
    let watch = Watch { deadline: None, stop: &|| session.is_stopping(), worked: &|work| progress.add(work) };
    program::run("qemu-img", arguments, users, &watch)
}

/// qemu's own word on the image, by the program that will open it; `well` are the exit statuses that say so. What is under
/// it is not opened: it is not what is asked about.
pub(super) fn check(session: &Session, path: &str, well: &[i32], progress: &Progress) -> Result<()> {
    let alone = blockdev::filename(&ImageSpec::new(path, Format::Qcow2));
    let outcome = qemu_img(session, &["check", "-q", "--", &alone], progress)?;
    if outcome.status.code().is_some_and(|code| well.contains(&code)) {
        return Ok(());
    }
    Err(Error::verification(format!("qemu-img check found fault with {path}"))
        .with("path", path)
        .with("qemu_img", outcome.output.trim())
        .help("Please report this; nothing was made at the target"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::FileExt;

    use kvm_clone_core::blocks::DigestKey;
    use kvm_clone_core::wire::marker::Marker;
    use uuid::Uuid;

    use super::*;
    use crate::place::Place;

    #[test]
    fn an_overlay_over_an_odd_raw_image_is_made_and_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let place = Place { run: dir.path().join("run"), state: dir.path().join("state") }.make().unwrap();
        let marker = Marker { staging: vec![path("overlay")], manifests: vec![path("manifest")], ..Marker::default() };
        marker::put(&place, &marker).unwrap();
        let (session, _outgoing, _ended) = Session::open(place, "").unwrap();
        std::fs::write(path("below"), vec![7; 200_001]).unwrap();
        let backing = vec![(path("below"), Format::Raw)];
        let new = NewImage {
            operation: Uuid::nil(),
            disk: 0,
            image: ImageSpec { backing, ..ImageSpec::new(path("overlay"), Format::Qcow2) },
            virtual_size: 200_001,
            manifest: path("manifest"),
            key: DigestKey::new([0; 32]),
            block: kvm_clone_core::blocks::BlockSize::default(),
            owner: None,
            mode: 0o600,
        };
        create(&session, &new).unwrap();
        let finished = finish(&session, &new, &Progress::of(&session, 0)).unwrap();
        assert_eq!(finished.data_blocks, 0);
        let mut bytes = vec![1; 200_192];
        open_reader(&new.image).unwrap().read_at(&mut bytes, 0).unwrap();
        assert!(bytes[..200_001] == vec![7; 200_001] && bytes[200_001..] == [0; 191]);
        // qemu's own word counts: here, on a refcount table that lies elsewhere.
        let file = OpenOptions::new().write(true).open(path("overlay")).unwrap();
        file.write_all_at(&(1u64 << 40).to_be_bytes(), 48).unwrap();
        assert_eq!(finish(&session, &new, &Progress::of(&session, 0)).unwrap_err().code.number(), 1012);
        session.close();
    }

    #[test]
    fn only_the_file_that_was_made_is_handed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["made", "other"] {
            std::fs::write(path(name), name).unwrap();
        }
        std::os::unix::fs::symlink(path("other"), path("link")).unwrap();
        std::fs::set_permissions(path("other"), Permissions::from_mode(0o600)).unwrap();
        let id = |name: &str| std::fs::metadata(path(name)).map(|facts| (facts.dev(), facts.ino())).ok();
        let hand = |name: &str, made| {
            let new = NewImage {
                operation: Uuid::nil(),
                disk: 0,
                image: ImageSpec::new(path(name).display().to_string(), Format::Raw),
                virtual_size: 0,
                manifest: String::new(),
                key: DigestKey::new([0; 32]),
                block: kvm_clone_core::blocks::BlockSize::default(),
                owner: None,
                mode: 0o644,
            };
            hand_over(&path(name), &new, made)
        };
        assert_eq!(hand("made", id("made")).unwrap().mode() & 0o777, 0o644);
        assert_eq!(hand("other", id("made")).unwrap_err().code.number(), 1014);
        assert_eq!(hand("other", None).unwrap_err().code.number(), 1014);
        hand("link", id("other")).unwrap_err();
        assert_eq!(std::fs::metadata(path("other")).unwrap().mode() & 0o777, 0o600);
    }
}
