//! How a run begins: `pretrain` makes a fresh state in a new run directory. How one goes on: `resume.rs`. From there on both are the same
//! [`Run`].

use super::footprint::{Footprint, checkpoint_bytes};
use super::requests::{NOTHING_TO_RESUME, Requests};
use super::run::{Logs, Parts, Place, Run};
use super::schedule::check_new_run;
use super::state::State;
use crate::checkpoint::{self, Opened};
use crate::config::{Config, NameOrPath, TokenizerName};
use crate::data::dataset::{missing_tokenizer, named_tokenizer};
use crate::eval::benchmark::{Extent, Prepared};
use crate::eval::dataset::Library;
use crate::eval::tasks::{self, Task};
use crate::hub::HubName;
use crate::metrics::{Console, Events};
use crate::ops::attention::GPU_BF16_DIMS;
use crate::ops::device;
use crate::ops::precision::Precision;
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::files::{Lock, create_dirs, lock, write_atomic};
use crate::runtime::home::expand_home;
use crate::runtime::memory;
use crate::runtime::shell::quoted;
use crate::tokenizer::Tokenizer;
use crate::train::run_data::RunData;
use anyhow::Result;
use serde_json::json;
use std::path::{Path, PathBuf};

/// A new run in `out`, trained to its end. Nothing is created before configuration, data and memory are known to be right.
///
/// # Errors
/// Those of configuration, data, and [`Run::train`].
pub fn pretrain(mut config: Config, out: &Path, init_from: Option<&Path>, console: Console) -> Result<()> {
    let requests = Requests::listen(out, NOTHING_TO_RESUME)?;
    refuse_existing_run(out)?;
    check_new_run(&config)?;
    make_paths_absolute(&mut config)?;
    check_machine(&config)?;
    check_disk(&config, out)?;
    let (parts, source) = fresh_parts(config, init_from, console)?;
    begin_fresh(Fresh { parts, source, requests, console }, out, |_| Ok(()))
}

/// A run that has no directory yet.
pub(super) struct Fresh {
    pub(super) parts: Parts,
    /// Where its weights come from, if they are not new.
    pub(super) source: Option<Opened>,
    pub(super) requests: Requests,
    pub(super) console: Console,
}

/// Makes the directory `out`, with what `also` puts there, and trains.
pub(super) fn begin_fresh(run: Fresh, out: &Path, also: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let Fresh { parts, source, requests, console } = run;
    let text = parts.config.to_checked_toml()?;
    refuse_existing_run(out)?;
    create_dirs(out)?;
    let held = lock(&out.join("run.lock"))?;
    refuse_existing_run_locked(out)?;
    also(out)?;
    let mut events = Events::open(out)?;
    // Durable before the configuration makes this a run: a restart must begin with the same weights.
    let from = source.map(|s| std::path::absolute(s.dir)).transpose()?;
    events.append(
        "start",
        json!({"attempt": 1, "step": 0, "init_from": from, "build": super::identity(&parts.config.train)}),
    )?;
    write_atomic(&out.join("config.toml"), text.as_bytes())?;
    let begin = Begin { run_dir: out.to_path_buf(), held, requests, console };
    begin.run(
        parts,
        Place { dir: out.to_path_buf(), attempt: 1, saved: false, repeats: false, moved: None },
        events,
        None,
    )
}

/// A run directory that is ours, before its run is known.
pub(super) struct Begin {
    pub(super) run_dir: PathBuf,
    pub(super) held: Lock,
    pub(super) requests: Requests,
    pub(super) console: Console,
}

impl Begin {
    /// Opens the logs, which are cut to `resume_step`, and trains.
    pub(super) fn run(self, parts: Parts, place: Place, events: Events, resume_step: Option<u64>) -> Result<()> {
        let logs = Logs::open(&self.run_dir, &parts.config.log, events, resume_step)?;
        Run::new(parts, place, self.held, logs, self.requests, self.console)?.train()
    }
}

/// The parts of a run at step 0, and where its weights come from if they are not new.
pub(super) fn fresh_parts(
    mut config: Config,
    init_from: Option<&Path>,
    console: Console,
) -> Result<(Parts, Option<Opened>)> {
    let source = init_from.map(Opened::open).transpose()?;
    if let Some(source) = &source {
        check_same_model(&config, source)?;
    }
    say(console, "preparing the data ...");
    let tokenizer = match &source {
        // Fine-tuning takes its model's tokenizer in any case.
        Some(source) if !config.is_sft() => model_tokenizer(&config, source)?,
        _ => None,
    };
    let data = RunData::open(&config, tokenizer)?;
    config.data.stories = data.dataset.stories.or(config.data.stories);
    Ok((assemble(config, data, source.as_ref())?, source))
}

