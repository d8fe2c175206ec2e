//! What fine-tuning is for, looked at in the loop: do answers end by themselves, are they answers, and what has the model forgotten.

use super::Run;
use crate::metrics::{Eval, Record, SampleRecord};
use crate::sample::sampler::Sampler;
use crate::sample::{FinishReason, Limits, generate};
use crate::sft::EvalPrompt;
use crate::train::run::periodic::unless_stopped;
use anyhow::Result;
use std::time::Instant;

/// Under which the judgements are logged.
pub(super) const ANSWERS: &str = "answers";

/// Under which the loss of the model that is tuned is logged, on the data it was made from.
pub(super) const BASE: &str = "base_validation";

/// Answers that are kept in samples.jsonl.
const KEPT: usize = 2;

impl Run {
    /// What is looked at after every validation of a fine-tuning run.
    pub(super) fn judge(&mut self) -> Result<()> {
        self.base_validation()?;
        self.judge_answers()
    }

    /// Whether answers to the held-out prompts end, and are answers.
    pub(super) fn judge_answers(&mut self) -> Result<()> {
        let Some(tuning) = self.data.sft.as_ref().filter(|tuning| !tuning.eval_prompts.is_empty()) else {
            return Ok(());
        };
        let (judged, markers) = (tuning.eval_prompts.clone(), tuning.markers.clone());
        let (begun, step) = (Instant::now(), self.state.counters.step);
        self.progress.doing("answering");
        self.watchdog.begins(format!("answering held-out prompts at step {step}"));
        let (mut ended, mut proper, mut texts) = (0, 0, Vec::new());
        for (i, question) in judged.iter().enumerate() {
            let Some((text, finished)) = self.answer(question, i as u64)? else { return Ok(()) };
            let stopped = finished == FinishReason::Stop;
            ended += usize::from(stopped);
            proper += usize::from(stopped && is_answer(&text, &markers));
            texts.push(text);
        }
        let seed = self.config.sample.seed;
        for (question, text) in judged.iter().zip(texts).take(KEPT) {
            self.progress.sample(step, &format!("{} ->", question.question.trim_end()), &text);
            self.log_sample(&SampleRecord { step, prompt: question.question.clone(), text, seed })?;
        }
        for (name, count) in [("ended", ended), ("proper", proper)] {
            self.log_share(name, count, judged.len())?;
        }
        let share = |count: usize| count as f64 / judged.len() as f64;
        self.progress.task(step, ANSWERS, &[("ended", share(ended)), ("proper", share(proper))]);
        self.held_up("answers", self.config.eval.every, begun.elapsed())
    }

    /// An answer drawn as `[sample]` says, the same at every run; none if it was cut short by a request to stop. The likeliest one would
    /// tell less: small models repeat themselves when nothing is left to chance.
    fn answer(&self, question: &EvalPrompt, number: u64) -> Result<Option<(String, FinishReason)>> {
        let (tokenizer, model) = (&self.data.dataset.tokenizer, &self.state.model);
        let mut sampler = Sampler::new(self.rule(), tokenizer.vocab_size(), self.config.sample.seed, number)?;
        let limits = Limits { max_tokens: self.config.sft.judged_tokens, ..Default::default() };
        let alive = |_: usize, _: &str| {
            self.watchdog.alive();
            self.requests.check()
        };
        let made = generate(model, tokenizer, &question.prompt, std::slice::from_mut(&mut sampler), &limits, alive);
        Ok(unless_stopped(made)?.and_then(|made| made.into_iter().next()).map(|made| (made.text, made.finish_reason)))
    }

    fn log_share(&mut self, name: &str, count: usize, n: usize) -> Result<()> {
        let value = count as f64 / n as f64;
        let stderr = if n > 1 { (value * (1.0 - value) / (n - 1) as f64).sqrt() } else { f64::NAN };
        let (step, task, metric) = (self.state.counters.step, ANSWERS.to_owned(), name.to_owned());
        self.log(Record::Eval(Eval { step, task, metric, value, stderr }))
    }

    /// The loss on the validation rows of the data that the tuned model was made from.
    pub(super) fn base_validation(&mut self) -> Result<()> {
        let Some(rows) = &self.data.dataset.base_val else { return Ok(()) };
        let begun = Instant::now();
        let step = self.state.counters.step;
        self.progress.doing("validating on the base data");
        self.watchdog.begins(format!("validating on the base data at step {step}"));
        let Some(result) = self.score(rows)? else { return Ok(()) };
        let all = [("loss", result.loss), ("bits_per_byte", result.bits_per_byte())];
        for (metric, value) in all.into_iter().filter(|(_, value)| value.is_finite()) {
            let (task, metric) = (BASE.to_owned(), metric.to_owned());
            self.log(Record::Eval(Eval { step, task, metric, value, stderr: f64::NAN }))?;
        }
        self.progress.task(step, BASE, &all);
        self.held_up("base validation", self.config.eval.every, begun.elapsed())
    }
}

/// Whether `text` is an answer and nothing else: it says something, and does not go on with the conversation on its own.
fn is_answer(text: &str, markers: &[String]) -> bool {
    !text.trim().is_empty() && !markers.iter().any(|marker| text.contains(marker))
}
