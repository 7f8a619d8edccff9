//! Images that nobody may write to for a moment: from the last look at a machine that is stopped until its definition names others.
//! Who starts the machine meanwhile, under whatever definition, is refused by qemu.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use kvm_clone_core::wire::replica::HeldImage;
use kvm_clone_core::{Error, Result};
use rustix::fs::OFlags;

use super::qemu_lock;
use super::session::Session;
use super::sight::identity;
use crate::place::io_error;

/// Holds these images, and no others from then on, until they are let go, or the locks or this agent go. From one that is not there
/// nothing can be started.
pub(super) fn hold(session: &Session, images: &[HeldImage]) -> Result<()> {
    let mut held = Vec::new();
    for image in images {
        if let Some(file) = one(image, &held)? {
            held.push(file);
        }
    }
    session.hold_images(held.into_iter().map(|(_, file)| file).collect());
    Ok(())
}

/// A file that is held, and by which numbers it is known.
type Held = ((u64, u64), File);

fn one(image: &HeldImage, held: &[Held]) -> Result<Option<Held>> {
    let path = Path::new(&image.path);
    let Some(file) = open(path)? else { return Ok(None) };
    let now = file.metadata().map_err(|error| io_error("looking at", path, &error))?;
    let number = (now.dev(), now.ino());
    // One file may go by two names, and we are not to be in our own way.
    if !held.iter().any(|(other, _)| *other == number) {
        lock(&file, path, if image.alone { qemu_lock::take } else { qemu_lock::keep })?;
    }
    if image.expected.is_some_and(|expected| !expected.is_same_file(&identity(&now))) {
        return Err(Error::conflict(format!("{} was written to meanwhile", path.display()))
            .with("path", path.display())
            .help("Somebody started the machine that it belongs to: stop it, and run kvm-clone recover"));
    }
    Ok(Some((number, file)))
}

/// Takes a file for ourselves that is to be removed, until the returned value is dropped; none where there is no such file.
///
/// # Errors
/// [`Code::Conflict`](kvm_clone_core::Code::Conflict) where a program of qemu's has it open.
pub(super) fn alone(path: &Path) -> Result<Option<File>> {
    let Some(file) = open(path)? else { return Ok(None) };
    lock(&file, path, qemu_lock::take)?;
    Ok(Some(file))
}

fn open(path: &Path) -> Result<Option<File>> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some).map_err(|error| io_error("opening", path, &error)),
    }
}

fn lock(file: &File, path: &Path, by: impl Fn(&File) -> std::io::Result<bool>) -> Result<()> {
    if by(file).map_err(|error| io_error("locking", path, &error))? {
        return Ok(());
    }
    Err(Error::conflict(format!("{} is in use by a program of qemu's", path.display()))
        .with("path", path.display())
        .help("Stop the machine that uses it, and run the command again")
        .help("fuser or lsof shows which program it is; where they show none, it runs on another host that shares this storage"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use kvm_clone_core::Code;

    use super::super::test_host::TestHost;
    use super::*;

    #[test]
    fn what_is_held_is_read_and_not_written_until_it_is_let_go() {
        let host = TestHost::new();
        let path = host.path("disk");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let qemu_can = |what: &str, way: &[&str]| {
            let io = [way, &["-f", "raw", "-c", what, &path]].concat();
            Command::new("qemu-io").args(io).output().unwrap().status.success()
        };
        let before = identity(&std::fs::metadata(&path).unwrap());
        let image = |expected| HeldImage::shared(path.clone(), expected);
        let missing = HeldImage::shared(host.path("missing"), None);
        hold(&host.session, &[image(Some(before)), missing]).unwrap();
        assert!(!qemu_can("write 0 512", &[]));
        assert!(qemu_can("read 0 512", &["-r"]));
        host.session.hold_images(Vec::new());
        assert!(qemu_can("write 0 512", &[]));
        let error = hold(&host.session, &[image(Some(before))]).unwrap_err();
        assert!(error.code == Code::Conflict && error.message.contains("written to"), "{error:?}");
    }

    #[test]
    fn what_somebody_writes_to_is_not_held() {
        let host = TestHost::new();
        let path = host.path("disk");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let taken = File::options().read(true).write(true).open(&path).unwrap();
        assert!(qemu_lock::take(&taken).unwrap());
        let error = hold(&host.session, &[HeldImage::shared(path, None)]).unwrap_err();
        assert!(error.code == Code::Conflict && error.message.contains("in use"), "{error:?}");
    }

    #[test]
    fn what_is_held_alone_is_read_by_nobody_and_refused_where_somebody_reads() {
        let host = TestHost::new();
        let (path, link) = (host.path("disk"), host.path("link"));
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let both = [HeldImage::alone(path.clone()), HeldImage::alone(link)];
        let reader = File::open(&path).unwrap();
        assert!(qemu_lock::keep(&reader).unwrap());
        let error = hold(&host.session, &both).unwrap_err();
        assert!(error.code == Code::Conflict && error.context["path"] == path, "{error:?}");
        assert!(alone(Path::new(&path)).is_err());
        drop(reader);
        hold(&host.session, &both).unwrap();
        let read = ["-r", "-f", "raw", "-c", "read 0 512", &path];
        assert!(!Command::new("qemu-io").args(read).output().unwrap().status.success());
        host.session.hold_images(Vec::new());
        assert!(alone(Path::new(&path)).unwrap().is_some());
        assert!(alone(Path::new(&host.path("missing"))).unwrap().is_none());
    }
}
