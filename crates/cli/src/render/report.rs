//! What a clone did, in a few lines.

use kvm_clone_core::plan::Consistency;
use kvm_clone_core::size::ByteSize;
use kvm_clone_engine::{CloneResult, OperationType, Way};

use super::harmless;
use super::paint::Paint;

/// The result for a reader.
pub(crate) fn clone_report(result: &CloneResult, paint: Paint) -> String {
    let way = match result.way {
        Way::Full => "full copy",
        Way::Compare => "what differs",
        Way::Untouched => "nothing",
    };
    let consistency = match result.consistency {
        Consistency::Stopped => "of the stopped machine",
        Consistency::Crash => "of the running machine, all disks at one moment (crash-consistent)",
    };
    let verified = if result.verified { "yes, every block was read back and compared" } else { "no, as asked" };
    let phases: Vec<String> =
        result.phases.iter().map(|phase| format!("{} {:.1} s", phase.name.word(), phase.duration)).collect();
    let (read, sent) = (ByteSize(result.bytes_read), ByteSize(result.bytes_transferred));
    let written = ByteSize(result.bytes_written);
    let (source, dest) = (&result.source_host, &result.dest_host);
    let done = match result.operation_type {
        OperationType::Clone => format!("{} on {source} is copied to {} on {dest}", result.vm_name, result.new_vm_name),
        OperationType::Sync => format!("{} on {dest} is as {} on {source}", result.new_vm_name, result.vm_name),
    };
    let sums = result.checksums.iter().filter(|(_, sum)| sum.algorithm != "kvm-clone-root");
    let sums: Vec<String> =
        sums.map(|(disk, sum)| format!("  {:<10} {} {}, on both sides", sum.algorithm, sum.value, disk)).collect();
    let mut lines = vec![
        paint.strong(&done),
        format!("  way        {way} {consistency}: {}", harmless(&result.why)),
        format!("  verified   {verified}"),
        format!("  bytes      {read} read, {sent} sent, {written} written"),
        format!("  time       {:.1} s ({})", result.duration, phases.join(", ")),
        format!("  uuid       {}", result.new_uuid),
        format!("  operation  {}", result.operation_id),
    ];
    if result.resumed {
        lines.push(format!("  resumed    {} were there already, and right", ByteSize(result.bytes_kept)));
    }
    let kept = result.points.iter();
    lines.extend(
        kept.map(|kept| format!("  kept       {}, which takes {}", harmless(&kept.point), ByteSize(kept.bytes))),
    );
    lines.extend(sums);
    lines.extend(result.warnings.iter().map(|warning| format!("{} {}", paint.warn("warning:"), harmless(warning))));
    lines.join("\n") + "\n"
}
