//! `resume`: continues a run from its newest good checkpoint, from one that is named, or, if it never saved, from step 0.
//!
//! The configuration is final before any state is built from it: an optimizer that had copied the old seed would round otherwise than
//! the resume of its own checkpoint.

use super::checks::check_machine;
use super::crash_loop;
use super::desync::compare_at_start;
use super::disk::check_disk;
use super::hardware_change::{HardwareChange, rounding_of_loss};
use super::identity::identity;
use super::logs::{RunLogs, report_altered_logs};
use super::model_state::ModelState;
use super::products::{read_products, use_stored_products};
use super::ranks::check_ranks;
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
    let group = &session.group;
    // Before a checkpoint is looked for: a live process may be writing one or deleting some.
    let lock = group.agree("the lock", group.is_first().then(|| lock(&run_dir.join("run.lock"))).transpose())?;
    let source = match &named {
        Some(dir) => Some(Opened::open_beside(dir, adapter_base(dir, &requested.sets).as_deref())?),
        None => open_newest(&run_dir, requested, session)?,
    };
    if let Some(source) = source.as_ref().filter(|_| !run_dir.join("config.toml").exists()) {
        let name = source.dir.file_name().unwrap_or_default().to_string_lossy();
        session
            .note(&format!("note: {}/config.toml is missing: {name} holds the configuration, too", run_dir.display()));
    }
    if named.is_none()
        && requested.sets.is_empty()
        && !requested.alter_state()
        && let Some(step) = group.on_first("the end of the run", || end_without_checkpoint(&run_dir))?
    {
        let dir = run_dir.display();
        session.note(&format!("{dir}: done: {step} steps; the last one was not saved (checkpoint.last = false)"));
        return Ok(());
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

/// The last step of a run that has finished without saving it, as its configuration says: to train it again would replace its logs.
fn end_without_checkpoint(run_dir: &Path) -> Result<Option<u64>> {
    // Whatever is wrong with it is told where it is needed.
    let Ok(config) = Config::load(&run_dir.join("config.toml"), &[]) else { return Ok(None) };
    if config.checkpoint.last {
        return Ok(None);
    }
    let finished = StartHistory::read(run_dir)?.finished;
    Ok(finished.filter(|step| *step == config.train.steps))
}

/// The newest good checkpoint of the run in `run_dir`; none if there is none.
fn open_newest(run_dir: &Path, requested: &RequestedChanges, session: &Session) -> Result<Option<Opened>> {
    let group = &session.group;
    // Damaged ones are renamed on the way: by one rank, before the others look.
    let found = group.is_first().then(|| newest_checkpoint(run_dir, session)).transpose();
    let found = group.agree("the newest checkpoint", found)?.flatten();
    let dir = group.on_first("its name", || Ok(found.as_ref().map(|valid| valid.dir.clone())))?;
    let Some(dir) = dir else { return Ok(None) };
    let base = adapter_base(&dir, &requested.sets);
    match found {
        Some(valid) => Opened::open_valid(valid, base.as_deref()).map(Some),
        None => Opened::open_beside(&dir, base.as_deref()).map(Some),
    }
}

/// A run that no process trains, locked for rank 0.
struct StoppedRun<'a> {
    dir: PathBuf,
    lock: Option<Lock>,
    requests: Requests,
    session: &'a Session,
}

