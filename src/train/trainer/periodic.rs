//! Validation, benchmark tasks and samples. A request to stop cuts them short; `catch_up.rs` repeats them when the run is resumed.

use super::Trainer;
use crate::chat::Message;
use crate::data::eval_set::EvalSet;
use crate::eval::benchmark::evaluate;
use crate::eval::report::lines;
use crate::eval::{Score, score};
use crate::metrics::{Record, SampleRecord, Val, read_log};
use crate::runtime::failpoint::failpoint;
use crate::sample::sampler::{Sampler, SamplerConfig};
use crate::sample::{Limits, encode_prompt, generate};
use crate::train::requests::unless_stopped;
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

/// In tests: SIGUSR1 at this very moment.
fn plant_request_to_save(place: &'static str, step: u64) -> Result<()> {
    if failpoint(place, step).is_some() {
        signal_hook::low_level::raise(signal_hook::consts::SIGUSR1)?;
    }
    Ok(())
}

impl Trainer {
    /// Shows in the progress line and to the watchdog what training pauses for.
    pub(super) fn start_phase(&mut self, phase: &str) -> Instant {
        self.progress.doing(phase);
        self.watchdog.start_phase(format!("{phase} at step {}", self.state.run.step));
        Instant::now()
    }

    pub(super) fn validate(&mut self) -> Result<()> {
        if self.data.dataset.val.is_none() {
            return Ok(());
        }
        let started = self.start_phase("validating");
        let Some(rows) = &self.data.dataset.val else { return Ok(()) };
        let Some(score) = self.score(rows)? else { return Ok(()) };
        let val = Val {
            step: self.state.run.step,
            loss: score.loss,
            bits_per_byte: score.bits_per_byte(),
            tokens: score.tokens,
            floor_bits_per_byte: self.data.dataset.floor.map(|floor| floor.bits_per_byte),
        };
        self.validation_curve.push(point(&val));
        self.progress.val(&val);
        self.log(Record::Val(val))?;
        self.record_pause("validation", self.config.eval.every, started.elapsed())
    }

    /// The present model on `rows`; none if it was cut short by a request to stop.
    pub(super) fn score(&self, rows: &EvalSet) -> Result<Option<Score>> {
        let step = self.state.run.step;
        let rows_at_once = self.config.train.micro_batch_size;
        unless_stopped(score(&self.group, &self.state.model, rows, &self.byte_lengths, rows_at_once, |_| {
            self.watchdog.alive();
            plant_request_to_save("save-asked-in-validation", step)?;
            if let Some(seconds) = failpoint("slow-validation", step) {
                std::thread::sleep(std::time::Duration::from_secs_f64(seconds));
            }
            self.context.requests.check()
        }))
    }

    pub(super) fn run_benchmarks(&mut self) -> Result<()> {
        if self.benchmarks.is_empty() {
            return Ok(());
        }
        let started = self.start_phase("running benchmark tasks");
        let results = evaluate(&self.group, &self.state.model, &self.benchmarks, |_, _| {
            self.watchdog.alive();
            self.context.requests.check()
        });
        let Some(results) = unless_stopped(results)? else { return Ok(()) };
        let step = self.state.run.step;
        for line in lines(&self.benchmarks, &results) {
            for metric in &line.metrics {
                self.log_eval(&line.name, metric.name, metric.value, metric.stderr.unwrap_or(f64::NAN))?;
            }
            self.progress.task(step, &line.name, &line.metrics.iter().map(|m| (m.name, m.value)).collect::<Vec<_>>());
        }
        self.record_pause("tasks", self.config.eval.steps_between_tasks(), started.elapsed())
    }

    /// How tokens are drawn in this run.
    pub(super) fn sampler_config(&self) -> SamplerConfig {
        let s = &self.config.sample;
        SamplerConfig { temperature: s.temperature, top_k: s.top_k, top_p: s.top_p, ..Default::default() }
    }

    /// The ids of a configured prompt; in fine-tuning it is a user's message, rendered by the chat template.
    pub(super) fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = &self.data.dataset.tokenizer;
        match &self.data.sft {
            Some(sft) => tokenizer.encode_rendered(&sft.template.render(&[Message::new("user", text)], true)?),
            None => encode_prompt(tokenizer, text),
        }
    }

    /// Continues every prompt but the first `logged` ones.
    pub(super) fn sample(&mut self, logged: usize) -> Result<()> {
        let started = self.start_phase("sampling");
        let step = self.state.run.step;
        let s = self.config.sample.clone();
        // As many at a time as there are ranks, and each logged before the next: a request to stop loses no more than those.
        let at_once = self.group.ranks();
        for first in (logged..s.prompts.len()).step_by(at_once) {
            let count = at_once.min(s.prompts.len() - first);
            let texts = self.group.deal("samples", count, |i| self.continue_prompt(first + i));
            let Some(texts) = unless_stopped(texts)? else { return Ok(()) };
            for (prompt, text) in s.prompts[first..].iter().zip(texts) {
                self.progress.sample(step, prompt, &text);
                self.log_sample(&SampleRecord { step, prompt: prompt.clone(), text, seed: s.seed })?;
            }
        }
        self.record_pause("samples", s.every, started.elapsed())
    }

    /// The continuation of prompt number `i`.
    fn continue_prompt(&self, i: usize) -> Result<String> {
        let s = &self.config.sample;
        let step = self.state.run.step;
        let tokenizer = &self.data.dataset.tokenizer;
        let limits = Limits { max_tokens: s.max_tokens, ..Default::default() };
        // The same draws for a prompt at every step: its samples differ by the model alone.
        let mut sampler = Sampler::new(self.sampler_config(), tokenizer.vocab_size(), s.seed, i as u64)?;
        let ids = self.prompt(&s.prompts[i])?;
        let samplers = std::slice::from_mut(&mut sampler);
        let generated = generate(&self.state.model, tokenizer, &ids, samplers, &limits, |_, _| {
            self.watchdog.alive();
            plant_request_to_save("save-asked-in-sample", step)?;
            self.context.requests.check()
        })?;
        Ok(generated.into_iter().map(|sample| sample.text).next().unwrap_or_default())
    }
}
