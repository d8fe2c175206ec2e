//! The training loop: a run from its present step to its last. What happens between steps is in `trainer/`:
//!
//! | file | holds |
//! |---|---|
//! | `summary.rs` | what is printed before the first step |
//! | `catch_up.rs` | what belongs to the present step and is not in the logs |
//! | `products.rs` | the algorithms of a GPU's matrix products |
//! | `periodic.rs` | validation, benchmark tasks and samples |
//! | `sft_eval.rs` | answers of a fine-tuned model, and what it forgets |
//! | `checkpointing.rs` | saving, failed saves |
//! | `recovery.rs` | refused updates, rollbacks |
//! | `out_of_memory.rs` | a device out of memory |
//! | `displaced.rs` | a run directory that is removed or replaced while the run writes to it |
//! | `ending.rs` | stopping early, the last step |

mod catch_up;
mod checkpointing;
mod displaced;
mod ending;
mod out_of_memory;
mod periodic;
mod products;
mod recovery;
mod sft_eval;
mod summary;

use super::desync::compare_states;
use super::hardware_change::{HardwareChange, SpeedComparison};
use super::indicators::layers;
use super::logs::RunLogs;
use super::model_state::ModelState;
use super::passes::is_out_of_memory;
use super::ranks::ranks_event;
use super::replay::ReplayCheck;
use super::requests::Requests;
use super::run_data::RunData;
use super::session::Session;
use super::setup::RunSetup;
use super::step::{StepReport, take_step};
use super::watchdog::Watchdog;
use crate::config::Config;
use crate::data::batch::Batch;
use crate::data::prefetch::Prefetch;
use crate::distributed::group::ProcessGroup;
use crate::eval::ByteLengths;
use crate::eval::benchmark::Prepared;
use crate::metrics::{Console, Eval, Progress, Record, SampleRecord, Times, Train};
use crate::ops::device::peak_flops;
use crate::runtime::files::Lock;
use anyhow::Result;
use candle_core::Device;
use checkpointing::SaveStatus;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The directory of a run, locked for rank 0, and what this process is to it.
pub struct RunContext {
    pub dir: PathBuf,
    /// None on ranks that write nothing.
    pub lock: Option<Lock>,
    pub requests: Requests,
    pub console: Console,
    /// Build and machine, see [`identity`](super::identity::identity).
    pub build: Value,
    pub start: StartPoint,
}

/// How the state at the start of this process relates to what the run has saved and logged.
#[derive(Default)]
pub struct StartPoint {
    /// The state is that of a checkpoint.
    pub saved: bool,
    /// The next steps repeat logged ones: with the same configuration they must give the same bits.
    pub replays: bool,
    /// The run was on another machine, build or number of threads before.
    pub hardware_change: Option<HardwareChange>,
}

/// A run in progress: the only writer of its directory.
pub struct Trainer {
    config: Config,
    device: Device,
    group: ProcessGroup,
    context: RunContext,
    data: RunData,
    data_fingerprint: String,
    benchmarks: Vec<Prepared>,
    prefetch: Prefetch,
    state: ModelState,
    logs: RunLogs,
    saves: SaveStatus,
    replay: ReplayCheck,
    progress: Progress,
    watchdog: Watchdog,
    /// When directory, lock and logs were last seen in their places.
    last_seen_in_place: Instant,
    /// Set while the speeds before and after a change of hardware are compared.
    speed_comparison: Option<SpeedComparison>,
    byte_lengths: ByteLengths,
    /// FLOPs that training takes per token, by the convention of `model.flops_per_token`.
    flops_per_token: f64,
    /// FLOP/s that the device can do at most, if that is known.
    peak_flops: Option<f64>,
    /// Validation losses, for the plot at the end.
    validation_curve: Vec<(f64, f64)>,
    /// All ranks have been asked to stop.
    stopping: bool,
}

