//! Files and directories: looking, making, renaming, removing.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use kvm_clone_core::wire::control::NewDirectory;
use kvm_clone_core::wire::facts::PathFacts;
use kvm_clone_core::wire::marker::Marker;
use kvm_clone_core::{Code, Error, Result};
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use uuid::Uuid;

use super::hold;
use super::marker::{self, sync_dir};
use super::progress::Progress;
use super::sight::identity;
use super::storage;
use crate::place::{Place, io_error};

/// What is at these paths.
pub(super) fn look(paths: Vec<String>) -> BTreeMap<String, PathFacts> {
    paths.into_iter().map(|path| (path.clone(), facts(Path::new(&path)))).collect()
}

fn facts(path: &Path) -> PathFacts {
    let found = fs::symlink_metadata(path).ok();
    let directory = fs::metadata(path).is_ok_and(|facts| facts.is_dir());
    let home = if directory { Some(path) } else { path.parent() };
    let space = home.and_then(|dir| rustix::fs::statvfs(dir).ok());
    let available = space.map_or(0, |space| space.f_bavail.saturating_mul(space.f_frsize));
    let target = fs::metadata(path).ok();
    PathFacts {
        exists: found.is_some(),
        directory,
        available,
        file: target.as_ref().map(|facts| storage::file_id(path, facts)),
        regular: target.as_ref().is_some_and(fs::Metadata::is_file),
        device_id: target.as_ref().and_then(storage::device_id),
    }
}

/// Makes a directory that the operation's marker names, durably. One that is there already keeps what is in it.
pub(super) fn make_directory(place: &Place, new: &NewDirectory) -> Result<()> {
    if !marker::get(place, new.operation)?.directories.contains(&new.path) {
        return Err(Error::internal(format!("the marker does not name {}", new.path)));
    }
    let path = Path::new(&new.path);
    let make = || -> std::io::Result<()> {
        match fs::DirBuilder::new().mode(new.mode).create(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && fs::symlink_metadata(path)?.is_dir() => {}
            made => made?,
        }
        // Again where it was there: the answer to an earlier order may have been lost with half of it done. By a
        // descriptor, so that no link is followed to something else.
        let flags = (OFlags::NOFOLLOW | OFlags::DIRECTORY).bits().cast_signed();
        let dir = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        dir.set_permissions(fs::Permissions::from_mode(new.mode))?;
        if let Some((user, group)) = new.owner {
            fchown(&dir, Some(user), Some(group))?;
        }
        path.ancestors().take(2).try_for_each(sync_dir)
    };
    make().map_err(|error| io_error("making", path, &error))
}

/// Gives a file its final name, durably; one that has it already, as its operation's marker tells, keeps it. What is there
/// of others stays: the kernel refuses in the same call.
pub(super) fn rename(place: &Place, operation: Uuid, from: &str, to: &str) -> Result<()> {
    let marker = marker::get(place, operation)?;
    if !marker.staging.iter().any(|file| file == from) || !marker.finals.iter().any(|file| file.path == to) {
        return Err(Error::internal(format!("the marker does not name {from} and {to}")));
    }
    if !Path::new(from).exists() && is_ours(&marker, to)? {
        return Ok(());
    }
    let (from, to) = (Path::new(from), Path::new(to));
    if !move_to_free(from, to)? {
        return Err(Error::new(Code::VmExists, format!("{} exists and is not ours", to.display()))
            .with("path", to.display())
            .help("Move it away, or choose another name with --new-name"));
    }
    sync_parent(to)
}

/// Gives a file another name, unless something has that name: then it is not given.
pub(super) fn move_to_free(from: &Path, to: &Path) -> Result<bool> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        // Some network file systems know no such rename; a hard link refuses an existing name as well.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => link_then_unlink(from, to).map(|()| true),
        Err(error) => Err(io_error("renaming", from, &error.into())),
    }
}

/// Makes the names of a file durable.
pub(super) fn sync_parent(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    sync_dir(dir).map_err(|error| io_error("syncing", dir, &error))
}

fn link_then_unlink(from: &Path, to: &Path) -> Result<()> {
    fs::hard_link(from, to).and_then(|()| fs::remove_file(from)).map_err(|error| io_error("renaming", from, &error))
}

