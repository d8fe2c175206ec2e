//! `eval`: loss, bits per byte and perplexity of a model on text or shards; benchmark tasks as the lm-evaluation-harness scores them.

use super::arguments::{path, positive, precision};
use super::progress_bar::progress_bar;
use super::ranks::RanksArgs;
use super::{Loaded, load, print, session};

use crate::checkpoint::{self, Dtype};
use crate::config::PrecisionSetting;
use crate::corpus::source::ReadOptions;
use crate::data::dataset::evaluation_tokens;
use crate::data::eval_set::EvalSet;
use crate::eval::benchmark::{Extent, Prepared, TaskResult, evaluate, fingerprint};
use crate::eval::dataset::Library;
use crate::eval::report::{harness_json, lines, table};
use crate::eval::{ByteLengths, Score, score, tasks};
use crate::hub::Hub;
use crate::metrics::{Console, fixed};
use crate::model::params::with_host_slices;
use crate::runtime::error::{Exit, fail, note};
use crate::runtime::files::write_atomic;
use crate::train::session::Session;
use anyhow::Result;
use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  llama-lite eval --ckpt runs/quickstart --data book.txt notes.jsonl --output result.json
  llama-lite eval --ckpt runs/llama-124m --tasks hellaswag,piqa --data-dir benchmarks --limit 500
  llama-lite eval --run runs/llama-124m --tasks arc_easy --download")]
pub struct EvalArgs {
    /// Checkpoint, run directory (its newest valid checkpoint), Hugging Face model directory, or hub:OWNER/NAME[@REVISION]
    #[arg(long, value_name = "DIR", required_unless_present = "run", value_parser = path())]
    pub ckpt: Option<PathBuf>,
    /// For adapters: their model, a directory or hub:OWNER/NAME[@REVISION], if it is no longer where they were trained
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub base: Option<PathBuf>,
    /// Type of the weights: auto is f32 on a CPU, bf16 on a GPU; bf16 on a CPU takes half the memory and rounds the operands of products
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = precision())]
    pub precision: PrecisionSetting,
    /// Run directory: every kept checkpoint of it
    #[arg(long, value_name = "RUN_DIR", conflicts_with = "ckpt", value_parser = path())]
    pub run: Option<PathBuf>,
    /// Text files (.txt, .jsonl), token shards or a prepared directory
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "tasks", value_parser = path())]
    pub data: Vec<PathBuf>,
    /// Field of a record, or column of a .parquet file, that holds the text of --data
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// Benchmark tasks, by their names in the lm-evaluation-harness
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub tasks: Vec<String>,
    /// Directory with the tasks' data: TASK/SPLIT.jsonl or .parquet, or copies of data sets as OWNER/NAME
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub data_dir: Option<PathBuf>,
    /// Download data sets that are not in --data-dir from the Hugging Face Hub
    #[arg(long)]
    pub download: bool,
    /// Examples before each question
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_fewshot: usize,
    /// The first N documents of each task; below 1, a share of them
    #[arg(long, value_name = "N", value_parser = positive)]
    pub limit: Option<f64>,
    /// Write the results to this file as well, as JSON in the harness's shape
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub output: Option<PathBuf>,
    /// Include every document's log-likelihoods in that file
    #[arg(long, requires = "output")]
    pub log_samples: bool,
    #[command(flatten)]
    pub ranks: RanksArgs,
}

/// Tokens scored at a time: bounds the memory of activations.
const TOKENS_AT_ONCE: usize = 8192;

/// Every rank evaluates its share, and rank 0 tells the results of all.
pub(crate) fn run(args: &EvalArgs, console: Console) -> Result<()> {
    let session = session(console);
    let (report, text) = match (&args.ckpt, &args.run) {
        (Some(ckpt), _) => evaluate_model(args, ckpt, &session)?,
        (None, Some(run)) => trajectory(args, run, &session)?,
        (None, None) => return Err(fail(Exit::Config, "no model").hint("give --ckpt DIR or --run RUN_DIR").into()),
    };
    if let Some(path) = args.output.as_ref().filter(|_| session.group.is_first()) {
        write_atomic(path, format!("{report:#}\n").as_bytes())?;
    }
    print(&text)
}

