//! A loop device on a file of a host: whoever writes to the device writes to the file, past everybody who looks at the file alone.

use std::path::{Path, PathBuf};

use crate::run::{make_dir, run, write};
use crate::storage::{make_node, numbers};
use crate::{Host, LabError, Result};

/// A loop device. It ends with this value, or with the lab.
#[derive(Debug)]
pub struct LoopDevice {
    /// As the machine knows it.
    device: String,
    inside: String,
    node: PathBuf,
    /// Tells the lab's teardown of the device.
    record: PathBuf,
}

impl Host {
    /// A loop device on a file, as `/dev/NAME` in the host until the next boot.
    pub fn loop_device(&self, name: &str, file: &str) -> Result<LoopDevice> {
        let device = run(&["losetup", "--find", "--show", &self.path(file).to_string_lossy()])?.trim().to_owned();
        let records = self.dir().join("loops");
        make_dir(&records)?;
        let inside = format!("/dev/{name}");
        let record = records.join(device.trim_start_matches("/dev/"));
        let made = LoopDevice { device, node: self.path(&inside), inside, record };
        write(&made.record, "", 0o600)?;
        let (major, minor) = numbers(Path::new(&made.device))?;
        make_node(&made.node, major, minor)?;
        Ok(made)
    }
}

impl LoopDevice {
    /// Its path in the host.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.inside
    }

    /// The device is gone; nobody may have it open.
    pub fn end(self) -> Result<()> {
        self.detach()
    }

    fn detach(&self) -> Result<()> {
        if !self.record.exists() {
            return Ok(());
        }
        run(&["losetup", "--detach", &self.device])?;
        // First the record: the device's number can be somebody else's from now on.
        std::fs::remove_file(&self.record).map_err(LabError::file("remove", &self.record))?;
        std::fs::remove_file(&self.node).map_err(LabError::file("remove", &self.node))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // What fails here is left to the lab's teardown.
        let _ = self.detach();
    }
}
