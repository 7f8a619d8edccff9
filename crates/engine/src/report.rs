//! What became of an operation, put together: which way was taken, why, and what was moved.

use kvm_clone_core::plan::PointPlan;
use kvm_clone_core::wire::lane::Verify;

use crate::clone::{CloneSettings, Prepared};
use crate::outcome::{CloneResult, Way};
use crate::step::Work;

impl Prepared {
    /// A machine of which any disk is compared is one that is compared.
    fn way(&self, work: &Work) -> Way {
        match self.plan.disks.iter().any(|disk| disk.base.is_some()) {
            true if work.all_untouched() => Way::Untouched,
            true => Way::Compare,
            false => Way::Full,
        }
    }

    fn why(&self, work: &Work) -> String {
        let Some(replica) = &self.plan.replica else {
            return match &self.plan.replaces {
                Some(replaced) => format!("machine {} was replaced by new images", replaced.name),
                None => "the machine is new at the target".to_owned(),
            };
        };
        match self.way(work) {
            Way::Untouched => format!("nobody wrote to the disks of either side since the point of {}", replica.point),
            Way::Full => "all disks were copied whole into new images".to_owned(),
            Way::Compare => {
                let (compared, point) = (work.moved.compared, &replica.point);
                format!("{} of {} blocks differed from the point of {point}", compared.differing, compared.blocks)
            }
        }
    }

    /// What is kept, and what that takes with what was written now: it stands on the newest of them.
    fn points(&self, work: &Work) -> Vec<PointPlan> {
        let mut kept = self.plan.points.kept.clone();
        kept.iter_mut().take(1).for_each(|newest| newest.bytes = newest.bytes.saturating_add(work.overlay_bytes()));
        kept
    }

    /// The result of what was done.
    pub(crate) fn report(&mut self, work: &Work, settings: &CloneSettings) -> CloneResult {
        let moved = &work.moved;
        let phases = self.phases.close(moved.sent);
        CloneResult {
            operation_id: self.fresh.operation,
            operation_type: self.kind(),
            success: true,
            vm_name: self.plan.vm_name.clone(),
            new_vm_name: self.plan.new_vm_name.clone(),
            new_uuid: self.plan.new_uuid,
            source_host: self.source.host.name.clone(),
            dest_host: self.target.host.name.clone(),
            duration: self.started.elapsed().as_secs_f64(),
            bytes_total: self.plan.bytes_total,
            bytes_read: moved.read,
            bytes_read_dest: moved.looked,
            bytes_transferred: moved.sent + moved.digests,
            bytes_written: moved.written,
            resumed: self.staged.is_some(),
            bytes_kept: moved.kept,
            block_size: self.plan.block_size,
            blocks_total: self.plan.blocks_total,
            blocks_synchronized: match self.way(work) {
                Way::Full => moved.data_blocks,
                Way::Compare | Way::Untouched => moved.compared.differing,
            },
            way: self.way(work),
            why: self.why(work),
            route: moved.route,
            consistency: self.plan.consistency,
            verified: settings.verify != Verify::Off,
            checksums: work.checksums(),
            points: self.points(work),
            disks: work.disk_results(),
            phases,
            warnings: [self.plan.warnings.clone(), work.warnings.clone()].concat(),
            timestamp: jiff::Timestamp::now().to_string(),
        }
    }
}
