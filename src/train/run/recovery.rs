//! Steps that go wrong: refused updates, the way back to the last good checkpoint, a device out of memory.
//!
//! The ladder: refuse the update; after three in a row (or ten in a thousand steps) go back to the last checkpoint from before the
//! trouble and past the data that led to it; after `guard.rollbacks` of those, stop and leave a report.

use super::{Logs, Run, report_altered_logs};
use crate::checkpoint::{self, Opened};
use crate::metrics::Events;
use crate::model::params::ParamSpec;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::write_atomic;
use crate::train::footprint::{Footprint, recompute};
use crate::train::guard::{Excess, Verdict};
use crate::train::replay::ReplayCheck;
use crate::train::state::{DataOffset, Saved};
use crate::train::step::StepReport;
use anyhow::Result;
use serde_json::{Value, json};
use std::time::Instant;

/// JSON has no other numbers.
fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

impl Run {
    /// What the guard's verdict on the last step leads to.
    pub(super) fn react(&mut self, report: StepReport) -> Result<()> {
        let step = self.state.counters.step;
        let numbers = format!("loss {}, gradient norm {}", report.loss, report.grad_norm);
        let why = match report.verdict {
            Verdict::Accept => return Ok(()),
            Verdict::Spike(what, excess) => {
                self.progress.warn(&format!("step {step}: {numbers}: the {what} is {excess}"));
                let (measure, value) = match excess {
                    Excess::Deviations(z) => ("deviations", z),
                    Excess::Times(times) => ("times", times),
                };
                let event = json!({"step": step, "quantity": what, measure: value, "loss": report.loss, "grad_norm": report.grad_norm});
                return self.logs.events.append("spike", event);
            }
            Verdict::RefuseSpike(what, excess) => format!("the {what} is {excess}"),
            Verdict::RefuseNonFinite => "not finite".into(),
        };
        self.progress.warn(&format!("step {step}: {numbers}: update refused ({why})"));
        let event =
            json!({"step": step, "loss": finite(report.loss), "grad_norm": finite(report.grad_norm), "why": why});
        self.logs.events.append("skip", event)?;
        if self.state.guard.hopeless() {
            return self.roll_back(&format!("refusing updates does not help ({numbers})"));
        }
        Ok(())
    }

    /// Goes on from the last checkpoint before the trouble, past the data seen since; gives up if that was tried often enough.
    pub(super) fn roll_back(&mut self, why: &str) -> Result<()> {
        let (step, next) = (self.state.counters.step, self.state.counters.next_sequence);
        let tried = self.state.guard.rollbacks;
        if tried >= self.config.guard.rollbacks {
            return Err(self.give_up(&format!("{why}, nor do {tried} rollbacks")));
        }
        // What is still being written was copied in the middle of the trouble, or before it: then it may be the one.
        if let Some(done) = self.wait_for_save()?
            && let Ok(dir) = &done.result
        {
            self.acknowledge(done.step, dir, done.took)?;
        }
        let well = self.state.guard.last_well(step);
        let Some(valid) = checkpoint::newest_valid_until(&self.place.dir, well)?.newest else {
            return Err(self.give_up(&format!("{why}, and there is no checkpoint from before it")));
        };
        let source = Opened::open_valid(valid, self.config.adapter_base())?;
        let saved = Saved::of(&source)?;
        checkpoint::supersede(&self.place.dir, saved.counters.step, self.place.attempt)?;
        self.state.restore(&source, &saved)?;
        let (to_step, from) = (saved.counters.step, saved.counters.next_sequence);
        self.state.guard.rollbacks = tried + 1;
        self.state.counters.next_sequence = next;
        self.state.data_offsets.push(DataOffset { step: to_step, from, to: next });
        // The steps after it are taken again, with other data.
        let mut events = Events::open(&self.place.dir)?;
        report_altered_logs(&self.place.dir, (to_step, &saved.logs), &mut events, self.console)?;
        self.logs = Logs::open(&self.place.dir, &self.config.log, events, Some(to_step))?;
        self.oracle = ReplayCheck::default();
        self.curve.retain(|(at, _)| *at <= to_step as f64);
        self.saved_step = Some(to_step);
        self.progress.warn(&format!(
            "step {step}: {why}: going back to step {to_step}, and on with the data after sequence {next}"
        ));
        let event = json!({"step": step, "to_step": to_step, "skipped_sequences": [from, next], "rollbacks": tried + 1, "why": why});
        self.logs.events.append("rollback", event)
    }

