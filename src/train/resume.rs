//! `resume`: continues a run from its newest good checkpoint, from one that is named, or, if it never saved, from step 0.
//!
//! The configuration is final before any state is built from it: an optimizer that had copied the old seed would round otherwise than
//! the resume of its own checkpoint.

use super::checks::{check_disk, check_machine};
use super::crash_loop;
use super::hardware_change::{HardwareChange, rounding_of_loss};
use super::identity::identity;
use super::logs::{RunLogs, report_altered_logs};
use super::model_state::ModelState;
use super::requests::{RESUME_ME, Requests};
use super::reset::reset_state;
use super::resume_config::{RequestedChanges, ResumeConfig, alters_numbers};
use super::run_data::RunData;
use super::run_dir::{StartHistory, adapter_base, locate, newest_checkpoint};
use super::schedule::standstill;
use super::session::Session;
use super::setup::{RunSetup, prepare_benchmarks};
use super::trainer::{RunContext, StartPoint, Trainer};
use super::trainer_state::TrainerStateFile;
use crate::checkpoint::{self, Opened};
use crate::config::{Change, Config};
use crate::metrics::Events;
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{Lock, lock, read_bounded, write_atomic};
use anyhow::Result;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Largest `config.toml` that is read, in bytes: it is text written by people.
const MAX_CONFIG: u64 = 1 << 20;

/// Continues the run of `ckpt` (a run directory or one of its checkpoints), with the changes that are `requested`.
///
/// # Errors
/// [`Exit::Data`] for a damaged checkpoint that was named or if none is good, [`Exit::Config`] for changes that cannot be made,
/// and those of [`Trainer::train`].
pub fn resume(ckpt: &Path, requested: &RequestedChanges, session: &Session) -> Result<()> {
    let (run_dir, named) = locate(ckpt)?;
    let requests = Requests::listen(&run_dir, RESUME_ME)?;
    // Before a checkpoint is looked for: a live process may be writing one or deleting some.
    let lock = lock(&run_dir.join("run.lock"))?;
    let source = match &named {
        Some(dir) => Some(Opened::open_beside(dir, adapter_base(dir, &requested.sets).as_deref())?),
        None => match newest_checkpoint(&run_dir, session)? {
            Some(valid) => {
                let base = adapter_base(&valid.dir, &requested.sets);
                Some(Opened::open_valid(valid, base.as_deref())?)
            }
            None => None,
        },
    };
    if let Some(source) = source.as_ref().filter(|_| !run_dir.join("config.toml").exists()) {
        let name = source.dir.file_name().unwrap_or_default().to_string_lossy();
        session
            .note(&format!("note: {}/config.toml is missing: {name} holds the configuration, too", run_dir.display()));
    }
    let run = StoppedRun { dir: run_dir, lock, requests, session };
    match source {
        Some(source) => run.resume_from(&source, requested),
        None if requested.alter_state() => {
            Err(fail(Exit::Config, format!("{}: no checkpoint was saved: nothing to reset or skip", run.dir.display()))
                .hint("resume it without --reset and --skip: it starts again at step 0")
                .into())
        }
        None => run.restart(&requested.sets),
    }
}

/// A run that no process trains, locked for this one.
struct StoppedRun<'a> {
    dir: PathBuf,
    lock: Lock,
    requests: Requests,
    session: &'a Session,
}