/// Every kept checkpoint of a run, in the order of steps: one table, and one series for each task and metric.
fn trajectory(args: &EvalArgs, run: &Path, session: &Session) -> Result<(Value, String)> {
    // A run that is going on may save and remove some while the ranks look.
    let checkpoints = session.group.on_first("the checkpoints", || kept_checkpoints(run))?;
    let mut series = serde_json::Map::new();
    let mut reports = serde_json::Map::new();
    let mut text = String::new();
    for (step, dir) in &checkpoints {
        let (report, table) = evaluate_model(args, dir, session)?;
        text += &format!("step {step}\n{table}\n");
        for (task, metrics) in report["results"].as_object().into_iter().flatten() {
            for (metric, value) in metrics.as_object().into_iter().flatten().filter(|(_, value)| value.is_f64()) {
                let points = &mut series.entry(format!("{task}/{metric}")).or_insert_with(|| json!([]));
                if let Some(points) = points.as_array_mut() {
                    points.push(json!([step, value]));
                }
            }
        }
        reports.insert(step.to_string(), report);
    }
    Ok((json!({"run": run.display().to_string(), "series": series, "checkpoints": reports}), text))
}

/// The checkpoints of `run` with their steps, oldest first.
fn kept_checkpoints(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut checkpoints = checkpoint::list_valid(run)?;
    checkpoints.reverse();
    if checkpoints.is_empty() {
        return Err(fail(Exit::Io, format!("{} holds no checkpoints", run.display()))
            .hint("give the directory of a run that has saved, or --ckpt DIR")
            .into());
    }
    Ok(checkpoints.into_iter().map(|valid| (valid.manifest.step, valid.dir)).collect())
}

/// The results file of one model, and what is printed.
fn evaluate_model(args: &EvalArgs, ckpt: &Path, session: &Session) -> Result<(Value, String)> {
    let loaded = load(ckpt, args.base.as_deref(), args.precision, session.console)?;
    session.group.ensure_same("model", || fingerprint_of(&loaded))?;
    let (mut report, mut text) = if args.tasks.is_empty() {
        (json!({"results": {}, "config": {}}), String::new())
    } else {
        run_tasks(args, &loaded, session)?
    };
    if !args.data.is_empty() {
        let (result, context) = score_text(args, &loaded, session)?;
        let bits_per_byte = result.bits_per_byte();
        report["results"]["data"] = json!({
            "loss": result.loss, "bits_per_byte": bits_per_byte,
            "perplexity": result.loss.exp(),
            "tokens": result.tokens, "bytes": result.bytes,
        });
        report["config"]["data"] = args.data.iter().map(|path| path.display().to_string()).collect();
        report["config"]["context"] = context.into();
        text += &format!(
            "loss {} nats per token · {} bits per byte · perplexity {:.3} · {} tokens\n",
            fixed(result.loss, 4),
            fixed(bits_per_byte, 4),
            result.loss.exp(),
            result.tokens,
        );
    }
    report["config"]["ckpt"] = loaded.source.dir.display().to_string().into();
    report["config"]["version"] = crate::VERSION.into();
    Ok((report, text))
}

/// Identifies the weights and the tokenizer.
fn fingerprint_of(loaded: &Loaded) -> Result<String> {
    let weights = with_host_slices(&[&loaded.model.flat], |slices| blake3::hash(bytemuck::cast_slice(slices[0])))?;
    Ok(format!("{weights} {}", loaded.tokenizer.fingerprint()))
}