/// Removes files and directories that the marker of this operation names, and no others. Where there is no marker any more, somebody has
/// finished or undone the operation meanwhile, and nothing here is its own. One that cannot go does not keep the others.
pub(super) fn remove(place: &Place, operation: Uuid, paths: &[String], progress: &Progress) -> Result<()> {
    let Some(marker) = marker::find(place, operation)? else { return Ok(()) };
    let (mut dirs, mut outcome): (Vec<PathBuf>, _) = (Vec::new(), Ok(()));
    for path in paths {
        match remove_one(&marker, path) {
            Ok(true) => dirs.extend(Path::new(path).parent().map(Path::to_owned)),
            Ok(false) => {}
            Err(error) => outcome = outcome.and(Err(error)),
        }
        progress.add(1);
    }
    dirs.sort();
    dirs.dedup();
    // Some may have gone with what was in them.
    dirs.retain(|dir| dir.exists());
    dirs.iter().try_for_each(|dir| sync_dir(dir).map_err(|error| io_error("syncing", dir, &error)))?;
    outcome
}

/// Whether something was removed.
fn remove_one(marker: &Marker, path: &String) -> Result<bool> {
    if !is_ours(marker, path)? {
        return Ok(false);
    }
    let is_directory = marker.directories.contains(path);
    if !is_directory {
        require_file(Path::new(path))?;
    }
    // A file of the machine before may be in use where libvirt does not see it. It is ours alone until it is gone.
    let _alone = if marker.replaced.contains(path) { hold::alone(Path::new(path))? } else { None };
    match if is_directory { fs::remove_dir(path) } else { fs::remove_file(path) } {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        // What others put there is theirs.
        Err(error) if is_directory && error.kind() == ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(io_error("removing", Path::new(path), &error)),
    }
}

/// Refuses what is neither a file nor a link to one: of a device only its node would go, which other machines may need.
fn require_file(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(facts) if facts.is_file() => Ok(()),
        Ok(_) => Err(Error::conflict(format!("{} is no file, and is not removed", path.display()))
            .with("path", path.display())
            .help("A volume goes by the means of its storage: virsh vol-delete, lvremove")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("looking at", path, &error)),
    }
}

/// Whether what has this name now is the operation's to remove. A final name may belong to somebody else's file, which
/// is why ours was refused: only its identity tells. An overlay that was flattened is another than the one that was
/// completed; one that a guest has written to since is neither, and stays.
pub(super) fn is_ours(marker: &Marker, path: &str) -> Result<bool> {
    if [&marker.staging, &marker.manifests, &marker.outdated, &marker.replaced, &marker.directories]
        .iter()
        .any(|list| list.iter().any(|file| file == path))
    {
        return Ok(true);
    }
    let finals = marker.finals.iter().map(|file| (&file.path, file.identity));
    let flattened = marker.overlays.iter().map(|file| (&file.path, file.flattened));
    let known: Vec<_> = finals.chain(flattened).filter(|(name, _)| *name == path).collect();
    if known.is_empty() {
        return Err(Error::internal(format!("{path} is not in the marker of operation {}", marker.operation)));
    }
    let found = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).map(|facts| identity(&facts));
    Ok(found.is_some_and(|found| known.iter().filter_map(|(_, ours)| *ours).any(|ours| found.is_same_file(&ours))))
}

/// Makes libvirt's definitions durable: libvirt syncs the file it writes, but not the directory that names it, and neither the one of
/// the machines that start with the host. Not by `syncfs`: that waits for whatever anybody has written to the file system, which is
/// gigabytes at times, and nobody could tell whether it gets on.
pub(super) fn sync_definitions() -> Result<()> {
    let dir: PathBuf = if rustix::process::geteuid().is_root() {
        "/etc/libvirt/qemu".into()
    } else {
        user_config().join("libvirt/qemu")
    };
    for dir in [dir.join("autostart"), dir] {
        match sync_dir(&dir) {
            // There may be no such machine yet.
            Err(error) if error.kind() == ErrorKind::NotFound && dir.ends_with("autostart") => {}
            synced => synced.map_err(|error| io_error("syncing", &dir, &error))?,
        }
    }
    Ok(())
}

