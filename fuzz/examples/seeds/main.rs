//! Writes the seeds of the fuzz targets into their directories below the one that is named: `cargo run --example seeds -- corpus`.
//! Run it again after a change of the wire, and commit what changed. Those of `domain_xml` are kept by hand.

mod frames;
mod journal;
mod nbd;

use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    let corpus = PathBuf::from(std::env::args().nth(1).expect("usage: seeds DIRECTORY"));
    for (target, write) in
        [("frame_decoder", frames::write as fn(&Path)), ("journal", journal::write), ("nbd", nbd::write)]
    {
        let dir = corpus.join(target);
        fs::create_dir_all(&dir).unwrap();
        write(&dir);
    }
}

/// A seed: the byte that chooses, and what it is chosen for.
fn seed(dir: &Path, name: &str, choice: u8, bytes: &[u8]) {
    fs::write(dir.join(name), [&[choice], bytes].concat()).unwrap();
}
