//! How a run begins: `pretrain` makes a fresh state in a new run directory, `resume` continues one from its newest good checkpoint or
//! from one named. From there on both are the same [`Run`].

use super::run::{Logs, Run};
use super::state::{Saved, State, VERSION};
use crate::checkpoint::{self, Opened};
use crate::config::{Change, Config};
use crate::data::corpus::Corpus;
use crate::data::loader::Loader;
use crate::data::tokenizer::Tokenizer;
use crate::metrics::{Console, Events, MetricsLog, SampleLog};
use crate::runtime::error::{Exit, fail};
use crate::runtime::files::{Lock, create_dirs, lock, read_bounded, write_atomic};
use anyhow::{Context, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A configuration file is text written by people.
const MAX_CONFIG: u64 = 1 << 20;

/// A new run in `out`, trained to its end.
///
/// # Errors
/// Those of configuration, data, and [`Run::train`].
pub fn pretrain(mut config: Config, out: &Path, init_from: Option<&Path>, console: Console) -> Result<()> {
    refuse_existing_run(out)?;
    check_precision(&config)?;
    let source = init_from.map(Opened::open).transpose()?;
    if let Some(source) = &source {
        check_same_model(&config, source)?;
    }
    say(console, "preparing the data ...");
    let tokenizer = match &source {
        Some(source) if config.data.tokenizer == "train" => Some(Tokenizer::from_dir(&source.dir)?),
        _ => None,
    };
    let corpus = Corpus::open(&config, tokenizer)?;
    config.data.stories = corpus.stories.or(config.data.stories);
    let state = State::fresh(&config, source.as_ref())?;
    create_dirs(out)?;
    let held = lock(&out.join("run.lock"))?;
    refuse_existing_run_locked(out)?;
    write_atomic(&out.join("config.toml"), config.to_toml().as_bytes())?;
    start(config, out, held, corpus, state, 1, console, None)
}

/// Continues the run of `ckpt` (a run directory or one of its checkpoints), with `sets` applied to its configuration.
///
/// # Errors
/// [`Exit::Data`] for a damaged checkpoint that was named or if none is good, [`Exit::Config`] for changes that cannot be made,
/// and those of [`Run::train`].
pub fn resume(ckpt: &Path, sets: &[String], console: Console) -> Result<()> {
    let (run_dir, named) = locate(ckpt)?;
    let held = lock(&run_dir.join("run.lock"))?;
    let source = match &named {
        Some(dir) => Some(Opened::open(dir)?),
        None => newest(&run_dir, console)?,
    };
    let Some(source) = source else {
        say(console, &format!("{}: no checkpoint was saved; starting again at step 0", run_dir.display()));
        return restart(&run_dir, held, sets, console);
    };
    let saved: Saved = serde_json::from_value(source.trainer_state()?)
        .map_err(|e| fail(Exit::Data, format!("{}/trainer_state.json: {e}", source.dir.display())))?;
    if saved.version != VERSION {
        let message = format!(
            "{}: trainer state of version {}, this program knows {VERSION}",
            source.dir.display(),
            saved.version
        );
        return Err(fail(Exit::Data, message).hint("use the version of llama-lite that wrote it").into());
    }
    let mut config = Config::from_toml_str(&saved.config, "the checkpoint's config")?;
    let changes = config.apply(sets)?;
    refuse_changes(&changes)?;
    check_precision(&config)?;
    say(console, "preparing the data ...");
    let corpus = Corpus::open(&config, Some(Tokenizer::from_dir(&source.dir)?))?;
    if corpus.fingerprint()? != saved.data_fingerprint && !config.data.accept_change {
        return Err(fail(Exit::Data, "the training data are not those the run began with")
            .hint("restore them, or go on with the new ones: --set data.accept_change=true")
            .into());
    }
    let schedule_changed = changes.iter().any(|c| c.key.starts_with("schedule.") || c.key == "optimizer.lr");
    let state = State::resumed(&config, &source, &saved, schedule_changed)?;
    let attempt = saved.attempt.max(last_attempt(&run_dir)) + 1;
    checkpoint::supersede(&run_dir, state.counters.step, attempt)?;
    write_atomic(&run_dir.join("config.toml"), config.to_toml().as_bytes())?;
    let from = Resumed { dir: source.dir.clone(), changes };
    start(config, &run_dir, held, corpus, state, attempt, console, Some(from))
}

/// Where a resumed run comes from.
struct Resumed {
    dir: PathBuf,
    changes: Vec<Change>,
}

#[allow(clippy::too_many_arguments)]
fn start(
    config: Config,
    dir: &Path,
    held: Lock,
    corpus: Corpus,
    state: State,
    attempt: u64,
    console: Console,
    resumed: Option<Resumed>,
) -> Result<()> {
    let resume_step = resumed.as_ref().map(|_| state.counters.step);
    let mut logs = Logs {
        metrics: MetricsLog::open(dir, resume_step)?,
        samples: SampleLog::open(dir, resume_step)?,
        events: Events::open(dir)?,
    };
    let step = state.counters.step;
    match &resumed {
        None => logs.events.append("start", json!({"attempt": attempt, "step": step, "build": super::identity()}))?,
        Some(r) => {
            let changes: Vec<_> = r.changes.iter().map(|c| json!({"key": c.key, "old": c.old, "new": c.new})).collect();
            logs.events.append(
                "resume",
                json!({"attempt": attempt, "step": step, "from": r.dir.file_name().map(|n| n.to_string_lossy()),
                    "changes": changes, "lines_replayed": logs.metrics.cut.lines, "build": super::identity()}),
            )?;
        }
    }
    let loader =
        Loader::new(corpus.train.clone(), config.train.sequence_length, config.data.seed, config.data.shuffle)?;
    Run::new(config, dir, held, corpus, loader, state, logs, attempt, console)?.train()
}

fn restart(run_dir: &Path, held: Lock, sets: &[String], console: Console) -> Result<()> {
    let path = run_dir.join("config.toml");
    let text = String::from_utf8_lossy(&read_bounded(&path, MAX_CONFIG, true)?).into_owned();
    let mut config = Config::from_toml_str(&text, &path.display().to_string())?;
    config.apply(sets)?;
    check_precision(&config)?;
    let corpus = Corpus::open(&config, None)?;
    config.data.stories = corpus.stories.or(config.data.stories);
    let state = State::fresh(&config, None)?;
    write_atomic(&path, config.to_toml().as_bytes())?;
    let attempt = last_attempt(run_dir) + 1;
    start(config, run_dir, held, corpus, state, attempt, console, None)
}

/// The run directory of `ckpt`, and the checkpoint if it names one.
fn locate(ckpt: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    if !ckpt.exists() {
        return Err(fail(Exit::Io, format!("{}: no such directory", ckpt.display()))
            .hint("--ckpt takes a run directory or a checkpoint inside one")
            .into());
    }
    if ckpt.join("config.toml").exists() {
        return Ok((ckpt.to_path_buf(), None));
    }
    let full = ckpt.canonicalize().with_context(|| ckpt.display().to_string())?;
    match full.parent().and_then(Path::parent) {
        Some(run) if run.join("config.toml").exists() => Ok((run.to_path_buf(), Some(full))),
        _ => {
            Err(fail(Exit::Config, format!("{}: neither a run directory nor a checkpoint inside one", ckpt.display()))
                .hint("to start a new run from these weights: pretrain --config FILE --init-from DIR")
                .into())
        }
    }
}

fn newest(run_dir: &Path, console: Console) -> Result<Option<Opened>> {
    let found = checkpoint::newest_valid(run_dir)?;
    for (dir, reason) in &found.quarantined {
        say(console, &format!("warning: damaged checkpoint set aside as {}: {reason}", dir.display()));
        Events::open(run_dir)?.append("quarantine", json!({"as": dir.display().to_string(), "reason": reason}))?;
    }
    found.newest.map(Opened::open_valid).transpose()
}

/// The highest attempt that the events know of; 0 if there is none.
fn last_attempt(run_dir: &Path) -> u64 {
    let Ok(text) = std::fs::read_to_string(run_dir.join("events.jsonl")) else { return 0 };
    let attempts =
        text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()?.get("attempt")?.as_u64());
    attempts.max().unwrap_or(0)
}