impl StoppedRun<'_> {
    fn resume_from(self, source: &Opened, requested: &RequestedChanges) -> Result<()> {
        let saved = TrainerStateFile::read(source)?;
        let ResumeConfig { config, changes } = ResumeConfig::new(&saved, requested)?;
        refuse_standstill(&config, saved.state.step)?;
        self.report_moved_tail(&changes);
        let config_text = config.to_checked_toml()?;
        check_machine(&config, &self.session.device)?;
        check_disk(&config, &self.dir)?;
        let mut setup = self.setup(config, source, &saved)?;
        let changes_numbers = changes.iter().any(alters_numbers);
        if changes_numbers {
            // The user has changed something because of past refusals, and wants the change to be tried.
            setup.state.run.guard.forget_refusals();
        }
        reset_state(&mut setup.state, &requested.pieces)?;
        let skipped = (requested.skip > 0).then(|| setup.state.run.skip_sequences(requested.skip));
        let step = setup.state.run.step;
        // Both, because an attempt may have left events and no checkpoint.
        let attempt = saved.state.attempt.max(StartHistory::read(&self.dir)?.attempt).saturating_add(1);
        setup.state.run.attempt = attempt;
        // Only now that data and state have been read: a resume that fails leaves the run as it was. Later checkpoints
        // are of steps that will be taken again; left in place, the next resume would begin with them.
        checkpoint::supersede(&self.dir, step, attempt)?;
        write_atomic(&self.dir.join("config.toml"), config_text.as_bytes())?;
        let mut events = Events::open(&self.dir)?;
        let build = identity(&setup.config.train, &setup.device);
        let listed: Vec<_> = changes.iter().map(|c| json!({"key": c.key, "old": c.old, "new": c.new})).collect();
        let from = source.dir.file_name().map(|n| n.to_string_lossy().into_owned());
        events.append(
            "resume",
            json!({"attempt": attempt, "step": step, "from": from, "changes": listed, "reset": setup.state.run.reset, "skipped_sequences": skipped, "build": build}),
        )?;
        // Before `train` opens the logs, which cuts them to this step.
        report_altered_logs(&self.dir, step, &saved.logs, &mut events, self.session.console)?;
        let hardware_change = HardwareChange::between(&saved.build, &build);
        if let Some(change) = &hardware_change {
            self.report_hardware_change(change, &setup, &mut events)?;
        }
        if requested.alter_state() {
            // The checkpoint as it was stays beside the one that is about to take its place.
            checkpoint::quarantine(&source.dir, &format!(".superseded-{step}-{attempt}"))?;
        }
        let start = StartPoint {
            saved: !requested.alter_state(),
            replays: !requested.alter_state() && !changes_numbers,
            hardware_change,
        };
        self.train(setup, events, build, Some(step), start)
    }

    /// Opens the run's data, and builds its state from the checkpoint and the final configuration.
    fn setup(&self, config: Config, source: &Opened, saved: &TrainerStateFile) -> Result<RunSetup> {
        let (data, data_fingerprint) = RunData::open_for_checkpoint(&config, source, self.session)?;
        if data_fingerprint != saved.data_fingerprint && !config.data.allow_change {
            return Err(fail(Exit::Data, "the training or validation data are not those the run began with")
                .hint("restore them, or go on with the new ones: --set data.allow_change=true")
                .into());
        }
        let device = self.session.device.clone();
        let state = crash_loop::counted(&source.dir, || ModelState::resumed(&config, source, saved, &device))?;
        let loader = data.dataset.loader(&config)?;
        let benchmarks = prepare_benchmarks(&config, &data.dataset.tokenizer)?;
        Ok(RunSetup { config, device, data, loader, state, data_fingerprint, benchmarks })
    }

    fn report_moved_tail(&self, changes: &[Change]) {
        let tail = changes.iter().find(|change| change.key == "schedule.total_steps" && change.old != "none");
        if let Some(tail) = tail.filter(|change| change.new != "none") {
            self.session
                .note(&format!("schedule.total_steps: the tail ends after {} steps, not {}", tail.new, tail.old));
        }
    }

    fn report_hardware_change(&self, change: &HardwareChange, setup: &RunSetup, events: &mut Events) -> Result<()> {
        let state = &setup.state;
        let step = state.run.step;
        // The estimate perturbs weights in the machine's memory.
        let measured = change.changes_bits() && setup.device.is_cpu();
        let rounding = if measured {
            let batch = setup.loader.batch(state.run.next_sequence, setup.config.train.micro_batch_size)?;
            Some(rounding_of_loss(state, &batch, change.unit())?)
        } else {
            None
        };
        events.append("hardware", change.event(step, rounding))?;
        if change.changes_bits() {
            self.session.note(&change.note(step, rounding));
        }
        Ok(())
    }

    /// A run that was stopped before its first checkpoint: from step 0 again, with the weights that it started from.
    fn restart(self, sets: &[String]) -> Result<()> {
        let session = self.session;
        session.note(&format!("{}: no checkpoint was saved; starting again at step 0", self.dir.display()));
        let path = self.dir.join("config.toml");
        let text = String::from_utf8_lossy(&read_bounded(&path, MAX_CONFIG, true)?).into_owned();
        let stored = Config::from_toml_str(&text, &path.display().to_string())?;
        let ResumeConfig { mut config, changes } = ResumeConfig::at_step_zero(stored, sets)?;
        if let Some(step) = config.schedule.start_step.take() {
            session.note(&format!("the schedule that started anew after step {step} starts at step 0, too"));
        }
        check_machine(&config, &session.device)?;
        check_disk(&config, &self.dir)?;
        let history = StartHistory::read(&self.dir)?;
        // The base model of fine-tuning may have been moved, and `sft.base` set to where it is now.
        let init_from = config.sft.base.as_ref().map(PathBuf::from).or(history.init_from);
        let (mut setup, source) = RunSetup::initial(config, init_from.as_deref(), session)?;
        let attempt = history.attempt.saturating_add(1);
        setup.state.run.attempt = attempt;
        write_atomic(&path, setup.config.to_checked_toml()?.as_bytes())?;
        let mut events = Events::open(&self.dir)?;
        let build = identity(&setup.config.train, &setup.device);
        let init_from = source.map(|source| source.dir);
        events.append("start", json!({"attempt": attempt, "step": 0, "init_from": init_from, "build": build}))?;
        let start = StartPoint { replays: !changes.iter().any(alters_numbers), ..StartPoint::default() };
        self.train(setup, events, build, None, start)
    }

    /// Cuts the logs to `resume_step` and trains.
    fn train(
        self,
        setup: RunSetup,
        events: Events,
        build: Value,
        resume_step: Option<u64>,
        start: StartPoint,
    ) -> Result<()> {
        let logs = RunLogs::open(&self.dir, &setup.config.log, events, resume_step)?;
        let Self { dir, lock, requests, session } = self;
        let context = RunContext { dir, lock, requests, console: session.console, build, start };
        Trainer::new(setup, context, logs)?.train()
    }
}

fn refuse_standstill(config: &Config, step: u64) -> Result<()> {
    let Some(standstill) = standstill(config, step)? else { return Ok(()) };
    let hint = format!("add --set {}: {}", standstill.setting, standstill.effect);
    Err(fail(Exit::Config, standstill.message).hint(hint).into())
}
