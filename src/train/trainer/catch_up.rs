//! A run that was stopped in the middle of a validation or a sample: what was not logged is repeated when it is resumed, so that its logs
//! are those of a run that was never stopped.

use super::Trainer;
use super::sft_eval;
use crate::metrics::{Record, SampleRecord, read_log};
use anyhow::Result;

impl Trainer {
    /// Before the first step of this process: what belongs to the present step and is not in the logs.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        let step = self.state.run.step;
        if self.due(self.config.eval.every) && !self.validation_curve.iter().any(|(at, _)| *at == step as f64) {
            self.validate()?;
        }
        if self.data.sft.is_some() && self.due(self.config.eval.every) {
            if !self.logged(step, |task| task == sft_eval::BASE)? {
                self.validate_base()?;
            }
            if !self.logged(step, |task| task == sft_eval::ANSWERS)? {
                self.evaluate_answers()?;
            }
        }
        if !self.benchmarks.is_empty()
            && self.due(self.config.eval.steps_between_tasks())
            && !self.logged_tasks(step)?
        {
            self.run_benchmarks()?;
        }
        if self.config.sample.every > 0 && self.due(self.config.sample.every) {
            let logged: Vec<SampleRecord> = read_log(&self.context.dir)?;
            let prompts = &self.config.sample.prompts;
            // A stop may have come between two prompts: what is logged is not drawn again.
            let done = logged.iter().filter(|sample| sample.step == step && prompts.contains(&sample.prompt)).count();
            self.sample(done)?;
        }
        Ok(())
    }

    /// Whether the tasks' metrics at `step` are in the log: they are written all together.
    fn logged_tasks(&self, step: u64) -> Result<bool> {
        self.logged(step, |task| ![sft_eval::ANSWERS, sft_eval::BASE].contains(&task))
    }

    /// Whether the log has a metric at `step` of a task that `matches`.
    fn logged(&self, step: u64, matches: impl Fn(&str) -> bool) -> Result<bool> {
        let records: Vec<Record> = read_log(&self.context.dir)?;
        Ok(records
            .iter()
            .any(|record| matches!(record, Record::Eval(eval) if eval.step == step && matches(&eval.task))))
    }
}
