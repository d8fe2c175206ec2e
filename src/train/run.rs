//! A run from its present step to its last: the loop, and what happens between steps (validation, samples, checkpoints).

use super::guard::{MAX_SKIPPED_IN_A_ROW, StopRequests};
use super::state::{Rng, Saved, State, VERSION};
use super::step::{StepReport, step};
use crate::checkpoint::{self, Retention};
use crate::config::Config;
use crate::data::corpus::Corpus;
use crate::data::loader::{Drawn, Loader};
use crate::data::prefetch::Prefetch;
use crate::data::rows::Rows;
use crate::eval::{ByteLengths, score};
use crate::metrics::{Console, Events, MetricsLog, Progress, Record, SampleLog, SampleRecord, Train, Val, ascii_plot};
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::files::Lock;
use crate::sample::sampler::{Sampler, SamplerConfig};
use crate::sample::{encode_prompt, generate};
use anyhow::Result;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Fewer validation tokens than this make a noisy number.
const FEW_TARGETS: u64 = 2000;

/// The logs of a run, open for writing.
pub struct Logs {
    /// Steps and validations.
    pub metrics: MetricsLog,
    /// In-loop samples.
    pub samples: SampleLog,
    /// History of attempts.
    pub events: Events,
}

/// What a run is made of before it has a directory.
pub struct Parts {
    /// Its resolved configuration.
    pub config: Config,
    /// Its data.
    pub corpus: Corpus,
    /// The order of its training sequences.
    pub loader: Loader,
    /// Where it stands.
    pub state: State,
    /// Of the corpus: computed once, because it may read all shards.
    pub fingerprint: String,
}

/// A run in progress: the only writer of its directory.
pub struct Run {
    config: Config,
    dir: PathBuf,
    corpus: Corpus,
    lengths: ByteLengths,
    fingerprint: String,
    data: Prefetch,
    state: State,
    logs: Logs,
    attempt: u64,
    progress: Progress,
    console: Console,
    stop: StopRequests,
    /// Validation losses, for the plot at the end.
    curve: Vec<(f64, f64)>,
    saved_step: Option<u64>,
    _held: Lock,
}

impl Run {
    /// A run whose directory is locked by `held`; `resumed` if its state is that of a checkpoint of it.
    pub fn new(
        parts: Parts,
        dir: &Path,
        held: Lock,
        logs: Logs,
        attempt: u64,
        console: Console,
        resumed: bool,
    ) -> Result<Self> {
        let Parts { config, corpus, loader, state, fingerprint } = parts;
        let progress = Progress::new(console, state.counters.step, config.train.steps, config.log.every);
        let lengths = ByteLengths::new(&corpus.tokenizer);
        let stop = StopRequests::listen(dir)?;
        let saved_step = resumed.then_some(state.counters.step);
        let curve = if resumed { validation_curve(dir)? } else { Vec::new() };
        let dir = dir.to_path_buf();
        Ok(Self {
            config,
            dir,
            corpus,
            lengths,
            fingerprint,
            data: Prefetch::new(loader)?,
            state,
            logs,
            attempt,
            progress,
            console,
            stop,
            curve,
            saved_step,
            _held: held,
        })
    }

    /// Trains to the last step.
    ///
    /// # Errors
    /// [`Exit::Stopped`] after a request to stop, with everything saved; [`Exit::Diverged`] when no update is finite any more; those of
    /// data and files.
    pub fn train(mut self) -> Result<()> {
        self.introduce();
        if self.saved_step.is_none() {
            self.validate()?;
            self.sample()?;
        }
        while self.state.counters.step < self.config.train.steps {
            if self.stop.asked() {
                return self.stop_early();
            }
            self.one_step()?;
            self.between_steps()?;
        }
        self.finish()
    }

    fn one_step(&mut self) -> Result<()> {
        let begun = Instant::now();
        let train = &self.config.train;
        let sequences =
            self.data.sequences(self.state.counters.next_sequence, train.tokens_per_step / train.sequence_length)?;
        let data_seconds = begun.elapsed().as_secs_f64();
        let report = step(&mut self.state, train, &sequences, self.data.loader().boundary())?;
        let took = begun.elapsed();
        let tokens_per_second = train.tokens_per_step as f64 / took.as_secs_f64();
        let record = self.train_record(report, tokens_per_second, data_seconds);
        self.progress.step(&record, took);
        self.logs.metrics.append(&Record::Train(record))?;
        if report.skipped {
            self.skipped(report)?;
        }
        Ok(())
    }

