//! A run that was stopped in the middle of a validation or a sample: what was not logged is repeated when it is resumed, so that its logs
//! are those of a run that was never stopped.

use super::Trainer;
use super::sft_eval;
use crate::metrics::{Record, SampleRecord, read_log};
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// What belongs to the present step and is not in the logs.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Missing {
    validation: bool,
    base: bool,
    answers: bool,
    tasks: bool,
    /// The prompts whose samples are logged, if others are missing.
    logged_samples: Option<usize>,
}

impl Trainer {
    /// Before the first step of this process: what belongs to the present step and is not in the logs.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        let missing = self.on_first("what the logs lack", |trainer| trainer.missing())?;
        if missing.validation {
            self.validate()?;
        }
        if missing.base {
            self.validate_base()?;
        }
        if missing.answers {
            self.evaluate_answers()?;
        }
        if missing.tasks {
            self.run_benchmarks()?;
        }
        match missing.logged_samples {
            Some(logged) => self.sample(logged),
            None => Ok(()),
        }
    }

    fn missing(&self) -> Result<Missing> {
        let step = self.state.run.step;
        let validation_due = self.due(self.config.eval.every);
        let answers_due = self.data.sft.is_some() && validation_due;
        let tasks_due = !self.benchmarks.is_empty() && self.due(self.config.eval.steps_between_tasks());
        let samples_due = self.config.sample.every > 0 && self.due(self.config.sample.every);
        Ok(Missing {
            validation: validation_due && !self.validation_curve.iter().any(|(at, _)| *at == step as f64),
            base: answers_due && !self.logged(step, |task| task == sft_eval::BASE)?,
            answers: answers_due && !self.logged(step, |task| task == sft_eval::ANSWERS)?,
            tasks: tasks_due && !self.logged_tasks(step)?,
            logged_samples: samples_due.then(|| self.logged_samples(step)).transpose()?,
        })
    }

    /// How many of the prompts have a sample of `step` in the log: a stop may have come between two prompts, and what is logged is not
    /// drawn again.
    fn logged_samples(&self, step: u64) -> Result<usize> {
        let logged: Vec<SampleRecord> = read_log(&self.context.dir)?;
        let prompts = &self.config.sample.prompts;
        Ok(logged.iter().filter(|sample| sample.step == step && prompts.contains(&sample.prompt)).count())
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