impl Trainer {
    /// A run whose directory is locked.
    ///
    /// # Errors
    /// Those of reading its logs and of starting threads.
    pub fn new(setup: RunSetup, context: RunContext, logs: RunLogs) -> Result<Self> {
        let RunSetup { config, session, data, loader, state, data_fingerprint, benchmarks } = setup;
        let Session { device, group, .. } = session;
        let step = state.run.step;
        let StartPoint { saved, replays, hardware_change } = &context.start;
        let replaced_lines = logs.metrics.cut.kept_in.as_deref().filter(|_| *replays);
        let speed_comparison = match hardware_change {
            Some(_) => SpeedComparison::new(&context.dir, step)?,
            None => None,
        };
        let validation_curve = if group.is_first() { periodic::validation_curve(&context.dir)? } else { Vec::new() };
        let hang = Duration::from_secs(config.guard.hang_seconds);
        let watchdog = Watchdog::start(&context.dir, group.is_first(), hang)?;
        group.on_waiting(watchdog.heartbeat());
        Ok(Self {
            // A state that a checkpoint holds already is not saved again.
            saves: SaveStatus::new(saved.then_some(step))?,
            replay: ReplayCheck::new(replaced_lines),
            progress: Progress::new(context.console, step, config.train.steps, config.log.every),
            watchdog,
            prefetch: Prefetch::new(loader)?,
            last_seen_in_place: Instant::now(),
            speed_comparison,
            byte_lengths: ByteLengths::new(&data.dataset.tokenizer),
            flops_per_token: config.model.flops_per_token(config.train.sequence_length) as f64,
            peak_flops: peak_flops(&device),
            validation_curve,
            stopping: false,
            config,
            device,
            group,
            context,
            data,
            data_fingerprint,
            benchmarks,
            state,
            logs,
        })
    }

    /// Trains to the last step.
    ///
    /// # Errors
    /// [`Exit::Stopped`](crate::runtime::error::Exit::Stopped) after a request to stop, with everything saved;
    /// [`Exit::Diverged`](crate::runtime::error::Exit::Diverged) when neither refusing updates nor rolling back helps; those of
    /// data and files.
    pub fn train(mut self) -> Result<()> {
        self.print_summary()?;
        self.report_ranks()?;
        // Before anything is computed that belongs to the run, a validation of step 0 for instance.
        self.choose_products()?;
        // From here on a signal waits for the end of the step and saves; before, there was nothing new to save.
        self.context.requests.training_starts();
        self.catch_up()?;
        if self.state.run.step > 0 && self.saves.last_step.is_none() {
            self.save_now()?; // pieces of state were given up: that must not be undone by a crash
        }
        loop {
            while self.state.run.step < self.config.train.steps {
                if self.stop_asked()? {
                    return self.stop_early();
                }
                self.one_step()?;
                self.between_steps()?;
            }
            ending::write_op_times();
            if self.stop_asked()? && !self.is_saved()? {
                return self.stop_early();
            }
            if self.config.checkpoint.last {
                self.save_now()?;
            } else {
                self.settle_save()?;
            }
            // Weights that could not be saved have caused a rollback.
            if self.state.run.step == self.config.train.steps {
                return self.finish();
            }
        }
    }

    /// Writes down which processes train, where there are several.
    fn report_ranks(&mut self) -> Result<()> {
        if self.group.ranks() == 1 {
            return Ok(());
        }
        let parameters = self.state.model.trained().0.total as u64;
        let event = ranks_event(&self.group, self.state.run.step, self.config.train.lanes(), parameters);
        self.logs.events.append("ranks", event)
    }