/// Where the settings of a user's own programs are.
pub(super) fn user_config() -> PathBuf {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    config.unwrap_or_else(|| home.join(".config"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use kvm_clone_core::inventory::ImageFormat;
    use kvm_clone_core::wire::marker::FinalFile;
    use kvm_clone_core::wire::replica::OverlayFile;

    use super::super::session::Session;
    use super::super::test_host::TestHost;
    use super::*;

    #[test]
    fn only_what_the_marker_names_gets_a_final_name() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { run: dir.path().join("run"), state: dir.path().join("state") };
        fs::create_dir_all(place.markers()).unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        ["staged", "other"].iter().for_each(|name| fs::write(path(name), name).unwrap());
        let finals = vec![FinalFile { path: path("final"), identity: None }];
        let marker = Marker { staging: vec![path("staged")], finals, ..Marker::default() };
        marker::put(&place, &marker).unwrap();
        let give = |from: &str, to: &str| rename(&place, Uuid::nil(), &path(from), &path(to));
        assert_eq!(give("other", "final").unwrap_err().code, Code::Internal);
        assert_eq!(give("staged", "elsewhere").unwrap_err().code, Code::Internal);
        assert!(Path::new(&path("other")).exists() && Path::new(&path("staged")).exists());
        give("staged", "final").unwrap();
        assert!(Path::new(&path("final")).exists());
    }

    #[test]
    fn an_overlay_is_removed_as_it_was_completed_or_flattened_and_not_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { run: dir.path().join("run"), state: dir.path().join("state") }.make().unwrap();
        let (session, _outgoing, _ended) = Session::open(place, "").unwrap();
        let progress = Progress::of(&session, 0);
        let path = |name: &str| dir.path().join(name).display().to_string();
        let look = || identity(&fs::symlink_metadata(path("overlay")).unwrap());
        let mut marker = Marker {
            finals: vec![FinalFile { path: path("overlay"), identity: None }],
            overlays: vec![OverlayFile {
                disk: "vda".parse().unwrap(),
                path: path("overlay"),
                image: path("image"),
                format: ImageFormat::Raw,
                under: Vec::new(),
                above: None,
                exact_size: 0,
                flattened: None,
            }],
            outdated: vec![path("seal")],
            ..Marker::default()
        };
        let try_to = |marker: &Marker| {
            marker::put(&session.place, marker).unwrap();
            remove(&session.place, Uuid::nil(), &[path("overlay"), path("seal")], &progress).unwrap();
            (Path::new(&path("overlay")).exists(), Path::new(&path("seal")).exists())
        };
        fs::write(path("seal"), "old").unwrap();
        fs::write(path("overlay"), "complete").unwrap();
        assert_eq!(try_to(&marker), (true, false));
        marker.finals[0].identity = Some(look());
        fs::write(path("overlay"), "flattened, which wrote to it").unwrap();
        assert_eq!(try_to(&marker), (true, false));
        marker.overlays[0].flattened = Some(look());
        let flattened = fs::read(path("overlay")).unwrap();
        fs::write(path("overlay"), "a guest wrote to it").unwrap();
        assert_eq!(try_to(&marker), (true, false));
        fs::write(path("overlay"), flattened).unwrap();
        marker.overlays[0].flattened = Some(look());
        assert_eq!(try_to(&marker), (false, false));
        assert_eq!(remove(&session.place, Uuid::nil(), &[path("image")], &progress).unwrap_err().code, Code::Internal);
        session.close();
    }

    #[test]
    fn a_file_of_the_machine_before_that_somebody_has_open_stays() {
        let host = TestHost::new();
        let paths = ["held", "idle", "gone"].map(|name| host.path(name));
        paths[..2].iter().for_each(|path| fs::write(path, "a disk").unwrap());
        let marker = Marker { replaced: paths.to_vec(), ..Marker::default() };
        marker::put(&host.session.place, &marker).unwrap();
        let user = fs::File::open(&paths[0]).unwrap();
        assert!(super::super::qemu_lock::keep(&user).unwrap());
        let try_to = || remove(&host.session.place, Uuid::nil(), &paths, &host.progress());
        let error = try_to().unwrap_err();
        assert!(error.code == Code::Conflict && error.context["path"] == paths[0], "{error:?}");
        assert_eq!([0, 1].map(|nth: usize| Path::new(&paths[nth]).exists()), [true, false], "the other one is gone");
        drop(user);
        try_to().unwrap();
        assert!(!Path::new(&paths[0]).exists());
    }

    #[test]
    fn what_is_no_file_is_not_removed() {
        let host = TestHost::new();
        let paths = ["device", "socket", "link", "file"].map(|name| host.path(name));
        std::os::unix::fs::symlink("/dev/null", &paths[0]).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&paths[1]).unwrap();
        fs::write(host.path("disk"), "a disk").unwrap();
        std::os::unix::fs::symlink(host.path("disk"), &paths[2]).unwrap();
        fs::write(&paths[3], "a disk").unwrap();
        let looked = look(paths.to_vec());
        assert_eq!(paths.each_ref().map(|path| looked[path].removable().is_some()), [false, false, true, true]);
        let marker = Marker { replaced: paths.to_vec(), ..Marker::default() };
        marker::put(&host.session.place, &marker).unwrap();
        let error = remove(&host.session.place, Uuid::nil(), &paths, &host.progress()).unwrap_err();
        assert!(error.code == Code::Conflict && error.context["path"] == paths[0], "{error:?}");
        let left = paths.each_ref().map(|path| fs::symlink_metadata(path).is_ok());
        assert_eq!(left, [true, true, false, false]);
        assert!(Path::new(&host.path("disk")).exists(), "a link goes alone");
    }
}
