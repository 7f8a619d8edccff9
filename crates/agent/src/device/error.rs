//! What can go wrong with a disk, in the distinctions that matter to who has to react.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A failure of a device. Names the file, and the place where there is one.
#[derive(Debug)]
pub struct DeviceError {
    /// The file or block device.
    pub path: PathBuf,
    /// The offset of the bytes in question, where that says anything: of the disk for reads and writes of the guest's
    /// data, of the file for an image's own structures.
    pub offset: Option<u64>,
    /// What happened.
    pub problem: Problem,
}

/// What happened to a device.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// `ENOSPC` or `EDQUOT`: the target's file system, pool or quota is full.
    #[error("no space is left")]
    NoSpace(#[source] io::Error),
    /// `EFBIG`: the file system holds no file of that length.
    #[error("the file system holds no file that is so large")]
    TooLarge(#[source] io::Error),
    /// `EIO`: the medium or its transport fails.
    #[error("the storage failed")]
    Media(#[source] io::Error),
    /// Any other failed call.
    #[error("cannot {doing}")]
    Io {
        /// The action, as a verb.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The image contradicts itself or its format.
    #[error("the image is corrupt: {0}")]
    Corrupt(String),
    /// The image is sound, but another reader has to be used.
    #[error("the image uses what this reader does not know: {feature}")]
    Unsupported {
        /// The feature's name.
        feature: String,
    },
    /// The image asks for a file that the plan has not named; it was not opened.
    #[error("the image has the backing file {named:?}, which the plan does not name")]
    NotNamed {
        /// The file, and its format where the image states one.
        named: String,
    },
    /// Neither a regular file nor a block device.
    #[error("neither a regular file nor a block device")]
    NotADisk,
    /// A request beyond the end, or off the boundaries the device asks for: a mistake of the caller or the peer.
    #[error("{len} bytes at this offset are not a possible request to a disk of {size} bytes")]
    BadRequest {
        /// Length asked for.
        len: u64,
        /// Size of the disk.
        size: u64,
    },
}

impl DeviceError {
    /// A problem with a file as a whole.
    pub(crate) fn new(path: &Path, problem: Problem) -> Self {
        Self { path: path.to_owned(), offset: None, problem }
    }

    /// The same problem, at an offset.
    #[must_use]
    pub(crate) fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// A failed call.
    pub(crate) fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        let problem = match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => Problem::NoSpace(source),
            Some(Errno::FBIG) => Problem::TooLarge(source),
            Some(Errno::IO) => Problem::Media(source),
            _ => Problem::Io { doing, source },
        };
        Self::new(path, problem)
    }

    /// An image that contradicts itself.
    pub(crate) fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        Self::new(path, Problem::Corrupt(what.into()))
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl Error for DeviceError {
    // The problem's own words are in our text already; its cause is not.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problem.source()
    }
}

/// What devices return.
pub type Result<T, E = DeviceError> = std::result::Result<T, E>;
