//! Parts of clusters, against a model.

use super::*;

const SIZE: u64 = 6 * CLUSTER + 5 * 512;

/// What is written, in sectors: where, how many, and with what. Zeros are written as such.
type Written = (u64, u64, u8);

fn writes() -> impl Strategy<Value = Vec<Written>> {
    prop::collection::vec((0..SIZE / 512, 1u64..300, 0u8..4), 0..12)
}

fn write(disk: &Disk, model: &mut [u8], below: Option<&[u8]>, writes: &[Written]) {
    let below = below
        .map(|_| Box::new(super::super::super::RawReader::open(&disk.backing[0].path).unwrap()) as Box<dyn ReadDevice>);
    let writer = PartWriter::new(disk.writer(), below);
    for (first, sectors, byte) in writes {
        let (offset, end) = (first * 512, ((first + sectors) * 512).min(SIZE));
        let part = &mut model[usize::try_from(offset).unwrap()..usize::try_from(end).unwrap()];
        part.fill(*byte);
        if *byte == 0 {
            writer.write_zeroes(offset, end - offset).unwrap();
        } else {
            writer.write_at(part, offset).unwrap();
        }
        writer.start_writeback(offset, end - offset);
    }
    writer.sync().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn the_rest_of_a_cluster_stays_what_it_was(writes in writes(), below in prop::option::of(0u64..=SIZE)) {
        let mut model = vec![0; usize::try_from(SIZE).unwrap()];
        // What is below may be shorter, by any number of bytes.
        let below: Option<Vec<u8>> = below.map(|len| (0..len).map(|at| at.to_le_bytes()[0] | 16).collect());
        let disk = match &below {
            Some(below) => {
                model[..below.len()].copy_from_slice(below);
                Disk::over(below, SIZE)
            }
            None => Disk::new(SIZE),
        };
        write(&disk, &mut model, below.as_deref(), &writes);
        prop_assert!(disk.read() == model);
        disk.finish_as(&model);
    }
}

#[test]
fn a_cluster_is_filled_up_once_and_then_written_in_place() {
    let below = clusters(2, 7);
    let disk = Disk::over(&below, 2 * CLUSTER);
    let mut model = below.clone();
    let writes: Vec<Written> = (0..16).map(|part| (part * 8, 8, 1)).collect();
    write(&disk, &mut model, Some(&below), &writes);
    assert!(disk.read() == model);
    // The header, tables, and one cluster.
    let one = Disk::over(&below, 2 * CLUSTER);
    one.writer().write_at(&clusters(1, 1), 0).unwrap();
    assert_eq!(disk.allocated(), one.allocated());
}
