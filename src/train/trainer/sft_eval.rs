//! What fine-tuning is for, measured along the way: do answers end by themselves, are they answers, and what has the model forgotten.

use super::Trainer;
use crate::metrics::SampleRecord;
use crate::sample::sampler::Sampler;
use crate::sample::{FinishReason, Limits, generate};
use crate::sft::EvalPrompt;
use crate::train::requests::unless_stopped;
use anyhow::Result;

/// The task under which shares of answers are logged.
pub(super) const ANSWERS: &str = "answers";

/// The task under which the loss on the data of the base model is logged.
pub(super) const BASE: &str = "base_validation";

/// Answers that are kept in samples.jsonl.
const KEPT: usize = 2;

impl Trainer {
    /// Runs after every validation; does nothing in pretraining.
    pub(super) fn evaluate_sft(&mut self) -> Result<()> {
        self.validate_base()?;
        self.evaluate_answers()
    }

    /// Whether answers to the held-out prompts end, and are answers.
    pub(super) fn evaluate_answers(&mut self) -> Result<()> {
        let Some(sft) = self.data.sft.as_ref().filter(|sft| !sft.eval_prompts.is_empty()) else { return Ok(()) };
        let questions = sft.eval_prompts.clone();
        let markers = sft.markers.clone();
        let started = self.start_phase("answering held-out prompts");
        let step = self.state.run.step;
        let answers = self.group.deal("answers", questions.len(), |i| self.answer(&questions[i], i as u64));
        let Some(answers) = unless_stopped(answers)? else { return Ok(()) };
        let ended = answers.iter().filter(|(_, stopped)| *stopped).count();
        let proper = answers.iter().filter(|(text, stopped)| *stopped && is_answer(text, &markers)).count();
        // After all are answered: a request to stop leaves no half of an evaluation in the logs.
        let seed = self.config.sample.seed;
        for (question, (text, _)) in questions.iter().zip(answers).take(KEPT) {
            self.progress.sample(step, &format!("{} ->", question.question.trim_end()), &text);
            self.log_sample(&SampleRecord { step, prompt: question.question.clone(), text, seed })?;
        }
        let n = questions.len();
        let shares = [("ended", ended), ("proper", proper)].map(|(name, count)| (name, count as f64 / n as f64));
        for (name, share) in shares {
            self.log_share(name, share, n)?;
        }
        self.progress.task(step, ANSWERS, &shares);
        self.record_pause("answers", self.config.eval.every, started.elapsed())
    }

    /// An answer drawn as `[sample]` says, the same at every run, and whether it ended by itself. Greedy answers would be less
    /// informative: small models repeat themselves when nothing is left to chance.
    fn answer(&self, question: &EvalPrompt, number: u64) -> Result<(String, bool)> {
        let tokenizer = &self.data.dataset.tokenizer;
        let mut sampler = Sampler::new(self.sampler_config(), tokenizer.vocab_size(), self.config.sample.seed, number)?;
        let limits = Limits { max_tokens: self.config.sft.judged_tokens, ..Default::default() };
        let samplers = std::slice::from_mut(&mut sampler);
        let generated = generate(&self.state.model, tokenizer, &question.prompt, samplers, &limits, |_, _| {
            self.watchdog.alive();
            self.context.requests.check()
        })?;
        let answer = generated.into_iter().next();
        Ok(answer.map_or((String::new(), false), |answer| (answer.text, answer.finish_reason == FinishReason::Stop)))
    }

    /// Logs a share of `n` answers, with its standard error.
    fn log_share(&mut self, name: &str, share: f64, n: usize) -> Result<()> {
        // With the sample's variance, hence n - 1, as lm-evaluation-harness has it.
        let stderr = if n > 1 { (share * (1.0 - share) / (n - 1) as f64).sqrt() } else { f64::NAN };
        self.log_eval(ANSWERS, name, share, stderr)
    }

    /// The loss on the validation rows of the data that the base model was trained on.
    pub(super) fn validate_base(&mut self) -> Result<()> {
        if self.data.dataset.base_val.is_none() {
            return Ok(());
        }
        let started = self.start_phase("validating on the base data");
        let Some(rows) = &self.data.dataset.base_val else { return Ok(()) };
        let Some(score) = self.score(rows)? else { return Ok(()) };
        let metrics = [("loss", score.loss), ("bits_per_byte", score.bits_per_byte())];
        for (metric, value) in metrics.into_iter().filter(|(_, value)| value.is_finite()) {
            self.log_eval(BASE, metric, value, f64::NAN)?;
        }
        self.progress.task(self.state.run.step, BASE, &metrics);
        self.record_pause("base validation", self.config.eval.every, started.elapsed())
    }
}

/// Whether `text` is an answer and nothing else: it says something, and does not continue the conversation by itself.
fn is_answer(text: &str, markers: &[String]) -> bool {
    !text.trim().is_empty() && !markers.iter().any(|marker| text.contains(marker))
}
