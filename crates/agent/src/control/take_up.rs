//! What an interrupted operation left is taken up again.
//!
//! Nothing of its contents is believed: whoever goes on compares all of it with the source. Here it is only made sure that it
//! can be written on, and that it is read from its storage.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use kvm_clone_core::Result;
use kvm_clone_core::wire::control::NewImage;
use kvm_clone_core::wire::marker::Marker;
use rustix::fs::OFlags;
use uuid::Uuid;

use super::progress::Progress;
use super::session::Session;
use super::{durable, files, image, marker};
use crate::device::{self, ImageFormat, new_qcow2};
use crate::lane::known;
use crate::place::{Place, io_error, remove_if_there};

/// Has everything where it was before it got its final name, and takes away the operation's directories with what it put into
/// them: these are planned as if they were new. Returns the staging images that are there, and what each takes.
pub(super) fn take_up(place: &Place, operation: Uuid, progress: &Progress) -> Result<BTreeMap<String, u64>> {
    let marker = marker::get(place, operation)?;
    for (staging, last) in marker.staging.iter().zip(&marker.finals) {
        if files::is_ours(&marker, &last.path)? {
            take_back(Path::new(&last.path), Path::new(staging))?;
        }
    }
    files::remove(place, operation, &within_directories(&marker), progress)?;
    let taken = |path: &String| {
        let facts = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some((path.clone(), facts.blocks() * 512))
    };
    Ok(marker.staging.iter().filter_map(taken).collect())
}

/// What lies in the operation's own directories, then these, the innermost first.
fn within_directories(marker: &Marker) -> Vec<String> {
    let is_within = |path: &&String| {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        marker.directories.iter().any(|own| own == directory)
    };
    marker.staging.iter().filter(is_within).chain(marker.directories.iter().rev()).cloned().collect()
}

/// Gives a finished image its staging name back, durably. Half a hard link may have been left of the way there.
fn take_back(from: &Path, to: &Path) -> Result<()> {
    if !files::move_to_free(from, to)? {
        fs::remove_file(from).map_err(|error| io_error("renaming", from, &error))?;
    }
    files::sync_parent(to)
}

/// Goes on with a staging image, or makes an empty one in the place of one that is of no use; then says why.
pub(super) fn image(session: &Session, new: &NewImage, progress: &Progress) -> Result<std::result::Result<(), String>> {
    image::require_named(session, new)?;
    let path = Path::new(&new.image.path);
    match begun(new, progress)? {
        Ok(()) => image::register(session, new).map(Ok),
        Err(why) => {
            remove_if_there(path).map_err(|error| io_error("removing", path, &error))?;
            image::create(session, new).map(|()| Err(why))
        }
    }
}

