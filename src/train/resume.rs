//! How a run goes on: from its newest good checkpoint, from one that was named, or, if it never saved, from its beginning.

use super::continuation::{Changes, Continuation, alters_numbers};
use super::requests::{RESUME_ME, Requests};
use super::reset::reset_state;
use super::run::{Parts, Place, report_altered_logs};
use super::schedule::standstill;
use super::state::{Saved, State};
use crate::checkpoint::{self, Opened, Valid};
use crate::config::Config;
use crate::metrics::{Console, Events, read_events};
use crate::ops::device;
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files::{lock, read_bounded, write_atomic};
use crate::runtime::home::expand_home;
use crate::runtime::shell::quoted;
use crate::tokenizer::Tokenizer;
use crate::train::arithmetic_fingerprint::rounding_of_loss;
use crate::train::crash_loop;
use crate::train::hardware_change::HardwareChange;
use crate::train::run_data::RunData;
use crate::train::setup::{Begin, benchmarks, check_disk, check_machine, fresh_parts, say};
use anyhow::{Context, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A configuration file is text written by people.
const MAX_CONFIG: u64 = 1 << 20;

/// As large as a trainer's state can be.
const MAX_STATE: u64 = 256 << 20;

/// Continues the run of `ckpt` (a run directory or one of its checkpoints), with `wanted` changes.
///
/// # Errors
/// [`Exit::Data`] for a damaged checkpoint that was named or if none is good, [`Exit::Config`] for changes that cannot be made,
/// and those of [`Run::train`](super::run::Run::train).
pub fn resume(ckpt: &Path, wanted: &Changes, console: Console) -> Result<()> {
    let (run_dir, named) = locate(ckpt)?;
    let requests = Requests::listen(&run_dir, RESUME_ME)?;
    let held = lock(&run_dir.join("run.lock"))?;
    let source = match &named {
        Some(dir) => Some(Opened::open_beside(dir, base_of(dir, &wanted.sets).as_deref())?),
        None => match newest(&run_dir, console)? {
            Some(valid) => {
                let base = base_of(&valid.dir, &wanted.sets);
                Some(Opened::open_valid(valid, base.as_deref())?)
            }
            None => None,
        },
    };
    if let Some(source) = source.as_ref().filter(|_| !run_dir.join("config.toml").exists()) {
        let name = source.dir.file_name().unwrap_or_default().to_string_lossy();
        say(
            console,
            &format!("note: {}/config.toml is missing: {name} holds the configuration, too", run_dir.display()),
        );
    }
    let begin = Begin { run_dir, held, requests, console };
    match source {
        Some(source) => go_on(begin, &source, wanted),
        None if wanted.alter_state() => Err(fail(
            Exit::Config,
            format!("{}: no checkpoint was saved: nothing to reset or skip", begin.run_dir.display()),
        )
        .hint("resume it without --reset and --skip: it starts again at step 0")
        .into()),
        None => restart(begin, &wanted.sets),
    }
}

/// Where the model of the adapters in `checkpoint` is, as `sets` or its own configuration say; none if it holds a whole model. What
/// cannot be read here is reported where the checkpoint is opened.
pub(super) fn base_of(checkpoint: &Path, sets: &[String]) -> Option<PathBuf> {
    let state = read_bounded(&checkpoint.join("trainer_state.json"), MAX_STATE, false).ok()?;
    let state: serde_json::Value = serde_json::from_slice(&state).ok()?;
    let mut config = Config::from_toml_str(state["config"].as_str()?, "the checkpoint's config").ok()?;
    config.apply(sets).ok()?;
    config.adapter_base().map(expand_home)
}

fn go_on(begin: Begin, source: &Opened, wanted: &Changes) -> Result<()> {
    let saved = Saved::of(source)?;
    let Continuation { config, changes } = Continuation::new(&saved, wanted)?;
    if let Some(standstill) = standstill(&config, saved.counters.step)? {
        let hint = format!("add --set {}: {}", standstill.setting, standstill.effect);
        return Err(fail(Exit::Config, standstill.message).hint(hint).into());
    }
    let moved = changes.iter().find(|change| change.key == "schedule.total_steps" && change.old != "none");
    if let Some(moved) = moved.filter(|change| change.new != "none") {
        say(
            begin.console,
            &format!("schedule.total_steps: the tail ends after {} steps, not {}", moved.new, moved.old),
        );
    }
    let text = config.to_checked_toml()?;
    check_machine(&config)?;
    check_disk(&config, &begin.run_dir)?;
    let (data, fingerprint) = open_data(&config, source, begin.console)?;
    if fingerprint != saved.data_fingerprint && !config.data.allow_change {
        return Err(fail(Exit::Data, "the training or validation data are not those the run began with")
            .hint("restore them, or go on with the new ones: --set data.allow_change=true")
            .into());
    }
    let mut state = crash_loop::counted(&source.dir, || State::resumed(&config, source, &saved))?;
    if changes.iter().any(alters_numbers) {
        state.guard.forgive(); // whoever changes something wants it tried
    }
    reset_state(&mut state, &wanted.pieces)?;
    let skipped = (wanted.skip > 0).then(|| state.skip(wanted.skip));
    let loader = data.dataset.loader(&config)?;
    let benchmarks = benchmarks(&config, &data.dataset.tokenizer)?;
    let attempt = saved.attempt.max(last_start(&begin.run_dir)?.attempt).saturating_add(1);
    let step = state.counters.step;
    checkpoint::supersede(&begin.run_dir, step, attempt)?;
    write_atomic(&begin.run_dir.join("config.toml"), text.as_bytes())?;
    let mut events = Events::open(&begin.run_dir)?;
    let build = super::identity(&config.train);
    let listed: Vec<_> = changes.iter().map(|c| json!({"key": c.key, "old": c.old, "new": c.new})).collect();
    let from = source.dir.file_name().map(|n| n.to_string_lossy().into_owned());
    events.append(
        "resume",
        json!({"attempt": attempt, "step": step, "from": from, "changes": listed, "reset": state.reset, "skipped_sequences": skipped, "build": build}),
    )?;
    report_altered_logs(&begin.run_dir, (step, &saved.logs), &mut events, begin.console)?;
    let moved = HardwareChange::between(&saved.build, &build);
    if let Some(moved) = &moved {
        let rows = config.train.micro_batch_size;
        let measured = moved.changes_bits() && device::used().is_cpu();
        let rounding = measured.then(|| loader.batch(state.counters.next_sequence, rows)).transpose()?;
        let rounding = rounding.map(|batch| rounding_of_loss(&state, &batch, moved.unit())).transpose()?;
        events.append("hardware", moved.event(step, rounding))?;
        if moved.changes_bits() {
            say(begin.console, &moved.note(step, rounding));
        }
    }
    if wanted.alter_state() {
        // The checkpoint as it was stays beside the one that is about to take its place.
        checkpoint::quarantine(&source.dir, &format!(".superseded-{step}-{attempt}"))?;
    }
    let place = Place {
        dir: begin.run_dir.clone(),
        attempt,
        saved: !wanted.alter_state(),
        repeats: !wanted.alter_state() && !changes.iter().any(alters_numbers),
        moved,
    };
    begin.run(Parts { config, data, loader, state, fingerprint, benchmarks }, place, events, Some(step))
}

/// A run that was stopped before its first checkpoint: from its beginning again, with the weights it began with.
fn restart(begin: Begin, sets: &[String]) -> Result<()> {
    let run_dir = begin.run_dir.clone();
    say(begin.console, &format!("{}: no checkpoint was saved; starting again at step 0", run_dir.display()));
    let path = run_dir.join("config.toml");
    let text = String::from_utf8_lossy(&read_bounded(&path, MAX_CONFIG, true)?).into_owned();
    let stored = Config::from_toml_str(&text, &path.display().to_string())?;
    let Continuation { mut config, changes } = Continuation::at_step_zero(stored, sets)?;
    if let Some(step) = config.schedule.start_step.take() {
        say(begin.console, &format!("the schedule that started anew after step {step} starts at step 0, too"));
    }
    check_machine(&config)?;
    check_disk(&config, &run_dir)?;
    let last = last_start(&run_dir)?;
    // A model to be tuned may have been moved, and `sft.base` set to where it is now.
    let from = config.sft.base.as_ref().map(PathBuf::from).or(last.init_from);
    let (parts, source) = fresh_parts(config, from.as_deref(), begin.console)?;
    write_atomic(&path, parts.config.to_checked_toml()?.as_bytes())?;
    let (attempt, mut events) = (last.attempt.saturating_add(1), Events::open(&run_dir)?);
    let from = source.map(|s| s.dir);
    events.append(
        "start",
        json!({"attempt": attempt, "step": 0, "init_from": from, "build": super::identity(&parts.config.train)}),
    )?;
    let repeats = !changes.iter().any(alters_numbers);
    begin.run(parts, Place { dir: run_dir, attempt, saved: false, repeats, moved: None }, events, None)
}

/// The run's data with the tokenizer of its checkpoint, and their fingerprint.
pub(crate) fn open_data(config: &Config, source: &Opened, console: Console) -> Result<(RunData, String)> {
    say(console, "preparing the data ...");
    let data = RunData::open(config, Some(Tokenizer::from_dir(&source.dir)?))?;
    let fingerprint = data.dataset.fingerprint()?;
    Ok((data, fingerprint))
}

/// The run directory of `ckpt`, and the checkpoint if it names one.
pub fn locate(ckpt: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    if !ckpt.is_dir() {
        let what = if ckpt.exists() { "a file, not a directory" } else { "no such directory" };
        let hint = "--ckpt takes a run directory or a checkpoint inside one";
        return Err(fail(Exit::Io, format!("{}: {what}", ckpt.display())).hint(hint).into());
    }
    if is_run(ckpt)? {
        return Ok((ckpt.to_path_buf(), None));
    }
    if ckpt.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) {
        let message = format!("{}: set aside, no longer a checkpoint of its run", ckpt.display());
        return Err(fail(Exit::Config, message)
            .hint("rename it to step-NNNNNNNN first, or use it with `pretrain --init-from`")
            .into());
    }
    let full = ckpt.canonicalize().with_context(|| ckpt.display().to_string())?;
    match full.parent().and_then(Path::parent) {
        Some(run) if is_run(run)? => Ok((run.to_path_buf(), Some(full))),
        _ => Err(no_run(ckpt).into()),
    }
}

