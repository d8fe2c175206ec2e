//! What a run directory holds for a resume: its newest good checkpoint, and how often it was started.

use super::crash_loop;
use super::session::Session;
use crate::checkpoint::{self, Valid};
use crate::config::Config;
use crate::metrics::{Events, read_events};
use crate::runtime::error::{Exit, Failure, fail};
use crate::runtime::files::read_bounded;
use crate::runtime::home::expand_home;
use crate::runtime::shell::quoted;
use anyhow::{Context, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Largest `trainer_state.json` that is read, in bytes.
const MAX_STATE: u64 = 256 << 20;

/// The run directory of `ckpt`, and the checkpoint if it names one.
///
/// # Errors
/// [`Exit::Io`] if there is no such directory, [`Exit::Config`] if it is neither.
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

/// Whether `dir` is the directory of a run: one that has started, or has checkpoints, which hold its configuration, too.
fn is_run(dir: &Path) -> Result<bool> {
    Ok(dir.join("config.toml").exists() || !checkpoint::list_valid(dir)?.is_empty())
}

fn no_run(dir: &Path) -> Failure {
    let shown = dir.display();
    if dir.join("checkpoints").exists() {
        return fail(
            Exit::Data,
            format!("{shown}: there is no config.toml, and no good checkpoint that would hold it"),
        )
        .hint("restore config.toml or a checkpoint from a copy, or start the run anew in another directory");
    }
    if dir.join("run.lock").exists() {
        return fail(Exit::Config, format!("{shown}: the run was stopped before its first step: nothing was saved"))
            .hint("start it with the command it was started with: pretrain or sft; its directory can be used again");
    }
    let failure = fail(Exit::Config, format!("{shown}: neither a run directory nor a checkpoint inside one"));
    if dir.join("config.json").exists() {
        let from = quoted(dir);
        return failure.hint(format!(
            "to start a new run from these weights: llama-lite pretrain --config FILE --init-from {from}"
        ));
    }
    failure.hint("give the directory that pretrain or sft made (--out), or one of its checkpoints")
}

/// The newest good checkpoint of a run. Damaged ones, and those whose loading panics, are renamed and reported.
///
/// # Errors
/// Those of the files.
pub fn newest_checkpoint(run_dir: &Path, session: &Session) -> Result<Option<Valid>> {
    loop {
        // Once more after each checkpoint that is set aside: the one before it may be no better.
        let found = checkpoint::newest_valid(run_dir)?;
        for (dir, reason) in &found.quarantined {
            session.note(&format!("warning: damaged checkpoint set aside as {}: {reason}", dir.display()));
            record_quarantine(run_dir, dir, reason)?;
        }
        let Some(valid) = found.newest else { return Ok(None) };
        let Some(dir) = crash_loop::quarantine(&valid)? else { return Ok(Some(valid)) };
        let reason = "loading it has panicked twice";
        session.note(&format!("warning: checkpoint set aside as {}: {reason}", dir.display()));
        record_quarantine(run_dir, &dir, reason)?;
    }
}

fn record_quarantine(run_dir: &Path, dir: &Path, reason: &str) -> Result<()> {
    Events::open(run_dir)?.append("quarantine", json!({"as": dir.display().to_string(), "reason": reason}))
}

/// Where the model of the adapters in `checkpoint` is, as `sets` or its own configuration say; none if it holds a whole model. What
/// cannot be read here is reported where the checkpoint is opened.
pub fn adapter_base(checkpoint: &Path, sets: &[String]) -> Option<PathBuf> {
    let state = read_bounded(&checkpoint.join("trainer_state.json"), MAX_STATE, false).ok()?;
    let state: serde_json::Value = serde_json::from_slice(&state).ok()?;
    let mut config = Config::from_toml_str(state["config"].as_str()?, "the checkpoint's config").ok()?;
    config.apply(sets).ok()?;
    config.adapter_base().map(expand_home)
}

/// What the events say of the starts of a run.
#[derive(Default)]
pub struct StartHistory {
    /// The highest attempt; 0 if there is none.
    pub attempt: u64,
    /// Where its first weights came from.
    pub init_from: Option<PathBuf>,
    /// The last step, if the last attempt has reached it.
    pub finished: Option<u64>,
}

impl StartHistory {
    /// # Errors
    /// Those of reading `events.jsonl`.
    pub fn read(run_dir: &Path) -> Result<Self> {
        let mut history = Self::default();
        for event in read_events(run_dir)? {
            history.attempt = history.attempt.max(event["attempt"].as_u64().unwrap_or(0));
            match event["kind"].as_str() {
                Some("start") => {
                    history.init_from = event["init_from"].as_str().map(PathBuf::from);
                    history.finished = None;
                }
                Some("resume") => history.finished = None,
                Some("finish") => history.finished = event["step"].as_u64(),
                _ => {}
            }
        }
        Ok(history)
    }
}