    fn train_record(&self, report: StepReport, tokens_per_second: f64, data_seconds: f64) -> Train {
        let counters = &self.state.counters;
        Train {
            step: counters.step,
            loss: if report.skipped { f64::NAN } else { report.loss },
            grad_norm: report.grad_norm,
            lr: report.lr,
            tokens: counters.tokens,
            tokens_per_second,
            mfu: f64::NAN,
            data_seconds,
            chain: counters.chain.clone(),
            skipped: report.skipped,
        }
    }

    /// Notes a refused update; gives up when refusing does not end.
    fn skipped(&mut self, report: StepReport) -> Result<()> {
        let (step, row) = (self.state.counters.step, self.state.counters.skipped_in_a_row);
        let what = format!("loss {}, gradient norm {}", report.loss, report.grad_norm);
        self.progress.warn(&format!("step {step}: {what}: update refused"));
        self.logs.events.append(
            "skip",
            json!({"step": step, "loss": finite(report.loss), "grad_norm": finite(report.grad_norm)}),
        )?;
        if row < MAX_SKIPPED_IN_A_ROW {
            return Ok(());
        }
        self.save()?;
        self.logs.events.append("diverged", json!({"step": step}))?;
        Err(fail(Exit::Diverged, format!("step {step}: {row} updates in a row were not finite ({what})"))
            .hint("resume an earlier checkpoint with a lower optimizer.lr or a longer schedule.warmup_steps")
            .into())
    }

    /// Validation, samples and checkpoint where they are due, in this order: what belongs to a step is logged before it is saved.
    fn between_steps(&mut self) -> Result<()> {
        let (step, last) = (self.state.counters.step, self.config.train.steps);
        let due = |every: u64| step == last || (every > 0 && step.is_multiple_of(every));
        if due(self.config.eval.every) {
            self.validate()?;
        }
        if self.config.sample.every > 0 && due(self.config.sample.every) {
            self.sample()?;
        }
        if due(self.config.checkpoint.every) {
            self.save()?;
        }
        Ok(())
    }

    fn validate(&mut self) -> Result<()> {
        let Some(rows) = &self.corpus.val else { return Ok(()) };
        let begun = Instant::now();
        self.progress.doing("validating");
        let result = score(&self.state.model, rows, &self.lengths, self.config.train.micro_batch_size, |_| ())?;
        let val = Val {
            step: self.state.counters.step,
            loss: result.loss,
            bits_per_byte: result.bits_per_byte(),
            tokens: result.tokens,
            floor_bits_per_byte: self.corpus.floor.map(|f| f.bits_per_byte),
        };
        self.curve.push(point(&val));
        self.progress.val(&val);
        self.logs.metrics.append(&Record::Val(val))?;
        self.progress.interruption("validation", self.config.eval.every, begun.elapsed());
        Ok(())
    }

    fn sample(&mut self) -> Result<()> {
        if self.config.sample.every == 0 {
            return Ok(());
        }
        let begun = Instant::now();
        let s = &self.config.sample;
        let rule = SamplerConfig { temperature: s.temperature, top_k: s.top_k, top_p: s.top_p, ..Default::default() };
        let (tokenizer, step) = (&self.corpus.tokenizer, self.state.counters.step);
        for (i, prompt) in s.prompts.iter().enumerate() {
            self.progress.doing("sampling");
            let mut sampler = Sampler::new(rule.clone(), tokenizer.vocab_size(), s.seed, i as u64)?;
            let ids = encode_prompt(tokenizer, prompt)?;
            let made = generate(&self.state.model, tokenizer, &ids, &mut sampler, s.max_tokens, |_| Ok(()))?;
            self.progress.sample(step, prompt, &made.text);
            self.logs.samples.append(&SampleRecord { step, prompt: prompt.clone(), text: made.text, seed: s.seed })?;
        }
        self.progress.interruption("samples", s.every, begun.elapsed());
        Ok(())
    }