    /// The result of `work` on rank 0, on all ranks: what only the rank that writes files can know.
    fn on_first<T>(&mut self, about: &str, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
    {
        let group = self.group.clone();
        group.on_first(about, || work(self))
    }

    /// Whether any rank was asked to stop.
    fn stop_asked(&mut self) -> Result<bool> {
        let asked = self.stopping || self.context.requests.stop_asked();
        self.stopping = self.group.any("a request to stop", asked)?;
        Ok(self.stopping)
    }

    fn one_step(&mut self) -> Result<()> {
        let started = Instant::now();
        let number = self.state.run.step + 1;
        self.watchdog.start_phase(format!("waiting for the data of step {number}"));
        let count = self.config.train.sequences_per_step();
        let batch = self.prefetch.batch(self.state.run.next_sequence, count)?;
        let data_seconds = started.elapsed().as_secs_f64();
        self.watchdog.start_phase(format!("step {number}"));
        let report = self.step_within_memory(&batch)?;
        let took = started.elapsed();
        self.watchdog.record_step(took);
        // Longer than a rank that hangs is left alone by its own watchdog, which can say more about it.
        self.group.set_patience(self.watchdog.limit().saturating_mul(2));
        self.log_step(&report, data_seconds, took)?;
        self.handle_verdict(report)
    }

    /// One step, with less and less memory if the device has none for it.
    fn step_within_memory(&mut self, batch: &Batch) -> Result<StepReport> {
        loop {
            match take_step(&mut self.state, &self.config, batch) {
                // A step that fails in its passes, where the memory is needed, has changed nothing but gradients, which it clears itself.
                Err(error) if is_out_of_memory(&error) => {
                    self.use_less_memory(&error)?;
                    // A smaller micro-batch has other products.
                    self.choose_products()?;
                }
                result => return result,
            }
        }
    }

    fn log_step(&mut self, report: &StepReport, data_seconds: f64, took: Duration) -> Result<()> {
        let step = self.state.run.step;
        let tokens_per_second = self.config.train.tokens_per_step as f64 / took.as_secs_f64();
        let hardware_change = self.context.start.hardware_change.take();
        let record = Train {
            tokens_per_second,
            mfu: self.peak_flops.map_or(f64::NAN, |peak| tokens_per_second * self.flops_per_token / peak),
            data_seconds,
            // Taken: the marks belong to the first step after a reset or a change of hardware alone.
            reset: std::mem::take(&mut self.state.run.reset),
            hardware: hardware_change.map(|change| change.mark()).unwrap_or_default(),
            ..report.record(&self.state.run)
        };
        self.progress.step(&record, took);
        if let Some(event) = self.speed_comparison.as_mut().and_then(|comparison| comparison.add(&record)) {
            self.logs.events.append("speed", event)?;
            self.speed_comparison = None;
        }
        self.log(Record::Train(record))?;
        self.logs.times.append(&report.times(step, data_seconds, took, self.group.ranks()))?;
        if let (Some(log), Some(sequences)) = (&mut self.logs.sequences, &report.sequences) {
            log.append(sequences)?;
        }
        // A refused step has made no update to measure.
        if self.config.log.layers_due(step) && !report.refused() {
            self.log(Record::Layers(layers(&self.state, report)?))?;
        }
        Ok(())
    }

    /// `cause` has interrupted training for `took`, as it does every `every` steps.
    fn record_pause(&mut self, cause: &'static str, every: u64, took: Duration) -> Result<()> {
        self.progress.interruption(cause, every, took);
        let seconds = BTreeMap::from([(cause.to_owned(), took.as_secs_f64())]);
        self.logs.times.append(&Times { step: self.state.run.step, seconds })
    }

    /// Appends to the metrics; a repeated record that differs from the first one is an event.
    fn log(&mut self, record: Record) -> Result<()> {
        if let Some(m) = self.replay.check(&record) {
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

    fn log_eval(&mut self, task: &str, metric: &str, value: f64, stderr: f64) -> Result<()> {
        let step = self.state.run.step;
        self.log(Record::Eval(Eval { step, task: task.to_owned(), metric: metric.to_owned(), value, stderr }))
    }

    fn log_sample(&mut self, sample: &SampleRecord) -> Result<()> {
        if let Some(board) = &mut self.logs.board {
            board.append_sample(sample)?;
        }
        self.logs.samples.append(sample)
    }

    /// Validation, samples and checkpoint where they are due, in this order: what belongs to a step is logged before it is saved.
    fn between_steps(&mut self) -> Result<()> {
        self.look_after_saves()?;
        let step = self.state.run.step;
        let desync_every = self.config.log.desync_every;
        if desync_every > 0 && step.is_multiple_of(desync_every) {
            compare_states(&self.state)?;
        }
        if self.due(self.config.eval.every) {
            self.validate()?;
            self.evaluate_sft()?;
        }
        if self.due(self.config.eval.steps_between_tasks()) {
            self.run_benchmarks()?;
        }
        if self.config.sample.every > 0 && self.due(self.config.sample.every) {
            self.sample(0)?;
        }
        if self.stop_asked()? {
            return Ok(()); // stopping saves
        }
        let log_spaced = self.config.checkpoint.log_spaced && step.is_power_of_two();
        let asked = self.group.any("a request to save", self.context.requests.save_asked())?;
        let save = asked || log_spaced || self.due(self.config.checkpoint.every);
        // `train` sees to the last step, unless that is not to be saved.
        if save && (step < self.config.train.steps || (asked && !self.config.checkpoint.last)) {
            self.save_in_background()?;
        }
        Ok(())
    }

    /// Whether what happens every `every` steps (0: only at the ends of the run) happens after the present one.
    fn due(&self, every: u64) -> bool {
        let step = self.state.run.step;
        step == 0 || step == self.config.train.steps || (every > 0 && step.is_multiple_of(every))
    }
}