    /// Leaves a report and what can be saved.
    fn give_up(&mut self, why: &str) -> anyhow::Error {
        let (begun, step) = (Instant::now(), self.state.counters.step);
        let report = self.place.dir.join(format!("diverged-step-{step:08}.json"));
        let written = self
            .findings(why)
            .and_then(|findings| write_atomic(&report, format!("{findings:#}\n").as_bytes()))
            .and_then(|()| self.logs.events.append("diverged", json!({"step": step, "why": why})));
        // Weights that are finite are worth keeping: every bad update was refused. Others are never published.
        if self.saved_step != Some(step)
            && self.displaced().is_none()
            && let Ok(dir) = self.write_live()
        {
            let _ = self.acknowledge(step, &dir, begun.elapsed());
        }
        let ending = if written.is_ok() { format!("; see {}", report.display()) } else { String::new() };
        fail(Exit::Diverged, format!("step {step}: {why}{ending}"))
            .hint("resume an earlier checkpoint with a lower optimizer.lr or a longer schedule.warmup_steps")
            .into()
    }

    /// What is known of the step at which the run ends.
    fn findings(&self, why: &str) -> Result<Value> {
        let counters = &self.state.counters;
        let count = (self.config.train.sequences_per_step()) as u64;
        let (layout, flat) = self.state.model.trained();
        let flats = [flat, &self.state.grad];
        let tensors: Vec<Value> = layout.with_slices(flats, |layout, [weights, grad]| {
            let of = |s: &ParamSpec| {
                let range = s.start..s.start + s.len;
                let (weights, grad) = (summary(&weights[range.clone()]), summary(&grad[range]));
                json!({"name": s.name, "weight": weights, "gradient": grad})
            };
            layout.specs.iter().map(of).collect()
        })?;
        Ok(json!({
            "step": counters.step,
            "why": why,
            "sequences": {"first": counters.next_sequence.saturating_sub(count), "count": count},
            "chain": counters.chain,
            "updates": counters.updates,
            "guard": self.state.guard,
            "data_offsets": self.state.data_offsets,
            "tensors": tensors,
        }))
    }

    /// The step is taken again with half as many sequences at once, or fewer; their number and order stay.
    pub(super) fn halve_micro_batch(&mut self, error: &anyhow::Error) -> Result<()> {
        let (now, step) = (self.config.train.micro_batch_size, self.state.counters.step + 1);
        // A device's errors may come with backtraces.
        let words = format!("{error:#}");
        let error = words.lines().next().unwrap_or_default();
        if now == 1 {
            let message = format!(
                "step {step}: {error}, with one sequence at a time; {} were expected",
                Footprint::of(&self.config)
            );
            return Err(fail(Exit::Memory, message)
                .hint("shorten train.sequence_length or choose a smaller model")
                .into());
        }
        // It divides the step's sequences, or the configuration of the next checkpoint could not be loaded again.
        let sequences = self.config.train.sequences_per_step();
        let fewer = (1..=now / 2).rev().find(|n| sequences.is_multiple_of(*n)).unwrap_or(1);
        self.config.train.micro_batch_size = fewer;
        self.state.model.recompute = recompute(&self.config);
        self.progress.warn(&format!("step {step}: {error}: train.micro_batch_size is {fewer} from now on"));
        self.logs.events.append(
            "out_of_memory",
            json!({"step": step, "error": error, "micro_batch_size": {"old": now, "new": fewer}}),
        )
    }
}

/// Norm of the finite elements, and how many are not.
fn summary(values: &[f32]) -> Value {
    let finite = values.iter().filter(|x| x.is_finite());
    let squares: f64 = finite.map(|&x| f64::from(x) * f64::from(x)).sum();
    json!({"norm": squares.sqrt(), "not_finite": values.iter().filter(|x| !x.is_finite()).count()})
}
