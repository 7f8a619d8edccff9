//! Making what was written durable piece by piece, so that it can be seen to get on: an `fsync` of gigabytes tells nothing until
//! it returns, and a slow disk cannot be told from one that hangs.

use std::path::Path;

use super::{DeviceError, Result, file};

/// What is waited for at once.
pub(crate) const PIECE: u64 = 4 << 20;
/// So much is being written while a piece is waited for, so that the storage has enough to do.
const AHEAD: u64 = 64 << 20;

/// Has the contents of an image of ours written to its storage, and tells of each piece how many bytes it had. Not durable
/// yet: that needs the file's attributes, and the storage's own cache emptied, which `sync` does and which finds little
/// left to do.
///
/// # Errors
/// It cannot be opened, or the storage reports a failure.
pub fn write_out(path: &Path, written: &dyn Fn(u64)) -> Result<()> {
    let (file, size) = file::open_staging(path)?;
    let failed = |error| DeviceError::io(path, "write it out", error);
    let mut at = 0;
    while let Some(start) = file::next_data(&file, at).map_err(failed)?.filter(|start| *start < size) {
        file::start_write_back(&file, start, AHEAD);
        file::write_back(&file, start, PIECE).map_err(|error| failed(error).at(start))?;
        written(PIECE.min(size - start));
        at = start + PIECE;
    }
    Ok(())
}

/// Makes an image durable that somebody before us wrote, and has it read from its storage from now on. What that somebody
/// could not write out, and was never told of, is found only there.
///
/// # Errors
/// As [`write_out`].
pub fn read_anew(path: &Path, written: &dyn Fn(u64)) -> Result<()> {
    write_out(path, written)?;
    let (file, _) = file::open_staging(path)?;
    file.sync_all().map_err(|error| DeviceError::io(path, "make it durable", error))?;
    file::forget_file(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn pieces_with_data_are_counted_and_holes_cost_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let image = file::create_new(&path).unwrap();
        image.set_len(1 << 40).unwrap();
        image.write_all_at(&[1; 4096], 1 << 30).unwrap();
        image.write_all_at(&[1; 4096], (1 << 40) - 4096).unwrap();
        let (pieces, bytes) = (Cell::new(0), Cell::new(0));
        write_out(&path, &|written| {
            pieces.set(pieces.get() + 1);
            bytes.set(bytes.get() + written);
        })
        .unwrap();
        assert_eq!((pieces.get(), bytes.get()), (2, PIECE + 4096));
    }
}
