//! Validation and samples. A request to stop cuts them short: what was not logged is made up for when the run is resumed, so that its
//! logs are those of a run that was never stopped.

use super::Run;
use crate::chat::Message;
use crate::data::eval_set::EvalSet;
use crate::eval::benchmark::evaluate;
use crate::eval::report::lines;
use crate::eval::{Score, score};
use crate::metrics::{Eval, Record, SampleRecord, Val, read_log};
use crate::runtime::failpoint::failpoint;
use crate::sample::sampler::{Sampler, SamplerConfig};
use crate::sample::{Limits, encode_prompt, generate};
use crate::train::requests::StopAsked;
use crate::train::run::sft_eval;
use anyhow::Result;
use std::path::Path;
use std::time::Instant;

/// The validations that the run has logged so far.
pub(super) fn validation_curve(dir: &Path) -> Result<Vec<(f64, f64)>> {
    let records: Vec<Record> = read_log(dir)?;
    Ok(records.iter().filter_map(|r| if let Record::Val(val) = r { Some(point(val)) } else { None }).collect())
}

/// A validation as the plot shows it.
fn point(val: &Val) -> (f64, f64) {
    (val.step as f64, if val.bits_per_byte.is_finite() { val.bits_per_byte } else { val.loss })
}

/// Nothing, if it was only cut short.
pub(super) fn unless_stopped<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if error.is::<StopAsked>() => Ok(None),
        done => done.map(Some),
    }
}

/// In tests: SIGUSR1 at this very moment.
fn plant_request_to_save(place: &'static str, step: u64) -> Result<()> {
    if failpoint(place, step).is_some() {
        signal_hook::low_level::raise(signal_hook::consts::SIGUSR1)?;
    }
    Ok(())
}

