//! A plan as text.

use std::fmt::{self, Write};

use super::{ClonePlan, DiskPlan, Outcome, PointPlan, PointsPlan};
use crate::blocks::BlockSize;
use crate::size::ByteSize;

impl ClonePlan {
    /// The plan for a reader, without colour.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let Self { vm_name, new_vm_name, source_host, dest_host, .. } = self;
        match &self.replica {
            None => writeln!(out, "Clone {vm_name} on {source_host} to {new_vm_name} on {dest_host}")?,
            Some(replica) => {
                writeln!(out, "Sync {new_vm_name} on {dest_host} with {vm_name} on {source_host}")?;
                writeln!(out, "  from the point of {}", replica.point)?;
            }
        }
        writeln!(out, "  UUID {}", self.new_uuid)?;
        self.write_disks(out)?;
        self.write_points(out)?;
        self.write_replaced(out)?;
        writeln!(out, "\nChecks")?;
        for check in &self.checks {
            let outcome = match check.outcome {
                Outcome::Ok => "ok",
                Outcome::Warn => "warn",
                Outcome::Fail => "FAIL",
            };
            writeln!(out, "  {outcome:<4} {:<10} {}", check.name, check.message)?;
            if let Some(help) = &check.help {
                writeln!(out, "                  {help}")?;
            }
        }
        self.write_notes(out)?;
        match self.refusal() {
            Some(error) => writeln!(out, "\nThis plan cannot be carried out: {error}"),
            None => Ok(()),
        }
    }

    fn write_disks(&self, out: &mut String) -> fmt::Result {
        let (total, needed) = (ByteSize(self.bytes_total), ByteSize(self.space_needed));
        writeln!(out, "\nDisks: {total} of data at most, {needed} with margin")?;
        if self.block_size != BlockSize::default() {
            writeln!(out, "  compared by blocks of {}", self.block_size)?;
        }
        self.disks.iter().try_for_each(|disk| write_disk(out, disk))?;
        self.files.iter().try_for_each(|file| {
            writeln!(out, "  {}  {}", file.name, ByteSize(file.size))?;
            let pool = file.pool.as_ref().map(|pool| format!(" (pool {pool})")).unwrap_or_default();
            writeln!(out, "    from {}\n    to   {}{pool}", file.source_path, file.path)
        })
    }

    fn write_points(&self, out: &mut String) -> fmt::Result {
        let PointsPlan { kept, dropped, .. } = &self.points;
        if kept.is_empty() && dropped.is_empty() {
            return Ok(());
        }
        writeln!(out, "\nOld points")?;
        let is_new = |point: &str| self.replica.as_ref().is_some_and(|replica| replica.point == point);
        for PointPlan { point, bytes } in kept {
            match is_new(point) {
                true => writeln!(out, "  {point}  is kept, and takes what differs from it")?,
                false => writeln!(out, "  {point}  stays, and takes {}", ByteSize(*bytes))?,
            }
        }
        dropped.iter().try_for_each(|point| writeln!(out, "  {point}  is dropped once the new point is there"))
    }

    fn write_replaced(&self, out: &mut String) -> fmt::Result {
        let Some(replaced) = &self.replaces else { return Ok(()) };
        if self.replica.is_some() {
            if !replaced.files.is_empty() {
                writeln!(out, "\nOnce the new point is there, these are removed:")?;
            }
            return replaced.files.iter().try_for_each(|file| writeln!(out, "  {file}"));
        }
        writeln!(
            out,
            "\nReplaces machine {} ({}); once the new one is there, these are removed:",
            replaced.name, replaced.uuid
        )?;
        if replaced.files.is_empty() {
            writeln!(out, "  no files")?;
        }
        replaced.files.iter().try_for_each(|file| writeln!(out, "  {file}"))
    }

    /// What the transformation of the definition had to say; the other warnings stand with their checks.
    fn write_notes(&self, out: &mut String) -> fmt::Result {
        let in_checks = |warning: &&String| self.checks.iter().any(|check| check.message == **warning);
        let notes: Vec<&String> = self.warnings.iter().filter(|warning| !in_checks(warning)).collect();
        if !notes.is_empty() {
            writeln!(out, "\nWhat changes in the definition")?;
        }
        notes.iter().try_for_each(|note| writeln!(out, "  {note}"))
    }
}

fn write_disk(out: &mut String, disk: &DiskPlan) -> fmt::Result {
    let (size, allocated) = (ByteSize(disk.size), ByteSize(disk.allocated));
    writeln!(out, "  {}  {size}, {allocated} of data", disk.target)?;
    for (depth, image) in disk.chain.iter().enumerate() {
        let word = if depth == 0 { "from" } else { "over" };
        writeln!(out, "    {word} {} ({})", image.path, image.format)?;
        if let Some(data) = &image.data_file {
            writeln!(out, "    data {data}")?;
        }
    }
    let pool = disk.pool.as_ref().map(|pool| format!(", pool {pool}")).unwrap_or_default();
    let in_place = if disk.is_in_place() { ", in place" } else { "" };
    writeln!(out, "    to   {} ({}{pool}){in_place}", disk.path, disk.format)?;
    if let Some(base) = disk.base.as_ref().filter(|base| !base.in_place) {
        let why = match base.merges.iter().find(|merge| merge.overlay == disk.path) {
            None => "on which it stays".to_owned(),
            Some(merge) if merge.image == base.path => "into which it is merged at the end".to_owned(),
            Some(merge) => format!("with which it is merged into {} at the end", merge.image),
        };
        writeln!(out, "    onto {} ({}), {why}", base.path, base.format)?;
        base.under.iter().try_for_each(|link| writeln!(out, "    over {} ({})", link.path, link.format))?;
    }
    match &disk.whole {
        Some(whole) => writeln!(out, "    as the file that it is, with {} snapshot(s) inside", whole.snapshots),
        None => Ok(()),
    }
}
