//! How a run begins: `pretrain` makes a fresh state in a new run directory, `resume` continues one from its newest good checkpoint or
//! from one named. From there on both are the same [`Run`].

use super::run::{Logs, Parts, Run};
use super::state::{Saved, State, VERSION};
use crate::checkpoint::{self, Opened};
use crate::config::{Change, Config};
use crate::data::corpus::Corpus;
use crate::data::loader::{Loader, Plan};
use crate::data::tokenizer::Tokenizer;
use crate::metrics::{Console, Events, MetricsLog, SampleLog};
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::files::{Lock, create_dirs, lock, read_bounded, write_atomic};
use crate::runtime::memory;
use anyhow::{Context, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A configuration file is text written by people.
const MAX_CONFIG: u64 = 1 << 20;

/// A new run in `out`, trained to its end. Nothing is created before configuration, data and memory are known to be right.
///
/// # Errors
/// Those of configuration, data, and [`Run::train`].
pub fn pretrain(mut config: Config, out: &Path, init_from: Option<&Path>, console: Console) -> Result<()> {
    refuse_existing_run(out)?;
    make_paths_absolute(&mut config)?;
    let (parts, source) = fresh_parts(config, init_from, console)?;
    create_dirs(out)?;
    let held = lock(&out.join("run.lock"))?;
    refuse_existing_run_locked(out)?;
    let mut events = Events::open(out)?;
    // Durable before the configuration makes this a run: a restart must begin with the same weights.
    let from = source.map(|s| std::path::absolute(s.dir)).transpose()?;
    events.append(
        "start",
        json!({"attempt": 1, "step": 0, "init_from": from, "build": super::identity(&parts.config.train)}),
    )?;
    write_atomic(&out.join("config.toml"), parts.config.to_toml().as_bytes())?;
    start(parts, out, held, events, 1, console, false)
}

fn fresh_parts(mut config: Config, init_from: Option<&Path>, console: Console) -> Result<(Parts, Option<Opened>)> {
    check_machine(&config)?;
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
    let loader = make_loader(&config, &corpus)?;
    let state = State::fresh(&config, source.as_ref())?;
    let fingerprint = corpus.fingerprint()?;
    Ok((Parts { config, corpus, loader, state, fingerprint }, source))
}

fn make_loader(config: &Config, corpus: &Corpus) -> Result<Loader> {
    let data = &config.data;
    let plan = Plan {
        sequence_length: config.train.sequence_length,
        seed: data.seed,
        shuffle: data.shuffle,
        weights: data.weights.clone(),
        boundary: corpus.boundary.filter(|_| data.document_mask),
    };
    Loader::new(corpus.train.clone(), &plan)
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
    refuse_changes(&config, &changes, saved.counters.step)?;
    check_machine(&config)?;
    say(console, "preparing the data ...");
    let corpus = Corpus::open(&config, Some(Tokenizer::from_dir(&source.dir)?))?;
    let fingerprint = corpus.fingerprint()?;
    if fingerprint != saved.data_fingerprint && !config.data.accept_change {
        return Err(fail(Exit::Data, "the training or validation data are not those the run began with")
            .hint("restore them, or go on with the new ones: --set data.accept_change=true")
            .into());
    }
    let schedule_changed = changes.iter().any(|c| c.key.starts_with("schedule.") || c.key == "optimizer.lr");
    let state = State::resumed(&config, &source, &saved, schedule_changed)?;
    let loader = make_loader(&config, &corpus)?;
    let attempt = saved.attempt.max(last_start(&run_dir).attempt) + 1;
    checkpoint::supersede(&run_dir, state.counters.step, attempt)?;
    write_atomic(&run_dir.join("config.toml"), config.to_toml().as_bytes())?;
    let mut events = Events::open(&run_dir)?;
    let changes: Vec<_> = changes.iter().map(|c| json!({"key": c.key, "old": c.old, "new": c.new})).collect();
    let from = source.dir.file_name().map(|n| n.to_string_lossy().into_owned());
    let step = state.counters.step;
    events.append(
        "resume",
        json!({"attempt": attempt, "step": step, "from": from, "changes": changes, "build": super::identity(&config.train)}),
    )?;
    start(Parts { config, corpus, loader, state, fingerprint }, &run_dir, held, events, attempt, console, true)
}

fn start(
    parts: Parts,
    dir: &Path,
    held: Lock,
    events: Events,
    attempt: u64,
    console: Console,
    resumed: bool,
) -> Result<()> {
    let resume_step = resumed.then_some(parts.state.counters.step);
    let logs =
        Logs { metrics: MetricsLog::open(dir, resume_step)?, samples: SampleLog::open(dir, resume_step)?, events };
    Run::new(parts, dir, held, logs, attempt, console, resumed)?.train()
}

/// A run that was stopped before its first checkpoint: from its beginning again, with the weights it began with.
fn restart(run_dir: &Path, held: Lock, sets: &[String], console: Console) -> Result<()> {
    let path = run_dir.join("config.toml");
    let text = String::from_utf8_lossy(&read_bounded(&path, MAX_CONFIG, true)?).into_owned();
    let mut config = Config::from_toml_str(&text, &path.display().to_string())?;
    config.apply(sets)?;
    let last = last_start(run_dir);
    let (parts, source) = fresh_parts(config, last.init_from.as_deref(), console)?;
    write_atomic(&path, parts.config.to_toml().as_bytes())?;
    let (attempt, mut events) = (last.attempt + 1, Events::open(run_dir)?);
    let from = source.map(|s| s.dir);
    events.append(
        "start",
        json!({"attempt": attempt, "step": 0, "init_from": from, "build": super::identity(&parts.config.train)}),
    )?;
    start(parts, run_dir, held, events, attempt, console, false)
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
    if ckpt.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) {
        let message = format!("{}: set aside, no longer a checkpoint of its run", ckpt.display());
        return Err(fail(Exit::Config, message)
            .hint("rename it to step-NNNNNNNN first, or use it with pretrain --init-from")
            .into());
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

/// What the events know of a run's beginnings.
#[derive(Default)]
struct Begun {
    /// The highest attempt; 0 if there is none.
    attempt: u64,
    /// Where its first weights came from.
    init_from: Option<PathBuf>,
}

fn last_start(run_dir: &Path) -> Begun {
    let mut begun = Begun::default();
    let Ok(text) = std::fs::read_to_string(run_dir.join("events.jsonl")) else { return begun };
    for event in text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()) {
        begun.attempt = begun.attempt.max(event["attempt"].as_u64().unwrap_or(0));
        if event["kind"] == "start" {
            begun.init_from = event["init_from"].as_str().map(PathBuf::from);
        }
    }
    begun
}

/// A resume from another directory must find the same files.
fn make_paths_absolute(config: &mut Config) -> Result<()> {
    let absolute = |p: &String| -> Result<String> { Ok(std::path::absolute(p)?.to_string_lossy().into_owned()) };
    for list in [&mut config.data.train, &mut config.data.val] {
        *list = list.iter().map(absolute).collect::<Result<_>>()?;
    }
    if !["gpt2", "train"].contains(&config.data.tokenizer.as_str()) {
        config.data.tokenizer = absolute(&config.data.tokenizer)?;
    }
    Ok(())
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

/// Refuses what this machine cannot do.
fn check_machine(config: &Config) -> Result<()> {
    if !super::precision(&config.train).supported() {
        return Err(fail(Exit::Config, "train.precision = \"bf16\": this processor has no AVX512_BF16")
            .hint("use \"auto\" or \"f32\"")
            .into());
    }
    // Weights, gradients and two moments in f32.
    let bytes = config.model.n_params().saturating_mul(16);
    Ok(memory::check(bytes, "training this model (weights, gradients, moments)", "choose a smaller [model]")?)
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

/// A resume cannot change what the checkpoint's tensors and counters mean, nor what has had its effect already.
fn refuse_changes(config: &Config, changes: &[Change], step: u64) -> Result<()> {
    const FIXED: [&str; 3] = ["train.sequence_length", "train.seed", "data.tokenizer"];
    const ORDER: [&str; 3] = ["data.seed", "data.shuffle", "data.weights"];
    let fixed = |c: &&Change| c.key.starts_with("model.") || FIXED.contains(&c.key);
    if let Some(c) = changes.iter().find(fixed) {
        return Err(fail(Exit::Config, format!("{} cannot change on resume ({} -> {})", c.key, c.old, c.new))
            .hint("start a new run, with --init-from if it should begin with these weights")
            .into());
    }
    if let Some(c) = changes.iter().find(|c| ORDER.contains(&c.key)).filter(|_| !config.data.accept_change) {
        return Err(fail(
            Exit::Config,
            format!("{} would repeat and drop data in mid-run ({} -> {})", c.key, c.old, c.new),
        )
        .hint("if that is meant: --set data.accept_change=true")
        .into());
    }
    if config.train.steps < step {
        return Err(fail(
            Exit::Config,
            format!("train.steps is {}, but the run is at step {step} already", config.train.steps),
        )
        .hint("resume an earlier checkpoint, or set train.steps higher")
        .into());
    }
    Ok(())
}

fn say(console: Console, text: &str) {
    if !console.quiet {
        note(text);
    }
}
