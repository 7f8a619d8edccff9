//! The variables of UEFI firmware, which get a file of the copy's own.

use super::{FileKind, Files, carried, taken};
use crate::domain::is_read_by;
use crate::error::Error;
use crate::name::VmName;
use crate::plan::check::Checks;
use crate::plan::{Facts, Replaced, replace};

/// What files of variables are called; others become the first.
const EXTENSIONS: [&str; 6] = ["fd", "qcow2", "raw", "img", "bin", "nvram"];

pub(super) fn place(facts: &Facts<'_>, replaces: Option<&Replaced>, checks: &mut Checks) -> Files {
    let Some((old, [plain, other])) = nvram_paths(facts) else { return Files::default() };
    let is_taken_over = replace::has(facts, replaces, &plain);
    let path = if is_taken_over { other } else { plain };
    let chain = facts.source.files.get(&old).map_or(&[][..], Vec::as_slice);
    // libvirt finds a name for new ones by itself, unless that is the one of the machine that is replaced.
    let is_named = is_taken_over || !chain.is_empty() || facts.domain.nvram().is_some_and(|nvram| nvram.path.is_some());
    let has_directory = || if is_named { has_directory(facts, &path) } else { Ok(()) };
    if let Err(error) = is_free(facts, &path).and_then(|()| has_directory()).and_then(|()| is_read(facts)) {
        checks.fail("nvram", error);
        return Files::default();
    }
    let mut files = Files { nvram: is_named.then(|| path.clone()), ..Files::default() };
    match chain {
        [] => checks.ok("nvram", "the firmware has no variables yet; libvirt makes them at the first start"),
        [file] if file.regular_file => {
            checks.ok("nvram", format!("the firmware's variables become {path}"));
            files.carried.push(carried(FileKind::Nvram, "nvram", file, path));
        }
        _ => {
            let error = Error::unsupported(format!("the firmware's variables {old} are no plain file by itself"));
            checks.fail("nvram", error.with("path", &old).help("Make one file of them: qemu-img convert"));
        }
    }
    files
}

/// Every path that [`place`] may choose, and the directory that must be there.
pub(super) fn candidates(facts: &Facts<'_>) -> Vec<String> {
    let paths = nvram_paths(facts).map(|(_, paths)| paths.to_vec()).unwrap_or_default();
    let dir = paths.first().and_then(|path| path.rsplit_once('/')).map(|(dir, _)| dir.to_owned());
    paths.into_iter().chain(dir).collect()
}

/// The source's path, and two names for the copy's, as libvirt would name it, and one for where the machine that is
/// replaced has that: in the directory that the source's definition names, if the target has images or variables there, else in
/// libvirt's own. The source has no say about any other place of the target's, nor about what kind of file is put there.
fn nvram_paths(facts: &Facts<'_>) -> Option<(String, [String; 2])> {
    let named = facts.domain.nvram()?.path;
    let (old, _) = facts.domain.nvram_file(&facts.source.nvram_dir)?;
    let (dir, file) = old.rsplit_once('/')?;
    let is_for_images = || {
        let mut pools = facts.target.pools.iter().filter(|pool| pool.active && pool.holds_files());
        pools.any(|pool| pool.path.as_deref() == Some(dir))
    };
    let dir = if named.is_some() && is_for_images() { dir } else { &facts.target.nvram_dir };
    let extension = file.rsplit_once('.').map(|(_, extension)| extension);
    let extension = extension.filter(|extension| EXTENSIONS.contains(extension)).unwrap_or("fd");
    let name: &VmName = facts.new_name;
    let [.., a, b, c, d] = facts.fresh.operation.into_bytes();
    let plain = format!("{dir}/{name}_VARS.{extension}");
    let other = format!("{dir}/{name}-{a:02x}{b:02x}{c:02x}{d:02x}_VARS.{extension}");
    Some((old.clone(), [plain, other]))
}

/// A libvirt that does not know the format would give the guest variables that are none.
fn is_read(facts: &Facts<'_>) -> Result<(), Error> {
    let Some(nvram) = facts.domain.nvram() else { return Ok(()) };
    if is_read_by(&nvram.format, facts.target.libvirt_version) {
        return Ok(());
    }
    let message = format!("the firmware's variables are {}, which the target's libvirt takes for raw", nvram.format);
    Err(Error::unsupported(message)
        .with("host", &facts.target.host_name)
        .help("Install libvirt 9.2 or newer there, or make them raw at the source: qemu-img convert -O raw"))
}

fn is_free(facts: &Facts<'_>, path: &str) -> Result<(), Error> {
    let used = facts.target.machines.iter().find(|machine| machine.uses.contains(path));
    if used.is_none() && !facts.target.paths_present.contains(path) {
        return Ok(());
    }
    let owner = used.map(|machine| format!(" and belongs to machine {}", machine.name)).unwrap_or_default();
    Err(taken(facts, path, &owner).help("Move the file away, or choose another name with --new-name"))
}

fn has_directory(facts: &Facts<'_>, path: &str) -> Result<(), Error> {
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    if facts.target.paths_present.contains(dir) {
        return Ok(());
    }
    Err(Error::insufficient(format!("the target has no directory {dir} for the firmware's variables"))
        .with("path", dir)
        .with("host", &facts.target.host_name)
        .help(format!("Make it: install -d -m 0711 {dir}")))
}