/// The score of the text of `--data`, and the length of the windows that it was cut into.
fn score_text(args: &EvalArgs, loaded: &Loaded, session: &Session) -> Result<(Score, usize)> {
    let Loaded { tokenizer, model, .. } = loaded;
    let patterns: Vec<String> = args.data.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let options = ReadOptions {
        text_field: args.text_field.clone(),
        field_option: Some("--text-field NAME"),
        ..ReadOptions::default()
    };
    let (tokens, bytes) = evaluation_tokens(&patterns, tokenizer, model.config.vocab_size, &options)?;
    let length = model.config.max_position_embeddings;
    let mut rows = EvalSet::windows(tokens, length, u64::MAX);
    rows.text_bytes = bytes;
    if rows.is_empty() {
        return Err(fail(Exit::Data, format!("{}: no text to score", patterns.join(" ")))
            .hint("give a file with text")
            .into());
    }
    session.group.ensure_same("text", || rows.fingerprint())?;
    let bar = bar(rows.len(), "windows", session.console);
    let batch = (TOKENS_AT_ONCE / rows.length()).max(1);
    let result = score(&session.group, model, &rows, &ByteLengths::new(tokenizer), batch, |done| {
        bar.set_position(done as u64);
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok((result, length))
}

fn run_tasks(args: &EvalArgs, loaded: &Loaded, session: &Session) -> Result<(Value, String)> {
    let (prepared, results) = score_tasks(args, loaded, session)?;
    let dtype = if loaded.model.is_in_bf16() { Dtype::Bf16 } else { Dtype::F32 };
    let config = json!({
        "model": "llama-lite", "dtype": dtype.torch_name(), "limit": args.limit, "num_fewshot": args.num_fewshot,
        "max_length": loaded.model.config.max_position_embeddings,
    });
    let report = harness_json(&prepared, &results, config, args.log_samples);
    Ok((report, table(&lines(&prepared, &results))))
}

fn score_tasks(args: &EvalArgs, loaded: &Loaded, session: &Session) -> Result<(Vec<Prepared>, Vec<TaskResult>)> {
    let Session { group, console, .. } = session;
    let prepared = if args.download {
        group.first_then_others("the task data", || prepare_tasks(args, loaded))?
    } else {
        prepare_tasks(args, loaded)?
    };
    group.ensure_same("task data", || Ok(fingerprint(&prepared)))?;
    prepared.iter().filter_map(Prepared::warning).for_each(|warning| note(&warning));
    let start = Instant::now();
    let documents: usize = prepared.iter().map(Prepared::documents).sum();
    let bar = bar(0, "requests", *console);
    let results = evaluate(group, &loaded.model, &prepared, |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        Ok(())
    })?;
    bar.finish_and_clear();
    if !console.quiet {
        let seconds = start.elapsed().as_secs_f64();
        note(&format!("{documents} documents in {seconds:.1} s · {:.1} documents/s", documents as f64 / seconds));
    }
    Ok((prepared, results))
}

/// Reads the data of the tasks, each of them once, and writes their prompts.
fn prepare_tasks(args: &EvalArgs, loaded: &Loaded) -> Result<Vec<Prepared>> {
    let hub = args.download.then(Hub::from_env).transpose()?;
    let library = Library { dir: args.data_dir.clone(), hub };
    let extent = Extent { num_fewshot: args.num_fewshot, limit: args.limit };
    let context = loaded.model.config.max_position_embeddings;
    let mut prepared: Vec<Prepared> = Vec::new();
    for name in &args.tasks {
        for task in tasks::find(name)? {
            if !prepared.iter().any(|known| known.task.name == task.name) {
                prepared.push(Prepared::new(task, extent, &library, &loaded.tokenizer, context)?);
            }
        }
    }
    Ok(prepared)
}

/// The progress of `length` things, which are called `what`.
fn bar(length: usize, what: &str, console: Console) -> ProgressBar {
    progress_bar(length as u64, &format!("{{bar:30}} {{pos}}/{{len}} {what}  {{eta}} left"), console)
}
