//! Steps that fail: refused updates, rollbacks to the last good checkpoint.
//!
//! The ladder: refuse the update; after three in a row (or ten in a thousand steps) go back to the last checkpoint from before the first
//! of them and past the data that led to them; after `guard.rollbacks` of those, stop and leave a report.

use super::Trainer;
use crate::checkpoint::{self, Opened};
use crate::metrics::Events;
use crate::model::params::{ParamSpec, with_host_slices};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::write_atomic;
use crate::train::guard::{Excess, Verdict};
use crate::train::logs::{RunLogs, report_altered_logs};
use crate::train::replay::ReplayCheck;
use crate::train::step::StepReport;
use crate::train::trainer_state::TrainerStateFile;
use anyhow::Result;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

impl Trainer {
    /// Reports what the guard has decided about the last step, and rolls back if refusing updates does not help.
    pub(super) fn handle_verdict(&mut self, report: StepReport) -> Result<()> {
        let step = self.state.run.step;
        let numbers = format!("loss {}, gradient norm {}", report.loss, report.grad_norm);
        let why = match report.verdict {
            Verdict::Accept => return Ok(()),
            Verdict::Spike(what, excess) => {
                self.progress.warn(&format!("step {step}: {numbers}: the {what} is {excess}"));
                let (measure, value) = match excess {
                    Excess::Deviations(z) => ("deviations", z),
                    Excess::TimesLargest(times) | Excess::TimesGuessing(times) => ("times", times),
                };
                let event = json!({"step": step, "quantity": what, measure: value, "loss": report.loss, "grad_norm": report.grad_norm});
                return self.logs.events.append("spike", event);
            }
            Verdict::RefuseSpike(what, excess) => format!("the {what} is {excess}"),
            Verdict::RefuseNonFinite => "not finite".into(),
        };
        self.progress.warn(&format!("step {step}: {numbers}: update refused ({why})"));
        let event = json!({"step": step, "loss": report.loss, "grad_norm": report.grad_norm, "why": why});
        self.logs.events.append("skip", event)?;
        if self.state.run.guard.should_roll_back() {
            return self.roll_back(&format!("refusing updates does not help ({numbers})"));
        }
        Ok(())
    }

    /// Continues from the last checkpoint before the refusals, with the data after those seen since; gives up if that was tried often
    /// enough.
    pub(super) fn roll_back(&mut self, why: &str) -> Result<()> {
        let step = self.state.run.step;
        let next_sequence = self.state.run.next_sequence;
        // Read before `restore` replaces all three.
        let tried = self.state.run.guard.rollbacks;
        if tried >= self.config.guard.rollbacks {
            let rollbacks =
                if tried == 1 { "nor does 1 rollback".to_owned() } else { format!("nor do {tried} rollbacks") };
            return Err(self.give_up(&format!("{why}, {rollbacks}")));
        }
        let last_good_step = self.state.run.guard.last_good_step(step);
        let Some(dir) = self.on_first("a checkpoint to go back to", |trainer| trainer.newest_until(last_good_step))?
        else {
            return Err(self.give_up(&format!("{why}, and there is no checkpoint from before it")));
        };
        let source = Opened::open_beside(&dir, self.config.adapter_base())?;
        let saved = TrainerStateFile::read(&source)?;
        let to_step = saved.state.step;
        // Before the state is restored: if the process dies here, the good checkpoint is the newest.
        self.on_first("later checkpoints", |trainer| {
            checkpoint::supersede(&trainer.context.dir, to_step, trainer.state.run.attempt)
        })?;
        self.state.restore(&source, &saved)?;
        // The restored guard does not know of this rollback: without the count there would be no end to them.
        self.state.run.guard.rollbacks = tried + 1;
        self.state.run.jump_to_sequence(next_sequence);
        self.reopen_logs(&saved)?;
        self.saves.last_step = Some(to_step);
        self.progress.warn(&format!(
            "step {step}: {why}: going back to step {to_step}, and on with the data after sequence {next_sequence}"
        ));
        let skipped = [saved.state.next_sequence, next_sequence];
        let event =
            json!({"step": step, "to_step": to_step, "skipped_sequences": skipped, "rollbacks": tried + 1, "why": why});
        self.logs.events.append("rollback", event)
    }

