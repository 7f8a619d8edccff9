//! Images that nobody may write to for a moment: from the last look at a machine that is stopped until its definition names others.
//! Who starts the machine meanwhile, under whatever definition, is refused by qemu.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
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
    let held = images.iter().filter_map(|image| one(image).transpose()).collect::<Result<Vec<File>>>()?;
    session.hold_images(held);
    Ok(())
}

fn one(image: &HeldImage) -> Result<Option<File>> {
    let path = Path::new(&image.path);
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| io_error("opening", path, &error))?,
    };
    if !qemu_lock::keep(&file).map_err(|error| io_error("locking", path, &error))? {
        return Err(Error::conflict(format!("{} is in use by a program of qemu's", path.display()))
            .with("path", path.display())
            .help("Stop the machine that uses it, and run the command again"));
    }
    let now = file.metadata().map_err(|error| io_error("looking at", path, &error))?;
    if image.expected.is_some_and(|expected| !expected.is_same_file(&identity(&now))) {
        return Err(Error::conflict(format!("{} was written to meanwhile", path.display()))
            .with("path", path.display())
            .help("Somebody started the machine that it belongs to: stop it, and run kvm-clone recover"));
    }
    Ok(Some(file))
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
        let image = |expected| HeldImage { path: path.clone(), expected };
        let missing = HeldImage { path: host.path("missing"), expected: None };
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
        let error = hold(&host.session, &[HeldImage { path, expected: None }]).unwrap_err();
        assert!(error.code == Code::Conflict && error.message.contains("in use"), "{error:?}");
    }
}
