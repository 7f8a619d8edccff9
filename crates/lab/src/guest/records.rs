//! Reads what a writing guest (`init.sh`) left on a disk, and judges whether it is one point in time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{LabError, Result};

const BLOCK: usize = 4096;
/// Records begin behind the first mebibyte.
const START: u64 = 1 << 20;

/// The records of a disk that is one point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Records {
    /// The number of the newest record; 0 where there is none.
    pub last: u64,
}

/// Reads a raw image. An error names the first record that a point in time cannot have: torn, missing or too new. The guest
/// makes record n durable before it writes record n+1, so every crash leaves all records up to one number; only the one
/// after it may be torn.
pub fn records(raw_image: &Path) -> Result<Records> {
    let image = File::open(raw_image).map_err(LabError::file("open", raw_image))?;
    let size = image.metadata().map_err(LabError::file("look at", raw_image))?.len();
    let blocks = size.saturating_sub(START) / BLOCK as u64;
    let mut numbers = Vec::new();
    let mut block = vec![0; BLOCK];
    for index in 0..blocks {
        image.read_exact_at(&mut block, START + index * BLOCK as u64).map_err(LabError::file("read", raw_image))?;
        numbers.push(number_of(&block));
    }
    judge(&numbers).map_err(|reason| LabError::Refused(format!("{}: {reason}", raw_image.display())))
}

/// `Ok(0)` for a block that was never written, an error for a torn one.
fn number_of(block: &[u8]) -> std::result::Result<u64, ()> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let line = block.split_inclusive(|byte| *byte == b'\n').next().ok_or(())?;
    let number = std::str::from_utf8(line).ok().and_then(|line| line.trim_end().strip_prefix("kvm-clone record "));
    let number = number.and_then(|digits| digits.parse().ok()).ok_or(())?;
    let whole = block.iter().eq(line.iter().cycle().take(BLOCK));
    if whole { Ok(number) } else { Err(()) }
}

/// Block i may hold record i+1, and later those that a full round of the disk lie after it.
fn judge(numbers: &[std::result::Result<u64, ()>]) -> std::result::Result<Records, String> {
    let last = numbers.iter().flatten().copied().max().unwrap_or(0);
    let round = numbers.len() as u64;
    for (index, found) in (0u64..).zip(numbers) {
        let oldest = index + 1;
        // The newest record that this block can have had when record `last` was written.
        let wanted = if last < oldest { 0 } else { oldest + (last - oldest) / round * round };
        match found {
            Ok(number) if *number == wanted => {}
            Ok(number) => {
                return Err(format!("block {index} holds record {number} and not {wanted}, the last is {last}"));
            }
            Err(()) if index == last % round => {}
            Err(()) => return Err(format!("block {index} holds a torn record, the last whole one is {last}")),
        }
    }
    Ok(Records { last })
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn a_point_in_time_has_all_records_up_to_one() {
        let all =
            |numbers: &[u64]| judge(&numbers.iter().copied().map(Ok).collect::<Vec<_>>()).ok().map(|found| found.last);
        assert_eq!(all(&[0, 0, 0]), Some(0));
        assert_eq!(all(&[1, 2, 0]), Some(2));
        assert_eq!(all(&[4, 5, 3]), Some(5));
        assert_eq!(all(&[1, 0, 3]), None, "a record is missing");
        assert_eq!(all(&[1, 5, 3]), None, "a record is too new");
        assert!(judge(&[Ok(1), Err(()), Ok(0)]).is_ok(), "the next record was being written");
        assert!(judge(&[Ok(1), Ok(2), Ok(0), Err(())]).is_err());
    }
}