    /// Makes logs and then a checkpoint durable.
    fn save(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.progress.doing("saving");
        self.logs.metrics.sync()?;
        self.logs.samples.sync()?;
        let saved = self.snapshot();
        let keep = Retention { keep: self.config.checkpoint.keep, keep_every: self.config.checkpoint.keep_every };
        let dir = self.state.with_contents(&saved, &self.corpus.tokenizer, |contents| {
            checkpoint::save(&self.dir, self.attempt, contents, keep)
        })?;
        self.saved_step = Some(self.state.counters.step);
        let took = begun.elapsed();
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned());
        let event = json!({"step": self.state.counters.step, "checkpoint": name, "seconds": took.as_secs_f64()});
        self.logs.events.append("save", event)?;
        self.progress.saved(self.state.counters.step, &dir, took);
        self.progress.interruption("saving", self.config.checkpoint.every, took);
        Ok(())
    }

    fn snapshot(&self) -> Saved {
        Saved {
            version: VERSION,
            counters: self.state.counters.clone(),
            attempt: self.attempt,
            schedule: self.state.schedule.clone(),
            rng: Rng { train_seed: self.config.train.seed, data_seed: self.config.data.seed },
            data_fingerprint: self.fingerprint.clone(),
            config: self.config.to_toml(),
            build: super::identity(&self.config.train),
        }
    }

    fn stop_early(&mut self) -> Result<()> {
        let step = self.state.counters.step;
        if self.saved_step != Some(step) {
            self.save()?;
        }
        self.logs.events.append("stop", json!({"step": step}))?;
        self.stop.honoured();
        let dir = self.dir.display();
        Err(fail(Exit::Stopped, format!("stopped at step {step} of {}, all saved", self.config.train.steps))
            .hint(format!("go on with: llama-lite resume --ckpt {dir}"))
            .into())
    }

    fn introduce(&mut self) {
        let (model, train) = (&self.config.model, &self.config.train);
        let sequences = train.steps * (train.tokens_per_step / train.sequence_length) as u64;
        let drawn = self.data.loader().drawn(sequences);
        let passes =
            if let [one] = drawn.as_slice() { format!("{:.2} passes", one.passes) } else { "a mixture".into() };
        let mut lines = format!(
            "{} parameters · {} steps of {} tokens · {passes} over {} training tokens",
            crate::metrics::count(model.n_params()),
            crate::metrics::count(train.steps),
            crate::metrics::count(train.tokens_per_step as u64),
            crate::metrics::count(self.corpus.train_tokens()),
        );
        for Drawn { name, sequences: n, passes } in drawn.iter().filter(|_| drawn.len() > 1) {
            lines += &format!("\n{:5.1} % {passes:.2} passes over {name}", 100.0 * *n as f64 / sequences as f64);
        }
        if let Some(floor) = &self.corpus.floor {
            lines += &format!(
                "\nvalidation floor {:.4} ± {:.4} bits per byte: the exact entropy of the {} validation stories",
                floor.bits_per_byte, floor.stderr, floor.stories
            );
        }
        lines += &match self.corpus.val.as_ref().map(Rows::targets) {
            None => "\nno validation split: give data.val, or a directory with val shards".into(),
            Some(n) if n < FEW_TARGETS => format!(
                "\nwarning: only {n} validation tokens, their loss says little: give data.val or raise data.val_fraction"
            ),
            Some(n) => format!("\n{} validation tokens", crate::metrics::count(n)),
        };
        let at = self.state.counters.step;
        let verb = match at {
            0 => "starting".into(),
            _ if at < train.steps => format!("resuming at step {at}"),
            _ => format!("nothing to do: it has its {at} steps; for more: --set train.steps=N"),
        };
        self.progress.print(&format!("{lines}\n{verb} · {}", self.dir.display()));
    }

    fn finish(mut self) -> Result<()> {
        let step = self.state.counters.step;
        if self.saved_step != Some(step) {
            self.validate()?;
            self.save()?;
        }
        let drawn: Vec<_> =
            self.data.loader().drawn(self.state.counters.next_sequence).iter().map(source_json).collect();
        self.logs.events.append("finish", json!({"step": step, "sources": drawn}))?;
        self.progress.finish();
        if self.curve.len() > 2 && !self.console.quiet {
            let floor = self.corpus.floor.map(|f| f.bits_per_byte);
            let title = if self.lengths.known() { "validation loss, bits per byte" } else { "validation loss" };
            note(&ascii_plot(&self.curve, 72, 16, floor, title));
        }
        if !self.console.quiet {
            let dir = self.dir.display();
            note(&format!("done: {} steps. Try: llama-lite sample --ckpt {dir}", crate::metrics::count(step)));
        }
        Ok(())
    }
}

/// A validation as the plot shows it.
fn point(val: &Val) -> (f64, f64) {
    (val.step as f64, if val.bits_per_byte.is_finite() { val.bits_per_byte } else { val.loss })
}

/// The validations that the run has logged so far.
fn validation_curve(dir: &Path) -> Result<Vec<(f64, f64)>> {
    let records = crate::metrics::read(&dir.join("metrics.jsonl"))?;
    Ok(records.iter().filter_map(|r| if let Record::Val(val) = r { Some(point(val)) } else { None }).collect())
}

/// What a source has given, for the events.
fn source_json(drawn: &Drawn) -> serde_json::Value {
    json!({"name": drawn.name, "sequences": drawn.sequences, "passes": drawn.passes})
}

/// JSON has no other numbers.
fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}