/// The tokenizer of the weights in `source`, which must be the one that `data.tokenizer` names; none if it comes without.
fn model_tokenizer(config: &Config, source: &Opened) -> Result<Option<Tokenizer>> {
    let choice = &config.data.tokenizer;
    let dir = source.tokenizer_dir();
    if *choice == NameOrPath::Name(TokenizerName::Train) {
        return Ok(Some(Tokenizer::from_dir(dir)?));
    }
    let named = named_tokenizer(choice)?;
    if dir.join("tokenizer.json").exists() {
        let own = Tokenizer::from_dir(dir)?;
        if !named.is_same_as(&own) {
            let (there, here) = (own.vocab_size(), named.vocab_size());
            let message = format!(
                "data.tokenizer = {:?} ({here} ids) is not the tokenizer that the weights in {} were trained with ({there} ids)",
                choice.as_str(),
                source.dir.display()
            );
            return Err(fail(Exit::Config, message)
                .hint("leave data.tokenizer out: the default is the tokenizer of the model that --init-from names")
                .into());
        }
    }
    Ok(Some(named))
}

/// What a run at step 0 is made of.
pub(super) fn assemble(config: Config, data: RunData, source: Option<&Opened>) -> Result<Parts> {
    let loader = data.dataset.loader(&config)?;
    let benchmarks = benchmarks(&config, &data.dataset.tokenizer)?;
    let state = State::fresh(&config, source)?;
    let fingerprint = data.dataset.fingerprint()?;
    Ok(Parts { config, data, loader, state, fingerprint, benchmarks })
}

/// The benchmark tasks of `config.eval`, read and encoded: what is wrong with them is found before the run begins.
pub(super) fn benchmarks(config: &Config, tokenizer: &Tokenizer) -> Result<Vec<Prepared>> {
    let eval = &config.eval;
    let library = Library { dir: eval.data_dir.as_ref().map(PathBuf::from), hub: None };
    let extent = Extent { num_fewshot: eval.num_fewshot, limit: eval.limit.map(|n| n as f64) };
    let context = config.model.max_position_embeddings;
    let tasks: Vec<Vec<Task>> = eval.tasks.iter().map(|name| tasks::find(name)).collect::<Result<_>>()?;
    let prepare = |task| Prepared::new(task, extent, &library, tokenizer, context);
    tasks.into_iter().flatten().map(prepare).collect()
}

/// Makes every path of the configuration absolute: a resume from another directory must find the same files.
///
/// # Errors
/// [`Exit::Config`] for a current directory whose name is not UTF-8, which a configuration cannot hold.
pub(super) fn make_paths_absolute(config: &mut Config) -> Result<()> {
    for list in [&mut config.data.train, &mut config.data.val, &mut config.sft.base_val] {
        *list = list.iter().map(|path| absolute(path)).collect::<Result<_>>()?;
    }
    for path in [&mut config.eval.data_dir, &mut config.sft.base].into_iter().flatten() {
        *path = absolute(path)?;
    }
    if let NameOrPath::Path(path) = &mut config.data.tokenizer {
        let file = absolute(path)?;
        if !Path::new(&file).exists() {
            return Err(missing_tokenizer(path).into());
        }
        *path = file;
    }
    if let NameOrPath::Path(path) = &mut config.sft.template {
        *path = absolute(path)?;
    }
    Ok(())
}

fn absolute(path: &str) -> Result<String> {
    // The name of a data set, and what is no path at all, is refused by name where it is read.
    if HubName::is_hub(path) {
        return Ok(path.to_owned());
    }
    std::path::absolute(expand_home(Path::new(path)))?.into_os_string().into_string().map_err(|full| {
        let message = format!("{}: not UTF-8, and a configuration is UTF-8 text", Path::new(&full).display());
        fail(Exit::Config, message).hint("run it in a directory whose name is UTF-8, or rename this one").into()
    })
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
    Err(fail(Exit::Config, format!("{} already holds a run", out.display()))
        .hint(format!("go on with it: llama-lite resume --ckpt {}; or choose another --out", quoted(out)))
        .into())
}

/// Refuses what this machine cannot do: before anything is created, and with the numbers.
pub(super) fn check_machine(config: &Config) -> Result<()> {
    if !device::used().is_cpu() {
        return check_gpu(config);
    }
    if !super::precision(&config.train).supported() {
        return Err(fail(Exit::Config, "train.precision = \"bf16\": this processor has no AVX512_BF16")
            .hint("use \"auto\" or \"f32\"")
            .into());
    }
    let footprint = Footprint::of(config);
    let what = "training this model (weights, gradients, moments, activations of a micro-batch)";
    let remedy = "lower train.micro_batch_size or train.sequence_length, or choose a smaller [model]";
    memory::check(footprint.needed(), what, remedy)?;
    Ok(())
}

