//! A run from its present step to its last: the loop. What happens between steps is in `run/`.
//!
//! | file | holds |
//! |---|---|
//! | `run/interludes.rs` | validation and samples |
//! | `run/judge.rs` | answers of a fine-tuned model, and what it forgets |
//! | `run/saving.rs` | checkpoints, stopping early, the end |
//! | `run/trouble.rs` | refused updates, rollbacks, a device out of memory |
//! | `run/logs.rs` | the logs, and whether they are what the checkpoint says |
//! | `run/displaced.rs` | a run directory that is removed or taken over while the run writes to it |
//! | `run/introduce.rs` | what is said before the first step |

mod displaced;
mod logs;
mod periodic;
mod recovery;
mod saving;
mod sft_eval;
mod summary;

use super::indicators::layers;
use super::plan::peak_of;
use super::requests::Requests;
use super::saver::Saver;
use super::state::State;
use super::step::{is_out_of_memory, step};
use super::watchdog::Watchdog;
use crate::config::Config;
use crate::data::loader::Loader;
use crate::data::prefetch::Prefetch;
use crate::eval::ByteLengths;
use crate::eval::benchmark::Prepared;
use crate::metrics::{Console, Progress, Record, SampleRecord, Times, Train};
use crate::ops::device;
use crate::runtime::files::Lock;
use crate::runtime::thread;
use crate::train::hardware_change::{HardwareChange, Pace};
use crate::train::replay::ReplayCheck;
use crate::train::run_data::RunData;
use anyhow::Result;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use logs::{Logs, report_altered_logs};

/// What a run is made of before it has a directory.
pub struct Parts {
    pub config: Config,
    pub data: RunData,
    /// The order of its training sequences.
    pub loader: Loader,
    pub state: State,
    /// Of the corpus: computed once, because it may read all shards.
    pub fingerprint: String,
    /// Benchmark tasks that are run along the way.
    pub benchmarks: Vec<Prepared>,
}

/// The directory of a run, locked for this process, and the process's place in its history.
pub struct Place {
    pub dir: PathBuf,
    /// Which process of the run's history this is, from 1.
    pub attempt: u64,
    /// The state is that of a checkpoint.
    pub saved: bool,
    /// The steps that follow repeat logged ones: with the same configuration they must give the same bits.
    pub repeats: bool,
    /// The run was on another machine, build or number of threads before.
    pub moved: Option<HardwareChange>,
}

/// A run in progress: the only writer of its directory.
pub struct Run {
    config: Config,
    place: Place,
    lock: Lock,
    /// When it was last seen that directory, lock and logs are still there.
    seen_in_place: Instant,
    data: RunData,
    lengths: ByteLengths,
    fingerprint: String,
    benchmarks: Vec<Prepared>,
    prefetch: Prefetch,
    state: State,
    logs: Logs,
    oracle: ReplayCheck,
    progress: Progress,
    console: Console,
    requests: Requests,
    watchdog: Watchdog,
    saver: Saver,
    /// Saves in a row that the disk has refused.
    refused_saves: u32,
    /// How long the last save held training up.
    stalled: Duration,
    /// The speed before and after a change of machine, while that is measured.
    pace: Option<Pace>,
    /// Of training, by the convention of `model.flops_per_token`.
    flops_per_token: f64,
    /// FLOP/s that the device can do at most, if that is known.
    peak: Option<f64>,
    /// Validation losses, for the plot at the end.
    curve: Vec<(f64, f64)>,
    /// The step of the newest durable checkpoint of this attempt.
    saved_step: Option<u64>,
}

impl Run {
    /// A run whose directory is locked.
    ///
    /// # Errors
    /// Those of reading its logs and of starting threads.
    pub fn new(
        parts: Parts,
        place: Place,
        lock: Lock,
        logs: Logs,
        requests: Requests,
        console: Console,
    ) -> Result<Self> {
        let Parts { config, data, loader, state, fingerprint, benchmarks } = parts;
        let step = state.counters.step;
        let oracle = ReplayCheck::new(logs.metrics.cut.kept_in.as_deref().filter(|_| place.repeats));
        Ok(Self {
            progress: Progress::new(console, step, config.train.steps, config.log.every),
            lengths: ByteLengths::new(&data.dataset.tokenizer),
            saved_step: place.saved.then_some(step),
            curve: periodic::validation_curve(&place.dir)?,
            watchdog: Watchdog::start(&place.dir, Duration::from_secs(config.guard.hang_seconds))?,
            saver: Saver::new()?,
            prefetch: Prefetch::new(loader)?,
            pace: place.moved.is_some().then(|| Pace::before(&place.dir, step)).transpose()?.flatten(),
            flops_per_token: config.model.flops_per_token(config.train.sequence_length) as f64,
            peak: device::describe().and_then(|(name, _)| peak_of(&name)),
            refused_saves: 0,
            stalled: Duration::ZERO,
            config,
            place,
            lock,
            seen_in_place: Instant::now(),
            data,
            fingerprint,
            benchmarks,
            state,
            logs,
            oracle,
            console,
            requests,
        })
    }

