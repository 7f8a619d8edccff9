//! Files told apart by their contents, without reading their holes: most of an image is one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

const PIECE: usize = 64 * 1024;

/// A word that two files share where, and only where, they have the same length and the same bytes; how a file is allocated
/// makes no difference.
pub fn digest(path: &Path) -> String {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let length = file.metadata().unwrap().len();
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    let mut next = 0;
    while let Some(at) = data_from(&file, next) {
        let start = at - at % PIECE as u64;
        next = start + PIECE as u64;
        let left = usize::try_from(length.saturating_sub(start)).unwrap_or(PIECE);
        let piece = &mut piece[..PIECE.min(left)];
        file.read_exact_at(piece, start).unwrap();
        if piece.iter().any(|byte| *byte != 0) {
            hasher.update(&start.to_le_bytes()).update(piece);
        }
    }
    format!("{} {length}", hasher.finalize().to_hex())
}

/// The first place from here on that is no hole; none behind the last one.
fn data_from(file: &File, at: u64) -> Option<u64> {
    match seek(file, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => None,
        place => Some(place.unwrap()),
    }
}
