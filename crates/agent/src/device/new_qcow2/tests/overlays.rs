//! Images over another image.

use super::*;

#[test]
fn it_shows_what_is_below_until_something_is_written() {
    let below: Vec<u8> = (0..40 * 65536u32).map(|at| u8::try_from(at / 65536 + 1).unwrap()).collect();
    let size = 44 * CLUSTER + 512;
    let disk = Disk::over(&below, size);
    let mut model = below.clone();
    model.resize(usize::try_from(size).unwrap(), 0);
    assert!(disk.read() == model);
    let writer = disk.writer();
    let mut set = |first: usize, count: usize, value: Option<u8>| {
        let (at, len) = (first * 65536, (count * 65536).min(model.len() - first * 65536));
        match value {
            Some(value) => writer.write_at(&vec![value; len], at as u64).unwrap(),
            None => writer.write_zeroes(at as u64, len as u64).unwrap(),
        }
        model[at..at + len].fill(value.unwrap_or(0));
    };
    // Data; zeros over what is below; zeros over data; data over zeros; zeros where there is nothing below; the end.
    set(2, 3, Some(200));
    set(10, 5, None);
    set(3, 1, None);
    set(12, 1, Some(201));
    set(39, 5, None);
    set(44, 1, Some(202));
    drop(writer);
    assert!(disk.read() == model);
    disk.finish_as(&model);
    let map = String::from_utf8(disk.qemu_img(&["map", "--output=json", "-f", "qcow2"]).stdout).unwrap();
    let zeros = map.lines().filter(|line| line.contains(r#""depth": 0"#) && line.contains(r#""zero": true"#));
    assert_eq!(zeros.filter(|line| !line.contains("offset")).count(), 4, "{map}");
}

#[test]
fn zeros_take_no_room_and_give_room_back() {
    let disk = Disk::over(&clusters(512, 7), 2 * L2_SPAN);
    let writer = disk.writer();
    writer.write_at(&clusters(256, 1), 0).unwrap();
    writer.write_zeroes(0, 2 * L2_SPAN).unwrap();
    writer.sync().unwrap();
    drop(writer);
    disk.finish_and_check();
    assert!(disk.allocated() <= 10 * CLUSTER, "{}", disk.allocated());
    let reader = disk.reader();
    let list = reader.extents(0, reader.size()).unwrap();
    assert_eq!(kvm_clone_core::blocks::extents::data_len(&list), 0);
}

/// A raw image may have any size, qemu rounds it up to sectors, and what it makes up there is zero.
#[test]
fn an_odd_end_below_is_padded_with_zeros() {
    for (odd, size) in [(1000, 1024), (65536 + 1, 65536 + 512), (3 * 65536 - 7, 3 * 65536)] {
        let disk = Disk::over(&vec![9; odd], size);
        let mut model = vec![9; odd];
        model.resize(usize::try_from(size).unwrap(), 0);
        disk.finish_as(&model);
        recover(&disk.path).unwrap();
        // As the source has it: its last block is shorter by what no sector fills.
        let last = (odd - 1) / 65536 * 65536;
        disk.writer().write_at(&vec![4; odd - last], last as u64).unwrap();
        model[last..odd].fill(4);
        disk.finish_as(&model);
        recover(&disk.path).unwrap();
        disk.writer().write_zeroes(last as u64, (odd - last) as u64).unwrap();
        model[last..].fill(0);
        disk.finish_as(&model);
    }
}

#[test]
fn what_is_below_is_named_with_its_format_and_only_that_is_opened() {
    let disk = Disk::over(&clusters(4, 3), 4 * CLUSTER);
    // A guest that writes a qcow2 header into its raw disk must not be believed.
    std::fs::write(disk.backing[0].path.as_path(), std::fs::read(&disk.path).unwrap()).unwrap();
    disk.finish_and_check();
    let info = String::from_utf8(disk.qemu_img(&["info", "--output=json", "-f", "qcow2"]).stdout).unwrap();
    assert!(info.contains(r#""backing-filename-format": "raw""#), "{info}");
    assert!(info.contains(&format!(r#""backing-filename": "{}""#, disk.backing[0].path.display())), "{info}");
    let error = Qcow2Reader::open(&disk.path, &[]).unwrap_err();
    assert!(matches!(error.problem, Problem::NotNamed { .. }), "{error}");
    let relative = NamedImage { path: "below".into(), format: ImageFormat::Raw };
    let error = create_overlay(&disk.dir.path().join("x"), 512, &relative).unwrap_err();
    assert!(matches!(error.problem, Problem::Unsupported { .. }), "{error}");
}

#[test]
fn it_lies_over_a_chain_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("raw"), clusters(20, 5)).unwrap();
    let below = path("mid");
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(path("raw")).arg(&below).arg("2M");
    assert!(make.status().unwrap().success());
    let write = ["-f", "qcow2", "-c", "write -P 6 64k 64k", "-c", "write -z 256k 64k"];
    assert!(Command::new("qemu-io").args(write).arg(&below).output().unwrap().status.success());
    let backing = [("mid", ImageFormat::Qcow2), ("raw", ImageFormat::Raw)];
    let backing = backing.map(|(name, format)| NamedImage { path: path(name), format });
    create_overlay(&path("top"), 2 << 20, &backing[0]).unwrap();
    let disk = Disk { path: path("top"), backing: backing.to_vec(), dir };
    disk.writer().write_at(&clusters(1, 8), 2 * CLUSTER).unwrap();
    let mut model = [clusters(20, 5), clusters(12, 0)].concat();
    for (block, value) in [(1, 6), (4, 0), (2, 8)] {
        model[block * 65536..][..65536].fill(value);
    }
    disk.finish_as(&model);
}

/// What a power cut may leave: an entry whose cluster is not there. The block is the old one again, never rubbish.
#[test]
fn recovery_falls_back_to_what_is_below() {
    let disk = Disk::over(&clusters(8, 7), 8 * CLUSTER);
    let layout = Layout::new(8 * CLUSTER).unwrap();
    let writer = disk.writer();
    writer.write_at(&clusters(2, 1), 0).unwrap();
    writer.write_zeroes(4 * CLUSTER, CLUSTER).unwrap();
    drop(writer);
    let file = std::fs::File::options().write(true).open(&disk.path).unwrap();
    file.set_len(layout.data_start() + CLUSTER).unwrap();
    recover(&disk.path).unwrap();
    let model = [clusters(1, 1), clusters(3, 7), clusters(1, 0), clusters(3, 7)].concat();
    assert!(disk.read() == model);
    disk.finish_as(&model);
}

#[test]
fn the_zero_flag_is_foreign_to_an_image_over_nothing() {
    let disk = Disk::new(8 * CLUSTER);
    disk.writer().write_at(&clusters(1, 1), 0).unwrap();
    let file = std::fs::File::options().write(true).open(&disk.path).unwrap();
    file.write_all_at(&1u64.to_be_bytes(), Layout::new(8 * CLUSTER).unwrap().table(0) + 16).unwrap();
    let error = finish(&disk.path, &|_| ()).unwrap_err();
    assert!(matches!(error.problem, Problem::Corrupt(_)), "{error}");
}