/// Makes an interrupted image fit to be written again; or says why it is not.
fn begun(new: &NewImage, progress: &Progress) -> Result<std::result::Result<(), String>> {
    let path = Path::new(&new.image.path);
    if let Err(why) = own(path, new)? {
        return Ok(Err(why));
    }
    // Before anything of it is judged: tables are read from the storage, too.
    durable::waiting(path, progress, || device::read_anew(path, &|bytes| progress.add(bytes)))?;
    let fits = match known(&new.image.format, &new.image.path)? {
        ImageFormat::Raw => {
            let len = fs::metadata(path).map_err(|error| io_error("looking at", path, &error))?.len();
            Ok(len == new.virtual_size)
        }
        ImageFormat::Qcow2 => {
            let shown = (image::shown_size(new), image::below(new)?);
            new_qcow2::shows(path, shown.0, shown.1.as_ref())
                .and_then(|fits| if fits { new_qcow2::recover(path).map(|()| true) } else { Ok(false) })
        }
    };
    Ok(match fits {
        Ok(true) => Ok(()),
        Ok(false) => Err("it is of a disk of another size, or stands on another image".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

/// Whether it is the file that we made, for us alone to write from now on. Who may write to the directory could have put
/// another one there: nothing is given away but what was ours, or qemu's already.
fn own(path: &Path, new: &NewImage) -> Result<std::result::Result<(), String>> {
    let failed = |error: std::io::Error| io_error("taking up", path, &error);
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Err("it is not there any more".to_owned())),
        Err(error) => return Ok(Err(format!("it cannot be opened: {error}"))),
    };
    let facts = file.metadata().map_err(failed)?;
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let is_known = facts.uid() == user.as_raw() || new.owner.is_some_and(|(owner, _)| facts.uid() == owner);
    if !facts.is_file() || facts.nlink() != 1 || !is_known {
        return Ok(Err("it is not the file that was made there".to_owned()));
    }
    if facts.uid() != user.as_raw() {
        fchown(&file, Some(user.as_raw()), Some(group.as_raw())).map_err(failed)?;
    }
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use kvm_clone_core::blocks::DigestKey;
    use kvm_clone_core::inventory::ImageFormat as Format;
    use kvm_clone_core::wire::lane::ImageSpec;
    use kvm_clone_core::wire::marker::FinalFile;

    use super::super::sight::identity;
    use super::super::test_host::TestHost;
    use super::*;

    #[test]
    fn finished_images_get_their_staging_names_back_and_directories_go() {
        let host = TestHost::new();
        let (session, progress) = (&host.session, host.progress());
        let path = |name: &str| host.path(name);
        fs::create_dir(path("own")).unwrap();
        for (name, text) in [("a.final", "a"), ("b.final", "not ours"), ("b.staging", "b"), ("own/c.staging", "c")] {
            fs::write(path(name), text).unwrap();
        }
        let ours = |name: &str| identity(&fs::symlink_metadata(path(name)).unwrap());
        let last = |name: &str, identity| FinalFile { path: path(name), identity };
        let marker = Marker {
            staging: ["a.staging", "b.staging", "own/c.staging"].map(&path).to_vec(),
            finals: vec![
                last("a.final", Some(ours("a.final"))),
                last("b.final", Some(ours("b.staging"))),
                last("own/c", None),
            ],
            directories: vec![path("own")],
            ..Marker::default()
        };
        marker::put(&session.place, &marker).unwrap();
        for _ in 0..2 {
            let staged = take_up(&session.place, Uuid::nil(), &progress).unwrap();
            assert_eq!(staged.keys().cloned().collect::<Vec<_>>(), [path("a.staging"), path("b.staging")]);
            assert_eq!(fs::read_to_string(path("a.staging")).unwrap(), "a");
            assert_eq!(fs::read_to_string(path("b.final")).unwrap(), "not ours");
            assert!(!Path::new(&path("a.final")).exists() && !Path::new(&path("own")).exists());
        }
    }

    #[test]
    fn only_a_file_of_ours_is_taken_up() {
        let host = TestHost::new();
        let path = |name: &str| PathBuf::from(host.path(name));
        let name = |name: &str| host.path(name);
        let marker = Marker { staging: vec![name("image")], manifests: vec![name("manifest")], ..Marker::default() };
        marker::put(&host.session.place, &marker).unwrap();
        let take = |format: Format, size| {
            let new = NewImage {
                operation: Uuid::nil(),
                disk: 0,
                image: ImageSpec::new(name("image"), format),
                virtual_size: size,
                manifest: name("manifest"),
                key: DigestKey::new([0; 32]),
                block: kvm_clone_core::blocks::BlockSize::default(),
                owner: None,
                mode: 0o600,
            };
            image(&host.session, &new, &host.progress()).unwrap()
        };
        take(Format::Raw, 4096).unwrap_err();
        fs::write(path("image"), [7; 4096]).unwrap();
        assert_eq!(take(Format::Raw, 4096), Ok(()));
        assert_eq!(fs::read(path("image")).unwrap(), [7; 4096]);
        // Another size, another format, another file: an empty image is made, and theirs is let alone.
        take(Format::Raw, 8192).unwrap_err();
        take(Format::Qcow2, 8192).unwrap_err();
        assert_eq!(take(Format::Qcow2, 8192), Ok(()));
        take(Format::Qcow2, 1 << 20).unwrap_err();
        fs::write(path("other"), [9; 4096]).unwrap();
        for link in [
            |other: &Path, image: &Path| fs::hard_link(other, image),
            |other: &Path, image: &Path| symlink(other, image),
        ] {
            fs::remove_file(path("image")).unwrap();
            link(&path("other"), &path("image")).unwrap();
            take(Format::Raw, 4096).unwrap_err();
            assert_eq!(fs::read(path("image")).unwrap(), [0; 4096]);
            assert_eq!(fs::read(path("other")).unwrap(), [9; 4096]);
        }
    }
}