/// Whether `dir` is the directory of a run: one that has begun, or has checkpoints, which hold its configuration, too.
fn is_run(dir: &Path) -> Result<bool> {
    Ok(dir.join("config.toml").exists() || !checkpoint::list_valid(dir)?.is_empty())
}

fn no_run(dir: &Path) -> Failure {
    let shown = dir.display();
    let has = |name: &str| dir.join(name).exists();
    if has("checkpoints") {
        return fail(
            Exit::Data,
            format!("{shown}: there is no config.toml, and no good checkpoint that would hold it"),
        )
        .hint("restore config.toml or a checkpoint from a copy, or start the run anew in another directory");
    }
    if has("run.lock") {
        return fail(Exit::Config, format!("{shown}: the run was stopped before it had begun: nothing was saved"))
            .hint("start it with the command it was started with: pretrain or sft; its directory can be used again");
    }
    let failure = fail(Exit::Config, format!("{shown}: neither a run directory nor a checkpoint inside one"));
    if has("config.json") {
        let from = quoted(dir);
        return failure.hint(format!(
            "to start a new run from these weights: llama-lite pretrain --config FILE --init-from {from}"
        ));
    }
    failure.hint("give the directory that pretrain or sft made (--out), or one of its checkpoints")
}

fn newest(run_dir: &Path, console: Console) -> Result<Option<Valid>> {
    let found = checkpoint::newest_valid(run_dir)?;
    for (dir, reason) in &found.quarantined {
        say(console, &format!("warning: damaged checkpoint set aside as {}: {reason}", dir.display()));
        Events::open(run_dir)?.append("quarantine", json!({"as": dir.display().to_string(), "reason": reason}))?;
    }
    let Some(valid) = found.newest else { return Ok(None) };
    if let Some(dir) = crash_loop::set_aside(&valid)? {
        let reason = "loading it has panicked twice";
        say(console, &format!("warning: checkpoint set aside as {}: {reason}", dir.display()));
        Events::open(run_dir)?.append("quarantine", json!({"as": dir.display().to_string(), "reason": reason}))?;
        return newest(run_dir, console);
    }
    Ok(Some(valid))
}

/// What the events know of a run's beginnings.
#[derive(Default)]
struct Begun {
    /// The highest attempt; 0 if there is none.
    attempt: u64,
    /// Where its first weights came from.
    init_from: Option<PathBuf>,
}

fn last_start(run_dir: &Path) -> Result<Begun> {
    let mut begun = Begun::default();
    for event in read_events(run_dir)? {
        begun.attempt = begun.attempt.max(event["attempt"].as_u64().unwrap_or(0));
        if event["kind"] == "start" {
            begun.init_from = event["init_from"].as_str().map(PathBuf::from);
        }
    }
    Ok(begun)
}