impl StoppedRun<'_> {
    fn resume_from(self, source: &Opened, requested: &RequestedChanges) -> Result<()> {
        let group = &self.session.group;
        let saved = TrainerStateFile::read(source)?;
        let ResumeConfig { config, changes } = ResumeConfig::new(&saved, requested)?;
        check_ranks(config.train.lanes(), group.ranks())?;
        refuse_standstill(&config, saved.state.step)?;
        self.report_moved_tail(&changes);
        group.agree("the machine", check_machine(&config, self.session))?;
        group.on_first("the disk", || check_disk(&config, &self.dir, saved.state.step))?;
        let mut setup = self.setup(config, source, &saved)?;
        let changes_numbers = changes.iter().any(alters_numbers);
        if changes_numbers {
            // The user has changed something because of past refusals, and wants the change to be tried.
            setup.state.run.guard.forget_refusals();
        }
        reset_state(&mut setup.state, &requested.pieces)?;
        let skipped = (requested.skip > 0).then(|| setup.state.run.skip_sequences(requested.skip));
        // Both, because an attempt may have left events and no checkpoint.
        let earlier = group.on_first("earlier attempts", || Ok(StartHistory::read(&self.dir)?.attempt))?;
        setup.state.run.attempt = saved.state.attempt.max(earlier).saturating_add(1);
        use_stored_products(saved.products.as_ref(), self.session)?;
        let build = identity(&setup.config.train, &setup.session.device, group);
        let config_text = setup.config.to_checked_toml()?;
        compare_at_start(group, &setup.beginning(&self.dir, &config_text, &build))?;
        let hardware_change = HardwareChange::between(&saved.build, &build);
        let resumption = Resumption {
            source,
            saved: &saved,
            requested,
            changes: &changes,
            skipped,
            build: &build,
            config_text: &config_text,
        };
        let prepared =
            group.is_first().then(|| self.prepare(&setup, &resumption, hardware_change.as_ref())).transpose();
        let events = group.agree("the run directory", prepared)?;
        let start = StartPoint {
            saved: !requested.alter_state(),
            replays: !requested.alter_state() && !changes_numbers,
            hardware_change,
        };
        let step = setup.state.run.step;
        self.train(setup, events, build, Some(step), start)
    }

    /// Makes the directory that of the run from this checkpoint on. Only when data and state have been read: a resume that fails leaves
    /// the run as it was.
    fn prepare(&self, setup: &RunSetup, resumption: &Resumption, change: Option<&HardwareChange>) -> Result<Events> {
        let Resumption { source, saved, requested, changes, skipped, build, config_text } = resumption;
        let step = setup.state.run.step;
        let attempt = setup.state.run.attempt;
        // Later checkpoints are of steps that will be taken again; left in place, the next resume would begin with them.
        checkpoint::supersede(&self.dir, step, attempt)?;
        write_atomic(&self.dir.join("config.toml"), config_text.as_bytes())?;
        let mut events = Events::open(&self.dir)?;
        let listed: Vec<_> = changes.iter().map(|c| json!({"key": c.key, "old": c.old, "new": c.new})).collect();
        let from = source.dir.file_name().map(|n| n.to_string_lossy().into_owned());
        events.append(
            "resume",
            json!({"attempt": attempt, "step": step, "from": from, "changes": listed, "reset": setup.state.run.reset, "skipped_sequences": skipped, "build": build}),
        )?;
        // Before `train` opens the logs, which cuts them to this step.
        report_altered_logs(&self.dir, step, &saved.logs, &mut events, self.session.console)?;
        if let Some(change) = change {
            self.report_hardware_change(change, setup, &mut events)?;
        }
        if let Some(lanes) = changes.iter().find(|change| change.key == "train.lanes") {
            self.report_other_lanes(lanes, step, &mut events)?;
        }
        if requested.alter_state() {
            // The checkpoint as it was stays beside the one that is about to take its place.
            checkpoint::quarantine(&source.dir, &format!(".superseded-{step}-{attempt}"))?;
        }
        Ok(events)
    }

    /// Opens the run's data, and builds its state from the checkpoint and the final configuration.
    fn setup(&self, config: Config, source: &Opened, saved: &TrainerStateFile) -> Result<RunSetup> {
        let (data, data_fingerprint) = RunData::open_for_checkpoint(&config, source, self.session)?;
        if data_fingerprint != saved.data_fingerprint && !config.data.allow_change {
            return Err(fail(Exit::Data, "the training or validation data are not those the run began with")
                .hint("restore them, or go on with the new ones: --set data.allow_change=true")
                .into());
        }
        let Session { device, group, .. } = self.session;
        let load = || ModelState::resumed(&config, source, saved, device, group);
        let state = if group.is_first() { crash_loop::counted(&source.dir, load) } else { load() };
        let state = group.agree("the checkpoint", state)?;
        let loader = data.dataset.loader(&config)?;
        let benchmarks = prepare_benchmarks(&config, &data.dataset.tokenizer)?;
        let session = self.session.clone();
        Ok(RunSetup { config, session, data, loader, state, data_fingerprint, benchmarks })
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
        let measured = change.changes_bits() && setup.session.device.is_cpu();
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
        if let Some(note) = change.ranks_note() {
            self.session.note(&note);
        }
        Ok(())
    }

    /// Other lanes join the same gradients in another order.
    fn report_other_lanes(&self, change: &Change, step: u64, events: &mut Events) -> Result<()> {
        let Change { old, new, .. } = change;
        self.session.note(&format!(
            "note: train.lanes was {old}, is {new}: results after step {step} are those of {old} lanes within rounding, not by bits"
        ));
        events.append("lanes", json!({"step": step, "old": old, "new": new, "equal": "within rounding"}))
    }

    /// A run that was stopped before its first checkpoint: from step 0 again, with the weights that it started from.
    fn restart(self, sets: &[String]) -> Result<()> {
        let session = self.session;
        session.note(&format!("{}: no checkpoint was saved; starting again at step 0", self.dir.display()));
        let path = self.dir.join("config.toml");
        let text = String::from_utf8_lossy(&read_bounded(&path, MAX_CONFIG, true)?).into_owned();
        let mut stored = Config::from_toml_str(&text, &path.display().to_string())?;
        // Before there were lanes, a step was one.
        stored.train.lanes.get_or_insert(1);
        let ResumeConfig { mut config, changes } = ResumeConfig::at_step_zero(stored, sets)?;
        if let Some(step) = config.schedule.start_step.take() {
            session.note(&format!("the schedule that started anew after step {step} starts at step 0, too"));
        }
        let group = &session.group;
        check_ranks(config.train.lanes(), group.ranks())?;
        group.agree("the machine", check_machine(&config, session))?;
        group.on_first("the disk", || check_disk(&config, &self.dir, 0))?;
        let history = StartHistory::read(&self.dir)?;
        // The base model of fine-tuning may have been moved, and `sft.base` set to where it is now.
        let init_from = config.sft.base.as_ref().map(PathBuf::from).or(history.init_from);
        let (mut setup, source) = RunSetup::initial(config, init_from.as_deref(), session)?;
        let attempt = history.attempt.saturating_add(1);
        setup.state.run.attempt = attempt;
        let config_text = setup.config.to_checked_toml()?;
        use_stored_products(read_products(&self.dir, session)?.as_ref(), session)?;
        let build = identity(&setup.config.train, &session.device, group);
        compare_at_start(group, &setup.beginning(&self.dir, &config_text, &build))?;
        let init_from = source.map(|source| source.dir);
        let event = json!({"attempt": attempt, "step": 0, "init_from": init_from, "build": build});
        let written = group.is_first().then(|| {
            write_atomic(&path, config_text.as_bytes())?;
            let mut events = Events::open(&self.dir)?;
            events.append("start", event).map(|()| events)
        });
        let events = group.agree("the run directory", written.transpose())?;
        let start = StartPoint { replays: !changes.iter().any(alters_numbers), ..StartPoint::default() };
        self.train(setup, events, build, None, start)
    }

    /// Cuts the logs to `resume_step` and trains.
    fn train(
        self,
        setup: RunSetup,
        events: Option<Events>,
        build: Value,
        resume_step: Option<u64>,
        start: StartPoint,
    ) -> Result<()> {
        let config = &setup.config.log;
        let logs = match events {
            Some(events) => RunLogs::open(&self.dir, config, events, resume_step)?,
            None => RunLogs::discard(config),
        };
        let Self { dir, lock, requests, session } = self;
        let context = RunContext { dir, lock, requests, console: session.console, build, start };
        Trainer::new(setup, context, logs)?.train()
    }
}

/// What a resume starts from, and what it changes.
struct Resumption<'a> {
    source: &'a Opened,
    saved: &'a TrainerStateFile,
    requested: &'a RequestedChanges,
    changes: &'a [Change],
    skipped: Option<[u64; 2]>,
    build: &'a Value,
    /// The final configuration, as it is written.
    config_text: &'a str,
}

fn refuse_standstill(config: &Config, step: u64) -> Result<()> {
    let Some(standstill) = standstill(config, step)? else { return Ok(()) };
    let hint = format!("add --set {}: {}", standstill.setting, standstill.effect);
    Err(fail(Exit::Config, standstill.message).hint(hint).into())
}