/// Refuses what the GPU has no kernels for. Whether the memory suffices shows when it does not: then the micro-batch is halved.
fn check_gpu(config: &Config) -> Result<()> {
    let head = config.model.head_dim;
    let missing = [
        (
            super::precision(&config.train) == Precision::Bf16 && !GPU_BF16_DIMS.contains(&head),
            format!("bf16 with model.head_dim = {head}"),
        ),
        (!config.model.hidden_size.is_multiple_of(8), "a model.hidden_size that is no multiple of 8".to_owned()),
        (
            !config.model.intermediate_size.is_multiple_of(8),
            "a model.intermediate_size that is no multiple of 8".to_owned(),
        ),
    ];
    match missing.into_iter().find(|(wanted, _)| *wanted) {
        None => Ok(()),
        Some((_, what)) => {
            Err(fail(Exit::Config, format!("{what} does not work on a GPU yet")).hint("use --device cpu").into())
        }
    }
}

/// Refuses a run whose checkpoints do not fit onto the disk: before anything is created.
pub(super) fn check_disk(config: &Config, run_dir: &Path) -> Result<()> {
    let there = checkpoint::list_valid(run_dir)?.len() as u64;
    // One more than is kept: the new one is written before the oldest is deleted.
    let more = (config.checkpoint.keep as u64).saturating_add(1).saturating_sub(there);
    checkpoint::ensure_space(run_dir, checkpoint_bytes(config).saturating_mul(more))
}

pub(super) fn check_same_model(config: &Config, source: &Opened) -> Result<()> {
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

/// A line for whoever watches.
pub(super) fn say(console: Console, text: &str) {
    if !console.quiet {
        note(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SftInputs;

    /// Keys that hold text but no path. Whoever adds a key adds it here, or to `make_paths_absolute`.
    const NO_PATHS: [&str; 18] = [
        "data.source",
        "data.text_field",
        "data.text_separator",
        "train.precision",
        "train.recompute",
        "optimizer.kind",
        "optimizer.moments",
        "schedule.kind",
        "checkpoint.on_full",
        "guard.spike",
        "eval.tasks",
        "sample.prompts",
        "sft.format",
        "sft.train_on",
        "lora.targets",
        "data.weights",
        "optimizer.betas",
        "model.preset",
    ];

    #[test]
    fn every_path_is_absolute_wherever_it_enters() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sft.toml");
        std::fs::write(&file, "[train]\nmicro_batch_size = 1\n[lora]\nrank = 2\n").unwrap();
        let text = "[model]\nhidden_size = 8\nintermediate_size = 8\nnum_hidden_layers = 1\nnum_attention_heads = 2\n\
            vocab_size = 300\n[data]\nsource = \"stories\"\ntokenizer = \"train\"\n[train]\nsequence_length = 8\n\
            micro_batch_size = 1\nsteps = 1\n";
        let model = Config::from_toml_str(text, "a.toml").unwrap().model;
        let (base, data) = (Path::new("rel/base"), ["rel/a.jsonl".to_owned()]);
        let sets = [
            "data.val=[\"rel/b.jsonl\"]",
            // One that does not exist is refused here.
            "data.tokenizer=Cargo.toml",
            "sft.template=./rel.jinja",
            "sft.base_val=[\"rel/c.txt\", \"hub:owner/name\"]",
            "eval.data_dir=rel/d",
            "sample.prompts=[\"a\"]",
        ]
        .map(String::from);
        let tuned = SftInputs { base, model: &model, data: &data, steps: Some(3) };
        let mut config = Config::load_sft(&file, &sets, &tuned).unwrap();
        make_paths_absolute(&mut config).unwrap();
        let stored: toml::Table = config.to_toml().parse().unwrap();
        let mut paths = 0;
        for (section, keys) in &stored {
            for (key, value) in keys.as_table().unwrap() {
                let texts = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                let texts: Vec<&str> = texts.iter().filter_map(toml::Value::as_str).collect();
                let key = format!("{section}.{key}");
                if NO_PATHS.contains(&key.as_str()) {
                    continue;
                }
                paths += texts.len();
                assert!(
                    texts.iter().all(|text| text.starts_with('/') || *text == "hub:owner/name"),
                    "{key}: {texts:?}"
                );
            }
        }
        assert_eq!(paths, 8);
    }
}
