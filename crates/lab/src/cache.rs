//! What is dear to make and the same for every lab, kept between labs and outside the source tree.

use std::fs;
use std::path::PathBuf;

use crate::run::make_dir;
use crate::{LabError, Result};

/// The cache's place; made if it is not there.
pub(crate) fn dir() -> Result<PathBuf> {
    let path = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) if !cache.is_empty() => PathBuf::from(cache).join("kvm-clone-lab"),
        _ => PathBuf::from("/var/cache/kvm-clone-lab"),
    };
    make_dir(&path)?;
    Ok(path)
}

/// The directory `name` of the cache, built if need be. Processes that build it at the same time do not disturb each other:
/// a finished directory appears by one rename, and the first one stays.
pub(crate) fn ready(name: &str, build: impl FnOnce(&std::path::Path) -> Result<()>) -> Result<PathBuf> {
    let cache = dir()?;
    let path = cache.join(name);
    if path.exists() {
        return Ok(path);
    }
    let work = tempfile::tempdir_in(&cache).map_err(LabError::file("make directory in", &cache))?;
    let fresh = work.path().join(name);
    make_dir(&fresh)?;
    build(&fresh)?;
    match fs::rename(&fresh, &path) {
        Err(source) if !path.exists() => Err(LabError::file("rename to", &path)(source)),
        _ => Ok(path),
    }
}