impl Run {
    /// Before the first step: what belongs to the present one and is not in the logs.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        let step = self.state.counters.step;
        if self.due(self.config.eval.every) && !self.curve.iter().any(|(at, _)| *at == step as f64) {
            self.validate()?;
        }
        if self.data.sft.is_some() && self.due(self.config.eval.every) {
            if !self.logged(step, |task| task == sft_eval::BASE)? {
                self.base_validation()?;
            }
            if !self.logged(step, |task| task == sft_eval::ANSWERS)? {
                self.judge_answers()?;
            }
        }
        if !self.benchmarks.is_empty() && self.due(self.tasks_every()) && !self.logged_tasks(step)? {
            self.benchmark()?;
        }
        if self.config.sample.every > 0 && self.due(self.config.sample.every) {
            let logged: Vec<SampleRecord> = read_log(&self.place.dir)?;
            let ours =
                |sample: &&SampleRecord| sample.step == step && self.config.sample.prompts.contains(&sample.prompt);
            self.sample(logged.iter().filter(ours).count())?;
        }
        Ok(())
    }

    pub(super) fn validate(&mut self) -> Result<()> {
        let Some(rows) = &self.data.dataset.val else { return Ok(()) };
        let begun = Instant::now();
        let step = self.state.counters.step;
        self.progress.doing("validating");
        self.watchdog.begins(format!("validating at step {step}"));
        let Some(result) = self.score(rows)? else { return Ok(()) };
        let val = Val {
            step,
            loss: result.loss,
            bits_per_byte: result.bits_per_byte(),
            tokens: result.tokens,
            floor_bits_per_byte: self.data.dataset.floor.map(|f| f.bits_per_byte),
        };
        self.curve.push(point(&val));
        self.progress.val(&val);
        self.log(Record::Val(val))?;
        self.held_up("validation", self.config.eval.every, begun.elapsed())
    }

    /// The present model on `rows`; none if it was cut short by a request to stop.
    pub(super) fn score(&self, rows: &EvalSet) -> Result<Option<Score>> {
        let step = self.state.counters.step;
        let alive = |_| {
            self.watchdog.alive();
            plant_request_to_save("save-asked-in-validation", step)?;
            if let Some(seconds) = failpoint("slow-validation", step) {
                std::thread::sleep(std::time::Duration::from_secs_f64(seconds));
            }
            self.requests.check()
        };
        unless_stopped(score(&self.state.model, rows, &self.lengths, self.config.train.micro_batch_size, alive))
    }

    /// Steps between runs of the benchmark tasks.
    pub(super) fn tasks_every(&self) -> u64 {
        match self.config.eval.tasks_every {
            0 => self.config.eval.every,
            every => every,
        }
    }

    /// Whether the tasks' metrics at `step` are in the log: they are written all together.
    fn logged_tasks(&self, step: u64) -> Result<bool> {
        self.logged(step, |task| ![sft_eval::ANSWERS, sft_eval::BASE].contains(&task))
    }

    /// Whether a metric of a task for which `wanted` holds is in the log for `step`.
    fn logged(&self, step: u64, wanted: impl Fn(&str) -> bool) -> Result<bool> {
        let records: Vec<Record> = read_log(&self.place.dir)?;
        Ok(records.iter().any(|record| matches!(record, Record::Eval(eval) if eval.step == step && wanted(&eval.task))))
    }

    pub(super) fn benchmark(&mut self) -> Result<()> {
        if self.benchmarks.is_empty() {
            return Ok(());
        }
        let (begun, step) = (Instant::now(), self.state.counters.step);
        self.progress.doing("running benchmark tasks");
        self.watchdog.begins(format!("running benchmark tasks at step {step}"));
        let (requests, watchdog) = (&self.requests, &self.watchdog);
        let alive = |_, _| {
            watchdog.alive();
            requests.check()
        };
        let Some(results) = unless_stopped(evaluate(&self.state.model, &self.benchmarks, alive))? else {
            return Ok(());
        };
        for line in lines(&self.benchmarks, &results) {
            for metric in &line.metrics {
                let (task, name) = (line.name.clone(), metric.name.to_owned());
                let stderr = metric.stderr.unwrap_or(f64::NAN);
                self.log(Record::Eval(Eval { step, task, metric: name, value: metric.value, stderr }))?;
            }
            self.progress.task(step, &line.name, &line.metrics.iter().map(|m| (m.name, m.value)).collect::<Vec<_>>());
        }
        self.held_up("tasks", self.tasks_every(), begun.elapsed())
    }

    /// How tokens are drawn in this run.
    pub(super) fn rule(&self) -> SamplerConfig {
        let s = &self.config.sample;
        SamplerConfig { temperature: s.temperature, top_k: s.top_k, top_p: s.top_p, ..Default::default() }
    }

    /// The ids of a configured prompt; in fine-tuning it is what a user says.
    pub(super) fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = &self.data.dataset.tokenizer;
        match &self.data.sft {
            Some(tuning) => tokenizer.encode_rendered(&tuning.template.render(&[Message::new("user", text)], true)?),
            None => encode_prompt(tokenizer, text),
        }
    }

    /// Continues every prompt but the first `logged` ones.
    pub(super) fn sample(&mut self, logged: usize) -> Result<()> {
        let begun = Instant::now();
        let s = self.config.sample.clone();
        let (tokenizer, step) = (self.data.dataset.tokenizer.clone(), self.state.counters.step);
        self.progress.doing("sampling");
        self.watchdog.begins(format!("sampling at step {step}"));
        for (i, prompt) in s.prompts.iter().enumerate().skip(logged) {
            let mut sampler = Sampler::new(self.rule(), tokenizer.vocab_size(), s.seed, i as u64)?;
            let ids = self.prompt(prompt)?;
            let alive = |_: usize, _: &str| {
                self.watchdog.alive();
                plant_request_to_save("save-asked-in-sample", step)?;
                self.requests.check()
            };
            let limits = Limits { max_tokens: s.max_tokens, ..Default::default() };
            let made =
                generate(&self.state.model, &tokenizer, &ids, std::slice::from_mut(&mut sampler), &limits, alive);
            let Some(made) = unless_stopped(made)? else { return Ok(()) };
            let text = made.into_iter().map(|made| made.text).next().unwrap_or_default();
            self.progress.sample(step, prompt, &text);
            self.log_sample(&SampleRecord { step, prompt: prompt.clone(), text, seed: s.seed })?;
        }
        self.held_up("samples", s.every, begun.elapsed())
    }
}