    /// Trains to the last step.
    ///
    /// # Errors
    /// [`Exit::Stopped`](crate::runtime::error::Exit::Stopped) after a request to stop, with everything saved;
    /// [`Exit::Diverged`](crate::runtime::error::Exit::Diverged) when neither refusing updates nor rolling back helps; those of
    /// data and files.
    pub fn train(mut self) -> Result<()> {
        self.introduce()?;
        self.requests.training_begins();
        self.catch_up()?;
        if self.state.counters.step > 0 && self.saved_step.is_none() {
            self.save_now()?; // pieces of state were given up: that must not come undone
        }
        loop {
            while self.state.counters.step < self.config.train.steps {
                if self.requests.stop_asked() {
                    return self.stop_early();
                }
                self.one_step()?;
                self.between_steps()?;
            }
            if self.requests.stop_asked() && self.saved_step != Some(self.state.counters.step) {
                return self.stop_early();
            }
            self.save_now()?;
            // Weights that could not be saved have sent the run back.
            if self.state.counters.step == self.config.train.steps {
                return self.finish();
            }
        }
    }

    fn one_step(&mut self) -> Result<()> {
        let begun = Instant::now();
        let count = self.config.train.sequences_per_step();
        self.watchdog.begins(format!("waiting for the data of step {}", self.state.counters.step + 1));
        let batch = self.prefetch.batch(self.state.counters.next_sequence, count)?;
        let data_seconds = begun.elapsed().as_secs_f64();
        self.watchdog.begins(format!("step {}", self.state.counters.step + 1));
        let report = loop {
            match step(&mut self.state, &self.config, &batch) {
                Err(error) if is_out_of_memory(&error) => self.halve_micro_batch(&error)?,
                done => break done?,
            }
        };
        let took = begun.elapsed();
        self.watchdog.step(took);
        let step_now = self.state.counters.step;
        let tokens_per_second = self.config.train.tokens_per_step as f64 / took.as_secs_f64();
        let record = Train {
            tokens_per_second,
            mfu: self.peak.map_or(f64::NAN, |peak| tokens_per_second * self.flops_per_token / peak),
            data_seconds,
            reset: std::mem::take(&mut self.state.reset),
            hardware: self.place.moved.take().map(|moved| moved.mark()).unwrap_or_default(),
            ..report.record(&self.state.counters)
        };
        self.progress.step(&record, took);
        if let Some(event) = self.pace.as_mut().and_then(|pace| pace.step(&record)) {
            self.logs.events.append("speed", event)?;
            self.pace = None;
        }
        self.log(Record::Train(record))?;
        self.logs.times.append(&report.times(step_now, data_seconds, took))?;
        if let (Some(log), Some(sequences)) = (&mut self.logs.sequences, &report.sequences) {
            log.append(sequences)?;
        }
        if self.config.log.layers_due(step_now) && !report.skipped() {
            self.log(Record::Layers(layers(&self.state, &report)?))?;
        }
        self.react(report)
    }

    /// Training was held up for `took` by `what`, as it is every `every` steps.
    fn held_up(&mut self, what: &'static str, every: u64, took: Duration) -> Result<()> {
        self.progress.interruption(what, every, took);
        let seconds = BTreeMap::from([(what.to_owned(), took.as_secs_f64())]);
        self.logs.times.append(&Times { step: self.state.counters.step, seconds })
    }

    /// Appends to the metrics; a repeated record that differs from the first one is an event.
    fn log(&mut self, record: Record) -> Result<()> {
        if let Some(m) = self.oracle.check(&record) {
            let what = format!("step {}: {} was {}, repeated it is {}", m.step, m.quantity, m.recorded, m.replayed);
            self.progress.warn(&format!("{what}: this run does not reproduce itself"));
            let event = json!({"step": m.step, "quantity": m.quantity, "recorded": m.recorded, "replayed": m.replayed});
            self.logs.events.append("replay_mismatch", event)?;
        }
        if let Some(board) = &mut self.logs.board {
            board.append(&record)?;
        }
        self.logs.metrics.append(&record)
    }

    fn log_sample(&mut self, sample: &SampleRecord) -> Result<()> {
        if let Some(board) = &mut self.logs.board {
            board.append_sample(sample)?;
        }
        self.logs.samples.append(sample)
    }

    /// Validation, samples and checkpoint where they are due, in this order: what belongs to a step is logged before it is saved.
    fn between_steps(&mut self) -> Result<()> {
        if let Some(failure) = thread::dead() {
            return Err(failure.into());
        }
        self.poll_save()?;
        self.check_place_in_time()?;
        if self.due(self.config.eval.every) {
            self.validate()?;
            self.judge()?;
        }
        if self.due(self.tasks_every()) {
            self.benchmark()?;
        }
        if self.config.sample.every > 0 && self.due(self.config.sample.every) {
            self.sample(0)?;
        }
        if self.requests.stop_asked() {
            return Ok(()); // which saves
        }
        let (step, last) = (self.state.counters.step, self.config.train.steps);
        let log_spaced = self.config.checkpoint.log_spaced && step.is_power_of_two();
        if (self.requests.save_asked() || log_spaced || self.due(self.config.checkpoint.every)) && step < last {
            self.save_beside()?;
        }
        Ok(())
    }

    /// Whether what happens every `every` steps (0: only at the ends of the run) happens after the present one.
    fn due(&self, every: u64) -> bool {
        let step = self.state.counters.step;
        step == 0 || step == self.config.train.steps || (every > 0 && step.is_multiple_of(every))
    }
}