    /// The newest good checkpoint of a step up to `last`.
    fn newest_until(&mut self, last: u64) -> Result<Option<PathBuf>> {
        // A save in flight may have been copied before the refusals: then it may be the checkpoint to go back to.
        if let Some(done) = self.wait_for_save()?
            && let Ok(dir) = &done.result
        {
            self.record_save(done.step, dir, done.took)?;
        }
        Ok(checkpoint::newest_valid_until(&self.context.dir, last)?.newest.map(|valid| valid.dir))
    }

    /// Cuts the logs to the checkpoint `saved`: the steps after it are taken again, with other data.
    fn reopen_logs(&mut self, saved: &TrainerStateFile) -> Result<()> {
        let step = saved.state.step;
        if self.group.is_first() {
            let dir = &self.context.dir;
            let mut events = Events::open(dir)?;
            report_altered_logs(dir, step, &saved.logs, &mut events, self.context.console)?;
            self.logs = RunLogs::open(dir, &self.config.log, events, Some(step))?;
        }
        // Other data follow, so the steps taken again need not repeat the old ones.
        self.replay = ReplayCheck::default();
        self.validation_curve.retain(|(at, _)| *at <= step as f64);
        Ok(())
    }

    /// Leaves a report and what can be saved.
    fn give_up(&mut self, why: &str) -> anyhow::Error {
        let started = Instant::now();
        let step = self.state.run.step;
        let report = self.context.dir.join(format!("diverged-step-{step:08}.json"));
        // With several ranks each has the summed gradient of its shard alone.
        let gradient = self.state.sharding.gather(&self.state.grad);
        let gathered = gradient.and_then(|()| self.gather_state());
        let written = gathered.and_then(|gathered| {
            self.on_first("the report", |trainer| {
                let written = trainer.write_findings(&report, why);
                // Weights that are finite are worth keeping: every bad update was refused. Others are never published.
                if trainer.saves.last_step != Some(step)
                    && trainer.displaced().is_none()
                    && let Ok(dir) = trainer.write_gathered(gathered.as_ref())
                {
                    let _ = trainer.record_save(step, &dir, started.elapsed());
                }
                Ok(written.is_ok())
            })
        });
        let ending = if written.unwrap_or(false) { format!("; see {}", report.display()) } else { String::new() };
        fail(Exit::Diverged, format!("step {step}: {why}{ending}"))
            .hint("resume an earlier checkpoint with a lower optimizer.lr or a longer schedule.warmup_steps")
            .into()
    }

    fn write_findings(&mut self, report: &Path, why: &str) -> Result<()> {
        let findings = self.findings(why)?;
        write_atomic(report, format!("{findings:#}\n").as_bytes())?;
        self.logs.events.append("diverged", json!({"step": self.state.run.step, "why": why}))
    }

    /// The report of the step at which the run ends.
    fn findings(&self, why: &str) -> Result<Value> {
        let run = &self.state.run;
        let count = self.config.train.sequences_per_step() as u64;
        let (layout, weights) = self.state.model.trained();
        let tensors: Vec<Value> = with_host_slices(&[weights, &self.state.grad], |flats| {
            layout.specs.iter().map(|spec| tensor_summary(spec, flats[0], flats[1])).collect()
        })?;
        Ok(json!({
            "step": run.step,
            "why": why,
            "sequences": {"first": run.next_sequence.saturating_sub(count), "count": count},
            "chain": run.data_hash.to_string(),
            "updates": run.updates,
            "guard": run.guard,
            "data_offsets": run.data_offsets,
            "tensors": tensors,
        }))
    }
}

fn tensor_summary(spec: &ParamSpec, weights: &[f32], gradients: &[f32]) -> Value {
    let range = spec.start..spec.start + spec.len;
    json!({"name": spec.name, "weight": summary(&weights[range.clone()]), "gradient": summary(&gradients[range])})
}

/// Norm of the finite elements, and how many are not.
fn summary(values: &[f32]) -> Value {
    let finite = values.iter().filter(|x| x.is_finite());
    let squares: f64 = finite.map(|&x| f64::from(x) * f64::from(x)).sum();
    json!({"norm": squares.sqrt(), "not_finite": values.iter().filter(|x| !x.is_finite()).count()})
}
