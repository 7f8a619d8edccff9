//! What a verification found, for a reader.

use kvm_clone_core::size::ByteSize;
use kvm_clone_engine::{Against, Method, VerifiedDisk, VerifyResult};

use super::harmless;
use super::paint::Paint;

/// The result for a reader: a line for each disk, and one for each range that differs.
pub(crate) fn verify_report(result: &VerifyResult, paint: Paint) -> String {
    let with = match &result.against {
        Against::Digests { point, .. } => format!("what it was at its point of {}", harmless(point)),
        Against::Machine { host, vm_name } => format!("{vm_name} on {host}"),
    };
    let is = if result.success { "is" } else { "is NOT" };
    let how = match result.method {
        Method::Digests => "by digests",
        Method::Bytes => "bit for bit",
    };
    let mut lines = vec![
        paint.strong(&format!("{} on {} {is} {with}", result.vm_name, result.host)),
        format!("  compared   {}, {how}, in {:.1} s", ByteSize(result.bytes_compared), result.duration),
        format!("  operation  {}", result.operation_id),
    ];
    lines.extend(result.disks.iter().flat_map(|disk| about(disk, paint)));
    lines.extend(result.files.iter().map(|file| {
        let words = harmless(&file.words()).to_string();
        let words = if file.is_well() { paint.good(&words) } else { paint.bad(&words) };
        format!("{}: {words}", file.name)
    }));
    lines.join("\n") + "\n"
}

fn about(disk: &VerifiedDisk, paint: Paint) -> Vec<String> {
    let words = disk.words();
    let words = if disk.identical { paint.good(&words) } else { paint.bad(&words) };
    let mut lines = vec![format!("{}: {words}", disk.target)];
    let ranges = disk.differences.iter();
    lines.extend(ranges.map(|range| format!("  offset {}  length {}", range.offset, range.length)));
    if disk.differences_unlisted > 0 {
        lines.push(format!("  and {} more ranges", disk.differences_unlisted));
    }
    for side in [&disk.disk, &disk.against].into_iter().flatten() {
        if let Some(sum) = &side.checksum {
            lines.push(format!("  {} {}  {}", sum.algorithm, sum.value, harmless(&side.path)));
        }
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kvm_clone_core::blocks::compare::Range;
    use kvm_clone_engine::{Checksum, FileState, VerifiedFile, VerifiedSide};
    use uuid::Uuid;

    use super::*;

    fn side(path: &str, size: u64) -> Option<VerifiedSide> {
        let checksum = Some(Checksum { algorithm: "md5", value: format!("0{}", path.len()) });
        Some(VerifiedSide { path: path.to_owned(), size, checksum })
    }

    fn disk(target: &str, differences: &[(u64, u64)], notes: &[&str]) -> VerifiedDisk {
        VerifiedDisk {
            target: target.parse().unwrap(),
            disk: side("/a.qcow2", 1 << 30),
            against: if notes.is_empty() { side("/b.img", 1 << 30) } else { None },
            identical: differences.is_empty() && notes.is_empty(),
            notes: notes.iter().map(|&note| note.to_owned()).collect(),
            bytes_compared: 1 << 30,
            bytes_differing: differences.iter().map(|(_, length)| length).sum(),
            differences: differences.iter().map(|&(offset, length)| Range { offset, length }).collect(),
            differences_unlisted: 0,
        }
    }

    fn result(disks: Vec<VerifiedDisk>) -> VerifyResult {
        VerifyResult {
            operation_id: Uuid::nil(),
            success: disks.iter().all(|disk| disk.identical),
            vm_name: "web1_clone".parse().unwrap(),
            host: "beta".to_owned(),
            against: Against::Machine { host: "alpha".to_owned(), vm_name: "web1".parse().unwrap() },
            method: Method::Digests,
            duration: 1.25,
            bytes_compared: 2 << 30,
            bytes_differing: disks.iter().map(|disk| disk.bytes_differing).sum(),
            disks,
            files: Vec::new(),
            phases: Vec::new(),
            timestamp: "2030-01-02T03:04:05Z".to_owned(),
        }
    }

    #[test]
    fn what_differs_is_listed_disk_by_disk() {
        let differing = disk("vda", &[(65536, 65536), (1 << 20, 3 << 16)], &[]);
        let found =
            result(vec![differing, disk("vdb", &[], &[]), disk("vdc", &[], &["the other machine has no such disk"])]);
        let text = verify_report(&found, Paint { on: false });
        let error = found.difference().unwrap();
        insta::assert_snapshot!("verdict", format!("{text}\n{}\n{:?}", error.message, error.context));
        assert!(result(vec![disk("vda", &[], &[])]).difference().is_none());
    }

    #[test]
    fn a_file_that_differs_is_named() {
        let file = |name: &str, state| {
            let name: kvm_clone_core::name::DiskTarget = name.parse().unwrap();
            VerifiedFile { path: format!("/a/{name}"), name, what: "the state of its TPM", state }
        };
        let unknown = FileState::Unknown { why: "its digests are not there".to_owned() };
        let against = Against::Digests { operation_id: Uuid::nil(), point: "2030-01-02T03:04:05Z".to_owned() };
        let found = VerifyResult {
            files: vec![
                file("nvram", unknown.clone()),
                file("tpm", FileState::Differs),
                file("tpmsave", FileState::Missing),
            ],
            against,
            success: false,
            ..result(vec![disk("vda", &[], &[])])
        };
        let text = verify_report(&found, Paint { on: false });
        let error = found.difference().unwrap();
        let json = serde_json::to_string_pretty(&found.files).unwrap();
        insta::assert_snapshot!("verdict_files", format!("{text}\n{}\n{:?}\n{json}", error.message, error.context));
        assert!(VerifyResult { files: vec![file("nvram", unknown)], ..found }.difference().is_none());
    }

    #[test]
    fn the_json_of_a_verdict_has_the_promised_names() {
        let value = serde_json::to_value(result(vec![disk("vda", &[(65536, 65536)], &[])])).unwrap();
        insta::assert_snapshot!("verdict_json", serde_json::to_string_pretty(&value).unwrap());
    }
}