fn refuse_existing_run(out: &Path) -> Result<()> {
    if !out.join("config.toml").exists() {
        return Ok(());
    }
    let _held = lock(&out.join("run.lock"))?;
    refuse_existing_run_locked(out)
}

fn refuse_existing_run_locked(out: &Path) -> Result<()> {
    if !out.join("config.toml").exists() && !out.join("checkpoints").exists() {
        return Ok(());
    }
    let out = out.display();
    Err(fail(Exit::Config, format!("{out} already holds a run"))
        .hint(format!("go on with it: llama-lite resume --ckpt {out}; or choose another --out"))
        .into())
}

fn check_precision(config: &Config) -> Result<()> {
    if config.train.precision == "bf16" {
        return Err(fail(Exit::Config, "train.precision = \"bf16\" is not available on the CPU")
            .hint("use \"auto\" or \"f32\"")
            .into());
    }
    Ok(())
}

fn check_same_model(config: &Config, source: &Opened) -> Result<()> {
    let (mut ours, mut theirs) = (config.model.clone(), source.model.clone());
    // These do not touch the weights.
    for m in [&mut ours, &mut theirs] {
        (m.initializer_range, m.residual_scaling, m.max_position_embeddings) = (0.02, false, 1);
    }
    if ours == theirs {
        return Ok(());
    }
    let (ours, theirs) = (serde_json::to_value(&ours)?, serde_json::to_value(&theirs)?);
    let lines: Vec<String> = ours
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| theirs.get(key.as_str()) != Some(value))
        .map(|(key, value)| format!("model.{key} is {value}, {} has {}", source.dir.display(), theirs[key.as_str()]))
        .collect();
    Err(fail(Exit::Config, lines.join("\n"))
        .hint("give [model] the shape of the weights that --init-from names")
        .into())
}

/// A resume cannot change what the checkpoint's tensors are.
fn refuse_changes(changes: &[Change]) -> Result<()> {
    match changes.iter().find(|c| c.key.starts_with("model.")) {
        None => Ok(()),
        Some(c) => Err(fail(Exit::Config, format!("{} cannot change on resume ({} -> {})", c.key, c.old, c.new))
            .hint("a model of another shape is a new run: pretrain")
            .into()),
    }
}

fn say(console: Console, text: &str) {
    if !console.quiet {
        eprintln!("{text}");
    }
}
